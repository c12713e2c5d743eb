"""Simulated typists: how many keys drafts save, by two rules.

*The whole list*: at each word's end, the longest right beginning of any draft is accepted, for one key and one more for
each draft above it in the list. If none is right, a word is typed with the white space before it.

*The first k* (ChaI-TeA's saved@k and acceptance_rate@k, Goren et al., 2024, arXiv 2412.18377): a text is written in
turns. At each turn the first k drafts are shown, and the longest one that matches the rest of the text is accepted as a
whole, with one key. If none matches, a word is typed. A draft must end at the end of a word. Before a punctuation mark
nothing is suggested: the mark is typed. In the published code case does not matter; here it does.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from superdraft.evaluation.cases.prompts import Prompt
from superdraft.evaluation.measures.metrics import words_right

SEGMENT = re.compile(r"\s*\S+")
"""A word with the white space before it, the unit of typing and accepting."""
_PUNCTUATION = tuple(".,!?")
_TO_SPACE = re.compile(r"\S*")

Suggest = Callable[[Sequence["TypedText"]], Sequence[Sequence[str]]]
"""Returns the drafts, best first, for each of some texts."""


@dataclass(frozen=True, slots=True)
class TypedText:
    """The text before the cursor when suggestions are requested, `num_words` words after the prompt."""

    prompt: Prompt
    text: str
    num_words: int


@dataclass(frozen=True, slots=True)
class Rule:
    """How drafts are shown and accepted.

    Attributes:
        num_shown: k; None: the whole list.
    """

    num_shown: int | None = None

    @property
    def name(self) -> str:
        """Name of the rule in records and figures."""
        return "list" if self.num_shown is None else str(self.num_shown)

    def shown(self, drafts: Sequence[str]) -> list[str]:
        """The drafts that count as shown."""
        return [draft for draft in drafts[: self.num_shown] if draft.strip()]

    def accept(self, drafts: Sequence[str], rest: str) -> tuple[int, int]:
        """The characters that the best of these drafts brings towards the rest of a text, and the keys that it costs.

        (0, 0) if none is accepted.
        """
        if self.num_shown is not None:
            length = max((len(one) for one in self.shown(drafts) if fits(one, rest)), default=0)
            return length, int(length > 0)
        rights = [words_right(draft, rest) for draft in drafts]
        most = max(rights, default=0)
        return (len("".join(SEGMENT.findall(rest)[:most])), 1 + rights.index(most)) if most else (0, 0)


LIST = Rule()


@dataclass(frozen=True, slots=True)
class TypingCount:
    """The counts of typing one text.

    Attributes:
        num_characters: characters of the text, which are its keys without drafts.
        num_keys: keys with drafts.
        num_accepted_characters: characters in accepted drafts.
        num_accepted: accepted drafts.
        num_turns: places with at least one draft shown.
    """

    num_characters: int
    num_keys: int
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


class Typist:
    """Types one reference.

    Args:
        prompt: the existing text, and the reference to type.
        rule: how drafts are shown and accepted.
        max_words: maximum number of words to type; None: the whole reference.
    """

    def __init__(self, prompt: Prompt, rule: Rule = LIST, max_words: int | None = None) -> None:
        self._prompt = prompt
        self._rule = rule
        self._text = "".join(SEGMENT.findall(prompt.continuation)[:max_words])
        self._position = self._num_keys = self._num_accepted_characters = self._num_accepted = self._num_turns = 0
        self._type_punctuation()

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
        counts = (self._num_keys, self._num_accepted_characters, self._num_accepted, self._num_turns)
        return TypingCount(len(self._text), *counts)

    def take(self, drafts: Sequence[str]) -> None:
        """Accept one of these drafts, or type a word."""
        rest = self._text[self._position :]
        length, num_keys = self._rule.accept(drafts, rest)
        self._num_turns += bool(self._rule.shown(drafts))
        if length:
            self._num_accepted += 1
            self._num_accepted_characters += length
            self._num_keys += num_keys
            self._position += length
        else:
            segment = SEGMENT.match(rest)
            self._type(len(segment[0]) if segment else len(rest))
        self._type_punctuation()

    def _type(self, length: int) -> None:
        self._num_keys += length
        self._position += length

    def _type_punctuation(self) -> None:
        """With the first k drafts: if a punctuation mark follows the cursor, type up to the next white space."""
        if self._rule.num_shown is not None and self._text.startswith(_PUNCTUATION, self._position):
            behind = _TO_SPACE.match(self._text, self._position)
            assert behind is not None
            self._type(behind.end() - self._position)


def fits(draft: str, rest: str) -> bool:
    """Whether the rest of a text begins with a draft that ends at the end of a word."""
    if not rest.startswith(draft):
        return False
    behind = rest[len(draft) :]
    return not behind or behind[0].isspace() or behind[0] in _PUNCTUATION or draft[-1:].isspace()


def type_all(
    prompts: Sequence[Prompt], suggest: Suggest, rule: Rule = LIST, max_words: int | None = None
) -> list[TypingCount]:
    """Type the references of many prompts together; each round requests drafts for all unfinished ones.

    Args:
        prompts: prompts with the references to type.
        suggest: returns the drafts at each place.
        rule: as in `Typist`.
        max_words: as in `Typist`.
    """
    typists = [Typist(prompt, rule, max_words) for prompt in prompts]
    while waiting := [typist for typist in typists if not typist.is_done]:
        for typist, drafts in zip(waiting, suggest([typist.place for typist in waiting]), strict=True):
            typist.take(drafts)
    return [typist.count for typist in typists]
