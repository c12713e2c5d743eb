"""A simulated typist: how many keys drafts save.

At each word's end, the longest right beginning of any draft is accepted, for one key and one more for each draft above
it in the list. If none is right, a word is typed with the white space before it.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from superdraft.evaluation.cases.prompts import Prompt
from superdraft.evaluation.measures.metrics import words_right

SEGMENT = re.compile(r"\s*\S+")
"""A word with the white space before it, the unit of typing and accepting."""

Suggest = Callable[[Sequence["TypedText"]], Sequence[Sequence[str]]]
"""Returns the drafts, best first, for each of some texts."""


@dataclass(frozen=True, slots=True)
class TypedText:
    """The text before the cursor when suggestions are requested, `num_words` words after the prompt."""

    prompt: Prompt
    text: str
    num_words: int


@dataclass(frozen=True, slots=True)
class TypingCount:
    """The counts of typing one text.

    Attributes:
        num_characters: characters of the text, which are its keys without drafts.
        num_keys: keys with drafts.
    """

    num_characters: int
    num_keys: int


def accept(drafts: Sequence[str], rest: str) -> tuple[int, int]:
    """The characters that the best of some drafts brings towards the rest of a text, and the keys that it costs.

    (0, 0) if none is accepted.
    """
    rights = [words_right(draft, rest) for draft in drafts]
    most = max(rights, default=0)
    return (len("".join(SEGMENT.findall(rest)[:most])), 1 + rights.index(most)) if most else (0, 0)


class Typist:
    """Types one reference.

    Args:
        prompt: the existing text, and the reference to type.
        max_words: maximum number of words to type; None: the whole reference.
    """

    def __init__(self, prompt: Prompt, max_words: int | None = None) -> None:
        self._prompt = prompt
        self._text = "".join(SEGMENT.findall(prompt.continuation)[:max_words])
        self._position = self._num_keys = 0

    @property
    def is_done(self) -> bool:
        """Whether everything is typed."""
        return self._position == len(self._text)

    @property
    def place(self) -> TypedText:
        """The text that the next suggestions are for; undefined when done."""
        typed = self._text[: self._position]
        return TypedText(self._prompt, self._prompt.text + typed, len(typed.split()))

    @property
    def count(self) -> TypingCount:
        """The counts so far."""
        return TypingCount(len(self._text), self._num_keys)

    def take(self, drafts: Sequence[str]) -> None:
        """Accept one of these drafts, or type a word."""
        rest = self._text[self._position :]
        length, num_keys = accept(drafts, rest)
        if not length:
            segment = SEGMENT.match(rest)
            length = num_keys = len(segment[0]) if segment else len(rest)
        self._num_keys += num_keys
        self._position += length


def type_all(prompts: Sequence[Prompt], suggest: Suggest, max_words: int | None = None) -> list[TypingCount]:
    """Type the references of many prompts together; each round requests drafts for all unfinished ones.

    Args:
        prompts: prompts with the references to type.
        suggest: returns the drafts at each place.
        max_words: as in `Typist`.
    """
    typists = [Typist(prompt, max_words) for prompt in prompts]
    while waiting := [typist for typist in typists if not typist.is_done]:
        for typist, drafts in zip(waiting, suggest([typist.place for typist in waiting]), strict=True):
            typist.take(drafts)
    return [typist.count for typist in typists]
