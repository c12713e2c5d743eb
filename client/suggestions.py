"""Suggestions for the current text, and the cache of answers that they are taken from."""

import re
from collections import OrderedDict
from dataclasses import dataclass, replace

from superdraft.client.models import Draft, DraftsAnswer

MAX_KEPT_WORDS, MAX_WORD_CHARS = 1000, 64

_WORD = re.compile(r"\s*\S+")
_LETTERS = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)?")
_LAST_WORD = re.compile(r"([^\W\d_]+(?:['\u2019][^\W\d_]+)?)( ?)\Z")


@dataclass(frozen=True, slots=True)
class Suggestion:
    """The rest of a draft of which the user may have typed the beginning.

    Attributes:
        completion_id: id of the answer that contains the draft.
        rank: rank of the draft in the answer; 0 is the best.
        text: the text to insert at the cursor; never empty.
        score: score of the draft, see `Draft`.
        num_typed: number of the draft's characters that are already in the text.
        replaces: the end of the text before the cursor that goes when `text` is inserted, since it was mistyped.
    """

    completion_id: str
    rank: int
    text: str
    score: float
    num_typed: int
    replaces: str = ""

    @property
    def first_word(self) -> str:
        """The first word of `text` with the white space before it, or all of `text` if it contains no word."""
        found = _WORD.match(self.text)
        return self.text if found is None else found[0]

    @property
    def key(self) -> tuple[str, int]:
        """Identifies the draft: completion id and rank."""
        return self.completion_id, self.rank


@dataclass(frozen=True, slots=True)
class Display:
    """What the editor should show.

    Attributes:
        text: the text before the cursor.
        suggestions: continuations of `text`, best first.
        selected: index of the suggestion to show as ghost text.
    """

    text: str = ""
    suggestions: tuple[Suggestion, ...] = ()
    selected: int = 0

    @property
    def ghost(self) -> Suggestion | None:
        """The selected suggestion, or None if there are no suggestions."""
        return self.suggestions[self.selected] if self.suggestions else None


Place = tuple[str, str]
"""The text before the cursor, and the text after it."""


class AnswerCache:
    """A least-recently-used cache of answers, by the place that they are for.

    Args:
        max_answers: maximum number of answers in the cache.
    """

    def __init__(self, max_answers: int) -> None:
        self._max_answers = max_answers
        self._drafts: OrderedDict[Place, tuple[str, tuple[Draft, ...]]] = OrderedDict()
        self._kept_words: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._drafts)

    def put(self, text: str, answer: DraftsAnswer, after: str = "") -> None:
        """Store the answer to a request for `text`, with `after` behind the cursor."""
        self._put((text, after), answer.id, answer.drafts)

    def put_corrected(self, text: str, after: str, replaced: str) -> None:
        """Store the drafts for `text` that replace the end of it once more, for the text before that end."""
        completion_id, drafts = self._drafts[text, after]
        corrected = tuple(replace(draft, replaces=None) for draft in drafts if _replaced(draft) == replaced)
        self._put((text.removesuffix(replaced), after), completion_id, corrected)

    def keep(self, words: str) -> None:
        """Correct none of these words from now on."""
        for word in _LETTERS.findall(words.lower()):
            self._kept_words[word] = None
            self._kept_words.move_to_end(word)
            if len(self._kept_words) > MAX_KEPT_WORDS:
                self._kept_words.popitem(last=False)

    def may_correct(self, text: str) -> bool:
        """Whether the word at the end of `text` is none that is kept, nor the beginning of one."""
        word = _LAST_WORD.search(text[-MAX_WORD_CHARS:].lower())
        if word is None:
            return True
        return not any(kept == word[1] if word[2] else kept.startswith(word[1]) for kept in self._kept_words)

    def _put(self, place: Place, completion_id: str, drafts: tuple[Draft, ...]) -> None:
        self._drafts[place] = completion_id, drafts
        self._drafts.move_to_end(place)
        if len(self._drafts) > self._max_answers:
            self._drafts.popitem(last=False)

    def find(self, text: str, after: str = "") -> tuple[Suggestion, ...] | None:
        """Return the suggestions for `text`, with `after` behind the cursor.

        They come from the answer to the longest beginning of `text` that has a draft which agrees with the rest. The
        result is empty if the server was asked for exactly this text and had no draft, and None if it should be asked.
        """
        known = (place for place in self._drafts if place[1] == after and text.startswith(place[0]))
        for place in sorted(known, key=lambda place: len(place[0]), reverse=True):
            if found := self._fitting(place, text):
                self._drafts.move_to_end(place)
                return found
        return () if (text, after) in self._drafts else None

    def _fitting(self, place: Place, text: str) -> tuple[Suggestion, ...]:
        completion_id, drafts = self._drafts[place]
        typed = text[len(place[0]) :]
        # A correction belongs to the text that it corrects: whoever types on has not taken it.
        may_correct = typed == "" and self.may_correct(text)
        return tuple(
            Suggestion(completion_id, draft.index, draft.text[len(typed) :], draft.score, len(typed), _replaced(draft))
            for draft in drafts
            if len(draft.text) > len(typed) and draft.text.startswith(typed) and (draft.replaces is None or may_correct)
        )


def _replaced(draft: Draft) -> str:
    return "" if draft.replaces is None else draft.replaces.text
