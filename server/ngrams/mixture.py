"""Mixture of n-gram models: the weighted mean of their probabilities."""

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from superdraft.decoding.ngram import NgramScorer

Scorer = NgramScorer[Any]
MixtureState = tuple[Hashable, ...]


class MixtureScorer:
    """`p(x) = sum of w_i p_i(x)`, with weights divided by their sum. A state is the tuple of the parts' states.

    Args:
        parts: models and their weights. At least one part; all weights above 0.

    Raises:
        ValueError: there are no parts, or a weight is not a positive number.
    """

    def __init__(self, parts: Sequence[tuple[Scorer, float]]) -> None:
        total = math.fsum(weight for _, weight in parts)
        if not parts or any(weight <= 0 for _, weight in parts) or not math.isfinite(total):
            raise ValueError(f"There must be one or more positive weights, got {[weight for _, weight in parts]}.")
        self._scorers = [scorer for scorer, _ in parts]
        self._log_weights = np.log([[weight / total] for _, weight in parts])  # shape [parts, 1]

    @property
    def order(self) -> int:
        """Length of the longest n-gram of all parts, in tokens."""
        return max(scorer.order for scorer in self._scorers)

    def initial_state(self, token_ids: Sequence[int]) -> MixtureState:
        """State after `token_ids`."""
        return tuple(scorer.initial_state(token_ids) for scorer in self._scorers)

    def score(self, states: Sequence[MixtureState], candidates: Sequence[Sequence[int]]) -> list[list[float]]:
        """Natural-log probabilities as in `NgramScorer.score`; `-inf` if all parts give probability 0."""
        by_part = [
            scorer.score([state[part] for state in states], candidates) for part, scorer in enumerate(self._scorers)
        ]
        mixed: dict[tuple[int, ...], list[float]] = {}
        scores = []
        for rows in zip(*by_part, strict=True):
            # Parts return the same list object for equal drafts, so the same lists need to be mixed only once.
            key = tuple(map(id, rows))
            if key not in mixed:
                mixed[key] = np.logaddexp.reduce(self._log_weights + rows, axis=0).tolist()
            scores.append(mixed[key])
        return scores

    def advance(self, state: MixtureState, token_id: int) -> MixtureState:
        """State after one more token."""
        return tuple(
            scorer.advance(part_state, token_id) for scorer, part_state in zip(self._scorers, state, strict=True)
        )
