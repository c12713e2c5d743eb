"""ChaI-TeA's saved@k and acceptance_rate@k (Goren et al., 2024, arXiv 2412.18377).

A text is written in *turns*. At each, the first k drafts are shown, and the longest one that is a beginning of what is
still to be written is accepted as a whole, with one key; if none is, a word is typed. A draft must end where a word
ends. Before a punctuation mark nothing is suggested: it is typed.

`saved@k` is (accepted characters - acceptances) / (characters of the text - 1), and `acceptance_rate@k` is acceptances
/ turns at which something was shown; both per text.

Where drafts may be accepted *in part*, one key takes a draft up to the end of any of its words. In the published code
such beginnings are suggestions of their own, which count towards k, and case does not matter; here they belong to their
draft, and case matters.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from superdraft.evaluation.cases.prompts import Prompt
from superdraft.evaluation.measures.typing_simulation import Suggest, TypedText

_PUNCTUATION = tuple(".,!?")
_SEGMENT = re.compile(r"\s*\S+")
_TO_SPACE = re.compile(r"\S*")


@dataclass(frozen=True, slots=True)
class TurnCount:
    """How one text was written.

    Attributes:
        num_shown: k, the drafts that are shown at most.
        in_part: drafts were accepted in part.
        num_characters: of the text.
        num_accepted_characters: of these, in accepted drafts.
        num_accepted: accepted drafts.
        num_turns: turns at which at least one draft was shown.
    """

    num_shown: int
    in_part: bool
    num_characters: int
    num_accepted_characters: int
    num_accepted: int
    num_turns: int

    @property
    def saved(self) -> float:
        """saved@k: an accepted draft costs one key, and at least one key is needed."""
        return (self.num_accepted_characters - self.num_accepted) / max(self.num_characters - 1, 1)

    @property
    def acceptance_rate(self) -> float:
        """acceptance_rate@k; 0 if nothing was ever shown."""
        return self.num_accepted / self.num_turns if self.num_turns else 0.0


class Writer:
    """Writes one reference in turns.

    Args:
        prompt: what stands there already, and the reference.
        num_shown: k.
        max_words: write no more of the reference than this; None: all of it.
        in_part: accept the beginnings of drafts, too.
    """

    def __init__(self, prompt: Prompt, num_shown: int, max_words: int | None = None, *, in_part: bool = False) -> None:
        self._prompt = prompt
        self._text = "".join(_SEGMENT.findall(prompt.continuation)[:max_words])
        self._num_shown = num_shown
        self._in_part = in_part
        self._position = self._num_accepted_characters = self._num_accepted = self._num_turns = 0
        self._skip_punctuation()

    @property
    def is_done(self) -> bool:
        """Everything is written."""
        return self._position == len(self._text)

    @property
    def place(self) -> TypedText:
        """Where suggestions are wanted now; not when done."""
        written = self._text[: self._position]
        return TypedText(self._prompt, self._prompt.text + written, len(written.split()))

    @property
    def count(self) -> TurnCount:
        """How it went so far."""
        return TurnCount(
            self._num_shown,
            self._in_part,
            len(self._text),
            self._num_accepted_characters,
            self._num_accepted,
            self._num_turns,
        )

    def take(self, drafts: Sequence[str]) -> None:
        """One turn: accept one of these drafts, or type a word."""
        shown = [draft for draft in drafts[: self._num_shown] if draft.strip()]
        self._num_turns += bool(shown)
        rest = self._text[self._position :]
        length = max((accepted_length(draft, rest, in_part=self._in_part) for draft in shown), default=0)
        if length:
            self._num_accepted += 1
            self._num_accepted_characters += length
        else:
            segment = _SEGMENT.match(rest)
            length = len(segment[0]) if segment else len(rest)
        self._position += length
        self._skip_punctuation()

    def _skip_punctuation(self) -> None:
        """Type a punctuation mark right behind the cursor, up to the next white space."""
        if self._text.startswith(_PUNCTUATION, self._position):
            behind = _TO_SPACE.match(self._text, self._position)
            assert behind is not None
            self._position = behind.end()


def accepted_length(draft: str, rest: str, *, in_part: bool) -> int:
    """How many characters of a draft are accepted before the rest of a text; 0: it does not fit."""
    ends = (match.end() for match in _SEGMENT.finditer(draft)) if in_part else ()
    return next((end for end in (len(draft), *sorted(ends, reverse=True)) if fits(draft[:end], rest)), 0)


def fits(draft: str, rest: str) -> bool:
    """Whether a draft is a beginning of the rest of a text and ends where a word of it ends."""
    if not rest.startswith(draft):
        return False
    behind = rest[len(draft) :]
    return not behind or behind[0].isspace() or behind[0] in _PUNCTUATION or draft[-1:].isspace()


def count_turns(
    prompts: Sequence[Prompt], suggest: Suggest, num_shown: int, max_words: int | None = None, *, in_part: bool = False
) -> list[TurnCount]:
    """Write the references of many prompts at once; every round asks for the drafts of all that are not done.

    Args:
        prompts: whose references are written.
        suggest: gives the drafts at each place.
        num_shown: k.
        max_words: as in `Writer`.
        in_part: likewise.
    """
    writers = [Writer(prompt, num_shown, max_words, in_part=in_part) for prompt in prompts]
    while waiting := [writer for writer in writers if not writer.is_done]:
        for writer, drafts in zip(waiting, suggest([writer.place for writer in waiting]), strict=True):
            writer.take(drafts)
    return [writer.count for writer in writers]
