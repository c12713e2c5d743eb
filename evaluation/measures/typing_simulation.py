"""Keystroke savings of a simulated typist who accepts every right suggestion."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from superdraft.evaluation.cases.prompts import Prompt
from superdraft.evaluation.measures.metrics import words_right

# A word with the white space before it, the unit of typing and accepting.
_SEGMENT = re.compile(r"\s*\S+")

Suggest = Callable[[Sequence["TypedText"]], Sequence[Sequence[str]]]
"""Returns the drafts, best first, for each of some texts."""


@dataclass(frozen=True, slots=True)
class TypedText:
    """The text before the cursor when suggestions are requested, `num_words` words after the prompt."""

    prompt: Prompt
    text: str
    num_words: int


@dataclass(frozen=True, slots=True)
class KeyCount:
    """The number of keys to type one reference."""

    with_drafts: int
    without_drafts: int


class Typist:
    """Types one reference: at each word boundary, accepts the longest right beginning of a draft, or types a word.

    Accepting costs one key, and one more for each draft above in the list. A word costs its characters and the white
    space before it.

    Args:
        prompt: the existing text, and the reference to type.
        max_words: maximum number of words to type; None: the whole reference.
    """

    def __init__(self, prompt: Prompt, max_words: int | None = None) -> None:
        self._prompt = prompt
        self._segments: list[str] = _SEGMENT.findall(prompt.continuation)[:max_words]
        self._num_typed = 0
        self._keys = 0

    @property
    def is_done(self) -> bool:
        """Whether everything is typed."""
        return self._num_typed == len(self._segments)

    @property
    def keys(self) -> KeyCount:
        """The keys so far, and the keys of the whole text without drafts."""
        return KeyCount(self._keys, sum(map(len, self._segments)))

    @property
    def typed_text(self) -> TypedText:
        """The text that the next suggestions are for; undefined when done."""
        typed = "".join(self._segments[: self._num_typed])
        return TypedText(self._prompt, self._prompt.text + typed, self._num_typed)

    def take(self, drafts: Sequence[str]) -> None:
        """Accept the right beginning of one of these drafts, or type a word."""
        rest = self._segments[self._num_typed :]
        rights = [words_right(draft, "".join(rest)) for draft in drafts]
        most = max(rights, default=0)
        if most:
            self._keys += 1 + rights.index(most)
            self._num_typed += most
        else:
            self._keys += len(rest[0])
            self._num_typed += 1


def type_all(
    prompts: Sequence[Prompt], first_drafts: Sequence[Sequence[str]], suggest: Suggest, max_words: int | None
) -> list[KeyCount]:
    """Type the references of many prompts together; each round requests drafts for all unfinished ones.

    Args:
        prompts: prompts with the references to type.
        first_drafts: the drafts at each prompt's end.
        suggest: returns the drafts at all other places.
        max_words: as in `Typist`.
    """
    typists = [Typist(prompt, max_words) for prompt in prompts]
    for typist, drafts in zip(typists, first_drafts, strict=True):
        typist.take(drafts)
    while waiting := [typist for typist in typists if not typist.is_done]:
        for typist, drafts in zip(waiting, suggest([typist.typed_text for typist in waiting]), strict=True):
            typist.take(drafts)
    return [typist.keys for typist in typists]
