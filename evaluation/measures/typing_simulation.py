"""Keystroke savings: the reference is typed by somebody who accepts every right suggestion."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from superdraft.evaluation.cases.prompts import Prompt
from superdraft.evaluation.measures.metrics import words_right

# A word with the white space before it: what is typed, or accepted, at once.
_SEGMENT = re.compile(r"\s*\S+")

Suggest = Callable[[Sequence["TypedText"]], Sequence[Sequence[str]]]
"""Drafts, best first, for each of some texts."""


@dataclass(frozen=True, slots=True)
class TypedText:
    """What stands in front of the cursor when suggestions are asked for: `text`, `num_words` words after `prompt`."""

    prompt: Prompt
    text: str
    num_words: int


@dataclass(frozen=True, slots=True)
class KeyCount:
    """The keys that one reference took."""

    with_drafts: int
    without_drafts: int


class Typist:
    """Types one reference: at each word boundary, accept the longest right beginning of a draft, or type a word.

    Accepting costs one key and one more for each draft above it in the list; a word costs its characters and the white
    space before it.

    Args:
        prompt: what stands there already, and the reference.
        max_words: type no more of the reference than this; None: all of it.
    """

    def __init__(self, prompt: Prompt, max_words: int | None = None) -> None:
        self._prompt = prompt
        self._segments: list[str] = _SEGMENT.findall(prompt.continuation)[:max_words]
        self._num_typed = 0
        self._keys = 0

    @property
    def is_done(self) -> bool:
        """Everything is typed."""
        return self._num_typed == len(self._segments)

    @property
    def keys(self) -> KeyCount:
        """The keys so far, and what all of the text costs without drafts."""
        return KeyCount(self._keys, sum(map(len, self._segments)))

    @property
    def typed_text(self) -> TypedText:
        """What suggestions are wanted for now; not when done."""
        typed = "".join(self._segments[: self._num_typed])
        return TypedText(self._prompt, self._prompt.text + typed, self._num_typed)

    def take(self, drafts: Sequence[str]) -> None:
        """Accept of these drafts what is right, or type a word."""
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
    """Type the references of many prompts at once; every round asks for the drafts of all that are not done.

    Args:
        prompts: whose references are typed.
        first_drafts: the drafts at each prompt's end, which are known already.
        suggest: gives the drafts everywhere else.
        max_words: as in `Typist`.
    """
    typists = [Typist(prompt, max_words) for prompt in prompts]
    for typist, drafts in zip(typists, first_drafts, strict=True):
        typist.take(drafts)
    while waiting := [typist for typist in typists if not typist.is_done]:
        for typist, drafts in zip(waiting, suggest([typist.typed_text for typist in waiting]), strict=True):
            typist.take(drafts)
    return [typist.keys for typist in typists]
