"""ChaI-TeA's saved@k and acceptance_rate@k (Goren et al., 2024, arXiv 2412.18377).

A text is written in *turns*. At each turn the first k drafts are shown, and the longest one that matches the rest of
the text is accepted as a whole, with one key. If none matches, a word is typed. A draft must end at the end of a word.
Before a punctuation mark nothing is suggested: the mark is typed.

`saved@k` is (accepted characters - acceptances) / (characters of the text - 1). `acceptance_rate@k` is acceptances /
turns with at least one draft shown. Both are computed per text.

If drafts may be accepted *in part*, one key accepts a draft up to the end of any of its words. In the published code
such beginnings are suggestions of their own, which count towards k, and case does not matter. Here they belong to their
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
    """The counts of writing one text.

    Attributes:
        num_shown: k, the maximum number of drafts shown.
        in_part: drafts could be accepted in part.
        num_characters: characters of the text.
        num_accepted_characters: characters in accepted drafts.
        num_accepted: accepted drafts.
        num_turns: turns with at least one draft shown.
    """

    num_shown: int
    in_part: bool
    num_characters: int
    num_accepted_characters: int
    num_accepted: int
    num_turns: int

    @property
    def saved(self) -> float:
        """saved@k: an accepted draft costs one key, and a text needs at least one key."""
        return (self.num_accepted_characters - self.num_accepted) / max(self.num_characters - 1, 1)

    @property
    def acceptance_rate(self) -> float:
        """acceptance_rate@k; 0 if no draft was shown."""
        return self.num_accepted / self.num_turns if self.num_turns else 0.0


class Writer:
    """Writes one reference in turns.

    Args:
        prompt: the existing text, and the reference to write.
        num_shown: k.
        max_words: maximum number of words to write; None: the whole reference.
        in_part: accept beginnings of drafts, too.
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
        """Whether everything is written."""
        return self._position == len(self._text)

    @property
    def place(self) -> TypedText:
        """The place of the next suggestions; undefined when done."""
        written = self._text[: self._position]
        return TypedText(self._prompt, self._prompt.text + written, len(written.split()))

    @property
    def count(self) -> TurnCount:
        """The counts so far."""
        return TurnCount(
            self._num_shown,
            self._in_part,
            len(self._text),
            self._num_accepted_characters,
            self._num_accepted,
            self._num_turns,
        )

    def take(self, drafts: Sequence[str]) -> None:
        """Take one turn: accept one of these drafts, or type a word."""
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
        """If a punctuation mark follows the cursor, type up to the next white space."""
        if self._text.startswith(_PUNCTUATION, self._position):
            behind = _TO_SPACE.match(self._text, self._position)
            assert behind is not None
            self._position = behind.end()


def accepted_length(draft: str, rest: str, *, in_part: bool) -> int:
    """The number of characters of a draft that are accepted before the rest of a text; 0 if it does not fit."""
    ends = (match.end() for match in _SEGMENT.finditer(draft)) if in_part else ()
    return next((end for end in (len(draft), *sorted(ends, reverse=True)) if fits(draft[:end], rest)), 0)


def fits(draft: str, rest: str) -> bool:
    """Whether the rest of a text begins with a draft that ends at the end of a word."""
    if not rest.startswith(draft):
        return False
    behind = rest[len(draft) :]
    return not behind or behind[0].isspace() or behind[0] in _PUNCTUATION or draft[-1:].isspace()


def count_turns(
    prompts: Sequence[Prompt], suggest: Suggest, num_shown: int, max_words: int | None = None, *, in_part: bool = False
) -> list[TurnCount]:
    """Write the references of many prompts together; each round requests drafts for all unfinished ones.

    Args:
        prompts: prompts with the references to write.
        suggest: returns the drafts at each place.
        num_shown: k.
        max_words: as in `Writer`.
        in_part: as in `Writer`.
    """
    writers = [Writer(prompt, num_shown, max_words, in_part=in_part) for prompt in prompts]
    while waiting := [writer for writer in writers if not writer.is_done]:
        for writer, drafts in zip(waiting, suggest([writer.place for writer in waiting]), strict=True):
            writer.take(drafts)
    return [writer.count for writer in writers]
