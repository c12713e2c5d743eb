"""Counts of which tokens followed which contexts, and the probabilities they give."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Self

Context = tuple[int, ...]

# Both were chosen on real documents, each token predicted from those before it: see docs/ngram-models.md. Neither needs
# to be exact.
ESCAPE_FACTOR: Final = 2.0
UNIGRAM_PRIOR_TOKENS: Final = 500.0

_NOTHING: Final[Mapping[int, int]] = MappingProxyType({})


class CountTable:
    """How often each token followed each context of up to `order - 1` tokens.

    What is added can be removed again: the table is then as if it had never been there.

    Args:
        order: the longest n-gram counted, in tokens; at least 1.
    """

    def __init__(self, order: int) -> None:
        self.order = order
        self._num_tokens = 0
        self._following: dict[Context, dict[int, int]] = {}

    @property
    def num_tokens(self) -> int:
        """How many tokens were added and not removed."""
        return self._num_tokens

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CountTable):
            return NotImplemented
        return self.order == other.order and self._following == other._following

    __hash__ = None  # type: ignore[assignment]  # it changes

    def add(self, context: Context, token_id: int) -> None:
        """Count a token after all endings of `context`, which has at most `order - 1` tokens."""
        following = self._following
        for start in range(len(context) + 1):
            ending = context[start:]
            counts = following.get(ending)
            if counts is None:
                following[ending] = {token_id: 1}
            else:
                counts[token_id] = counts.get(token_id, 0) + 1
        self._num_tokens += 1

    def remove(self, context: Context, token_id: int) -> None:
        """Undo one `add` with the same arguments.

        Raises:
            KeyError: there was none.
        """
        following = self._following
        for start in range(len(context) + 1):
            ending = context[start:]
            counts = following[ending]
            if counts[token_id] > 1:
                counts[token_id] -= 1
            elif len(counts) > 1:
                del counts[token_id]
            else:
                del following[ending]
        self._num_tokens -= 1

    def copy(self) -> Self:
        """Another table with the same counts."""
        twin = type(self)(self.order)
        twin._num_tokens = self._num_tokens
        twin._following = {context: counts.copy() for context, counts in self._following.items()}
        return twin

    def following(self, context: Context) -> Mapping[int, int]:
        """How often each token followed exactly this context; empty if the context never came."""
        return self._following.get(context, _NOTHING)

    def weighted_counts(self, context: Context) -> tuple[list[tuple[float, Mapping[int, int]]], float]:
        """The interpolated estimate of the next token, as weights of the counts of all endings of `context`.

        `p(x | context) = sum of weight * counts[x]`. With N tokens seen after a context, T of them different, the
        context claims N / (N + 2 T) of the probability and leaves the rest to the next shorter one (Witten and Bell,
        1991, with twice the novelty). The empty context claims N / (N + 500) of what it gets, and what it leaves is
        claimed by nobody.

        Returns:
            Pairs of a weight and counts, from the longest context that came to the empty one; and the claimed
            probability, below 1: the sum of p over all tokens.
        """
        pairs: list[tuple[float, Mapping[int, int]]] = []
        left = 1.0
        for start in range(len(context) + 1):
            ending = context[start:]
            counts = self._following.get(ending)
            if counts is None:
                continue
            if ending:
                seen = sum(counts.values())
                weight = left / (seen + ESCAPE_FACTOR * len(counts))
            else:
                seen = self._num_tokens
                weight = left / (seen + UNIGRAM_PRIOR_TOKENS)
            pairs.append((weight, counts))
            left -= weight * seen
        return pairs, 1.0 - left
