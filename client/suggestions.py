"""Suggestions for the current text, and the cache of answers that they are taken from."""

import re
from collections import OrderedDict
from dataclasses import dataclass

from superdraft.client.models import Draft, DraftsAnswer

_WORD = re.compile(r"\s*\S+")


@dataclass(frozen=True, slots=True)
class Suggestion:
    """The rest of a draft of which the user may have typed the beginning.

    Attributes:
        completion_id: id of the answer that contains the draft.
        rank: rank of the draft in the answer; 0 is the best.
        text: the text to insert at the cursor; never empty.
        score: score of the draft, see `Draft`.
        num_typed: number of the draft's characters that are already in the text.
    """

    completion_id: str
    rank: int
    text: str
    score: float
    num_typed: int

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

    def __len__(self) -> int:
        return len(self._drafts)

    def put(self, text: str, answer: DraftsAnswer, after: str = "") -> None:
        """Store the answer to a request for `text`, with `after` behind the cursor."""
        place = text, after
        self._drafts[place] = answer.id, answer.drafts
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
        return tuple(
            Suggestion(completion_id, draft.index, draft.text[len(typed) :], draft.score, len(typed))
            for draft in drafts
            if len(draft.text) > len(typed) and draft.text.startswith(typed)
        )
