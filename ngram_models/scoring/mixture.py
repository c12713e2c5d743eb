"""Several n-gram models as one: a weighted mean of their probabilities."""

import math
from collections.abc import Hashable, Sequence
from typing import Any, Protocol

# Below it, a sum of probabilities may have lost its smallest terms.
_LEAST_EXACT = 1e-300


class Scorer(Protocol):
    """What an n-gram model offers here; states are as the model likes, but hashable and immutable."""

    @property
    def order(self) -> int:
        """The longest n-gram looked at, in tokens."""

    def initial_state(self, token_ids: Sequence[int]) -> Any:
        """The state after these tokens."""

    def score(self, states: Sequence[Any], candidates: Sequence[Sequence[int]]) -> list[list[float]]:
        """Natural-log probabilities of every candidate of every state."""

    def advance(self, state: Any, token_id: int) -> Any:
        """The state after one more token."""


MixtureState = tuple[Hashable, ...]


class MixtureScorer:
    """`p(x) = sum of w_i p_i(x)`, the weights being divided by their sum. A state is the tuple of the parts' states.

    Args:
        parts: models and their weights, each above 0; at least one.

    Raises:
        ValueError: there is no part, or a weight is not a positive number.
    """

    def __init__(self, parts: Sequence[tuple[Scorer, float]]) -> None:
        total = math.fsum(weight for _, weight in parts)
        if not parts or any(weight <= 0 for _, weight in parts) or not math.isfinite(total):
            raise ValueError(f"Weights must be positive numbers, at least one; got {[weight for _, weight in parts]}.")
        self._scorers = [scorer for scorer, _ in parts]
        self._weights = [weight / total for _, weight in parts]

    @property
    def order(self) -> int:
        """The longest n-gram of all parts, in tokens."""
        return max(scorer.order for scorer in self._scorers)

    def initial_state(self, token_ids: Sequence[int]) -> MixtureState:
        """The state after `token_ids`."""
        return tuple(scorer.initial_state(token_ids) for scorer in self._scorers)

    def score(self, states: Sequence[MixtureState], candidates: Sequence[Sequence[int]]) -> list[list[float]]:
        """Natural-log probabilities of every candidate of every draft, in one call.

        Args:
            states: one a draft; length k.
            candidates: the token ids to score after each state, length k.

        Returns:
            k lists; entry `[i][j]` is `ln p(candidates[i][j] | states[i])`, `-inf` where no part gives any probability.
        """
        by_part = [
            scorer.score([state[part] for state in states], candidates) for part, scorer in enumerate(self._scorers)
        ]
        mixed: dict[tuple[int, ...], list[float]] = {}
        scores = []
        for rows in zip(*by_part, strict=True):
            # Parts answer equal questions with one list, so the same lists need not be mixed again.
            key = tuple(map(id, rows))
            if key not in mixed:
                mixed[key] = self._mix(rows)
            scores.append(mixed[key])
        return scores

    def _mix(self, rows: Sequence[Sequence[float]]) -> list[float]:
        exp, log = math.exp, math.log
        sums = [0.0] * len(rows[0])
        for weight, row in zip(self._weights, rows, strict=True):
            sums = [total + weight * exp(logprob) for total, logprob in zip(sums, row, strict=True)]
        return [
            log(total) if total > _LEAST_EXACT else self._mix_tiny([row[place] for row in rows])
            for place, total in enumerate(sums)
        ]

    def _mix_tiny(self, logprobs: Sequence[float]) -> float:
        """The mixture of probabilities that floats cannot hold."""
        terms = [math.log(weight) + logprob for weight, logprob in zip(self._weights, logprobs, strict=True)]
        largest = max(terms)
        if largest == -math.inf:
            return -math.inf
        return largest + math.log(math.fsum(math.exp(term - largest) for term in terms))

    def advance(self, state: MixtureState, token_id: int) -> MixtureState:
        """The state after one more token."""
        return tuple(
            scorer.advance(part_state, token_id) for scorer, part_state in zip(self._scorers, state, strict=True)
        )


def mixed(parts: Sequence[tuple[Scorer, float]]) -> Scorer:
    """The mixture of these models; a single model is returned as it is, whatever its weight.

    Raises:
        ValueError: as `MixtureScorer`.
    """
    return parts[0][0] if len(parts) == 1 else MixtureScorer(parts)
