"""Answers that are kept, and what of them fits the text on the screen."""

import re
from collections import OrderedDict
from dataclasses import dataclass

from superdraft.client.models import Draft, DraftsAnswer

_WORD = re.compile(r"\s*\S+")


@dataclass(frozen=True, slots=True)
class Suggestion:
    """What is left of a draft after the part of it that is on the screen.

    Attributes:
        completion_id: of its answer.
        rank: of the draft in the answer; 0 is the best.
        text: goes on right after the cursor; never empty.
        score: of the draft, see `Draft`.
        num_typed: characters of the draft that are on the screen already.
    """

    completion_id: str
    rank: int
    text: str
    score: float
    num_typed: int

    @property
    def first_word(self) -> str:
        """The text's first word with the white space before it; all of it if there is no word."""
        found = _WORD.match(self.text)
        return self.text if found is None else found[0]

    @property
    def key(self) -> tuple[str, int]:
        """The draft it is of."""
        return self.completion_id, self.rank


@dataclass(frozen=True, slots=True)
class Display:
    """What is to be on the screen.

    Attributes:
        text: before the cursor.
        suggestions: best first; each goes on from `text`.
        selected: index of the one to show as ghost text.
    """

    text: str = ""
    suggestions: tuple[Suggestion, ...] = ()
    selected: int = 0

    @property
    def ghost(self) -> Suggestion | None:
        """The selected suggestion; None: there is none."""
        return self.suggestions[self.selected] if self.suggestions else None


class AnswerCache:
    """The latest answers by the text that they go on from; those not used for longest leave first.

    Args:
        max_answers: how many are kept.
    """

    def __init__(self, max_answers: int) -> None:
        self._max_answers = max_answers
        self._drafts: OrderedDict[str, tuple[str, tuple[Draft, ...]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._drafts)

    def put(self, text: str, answer: DraftsAnswer) -> None:
        """Keep the answer to a request for `text`."""
        self._drafts[text] = answer.id, answer.drafts
        self._drafts.move_to_end(text)
        if len(self._drafts) > self._max_answers:
            self._drafts.popitem(last=False)

    def find(self, text: str) -> tuple[Suggestion, ...] | None:
        """The suggestions for `text`: of the answer that knew most of it and has a draft that agrees with the rest.

        Empty if the server was asked for just this text and has none; None if it should be asked.
        """
        known = sorted((start for start in self._drafts if text.startswith(start)), key=len, reverse=True)
        for start in known:
            if found := self._fitting(start, text):
                self._drafts.move_to_end(start)
                return found
        return () if text in self._drafts else None

    def _fitting(self, start: str, text: str) -> tuple[Suggestion, ...]:
        completion_id, drafts = self._drafts[start]
        typed = text[len(start) :]
        return tuple(
            Suggestion(completion_id, draft.index, draft.text[len(typed) :], draft.score, len(typed))
            for draft in drafts
            if len(draft.text) > len(typed) and draft.text.startswith(typed)
        )
