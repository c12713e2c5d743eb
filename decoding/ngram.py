"""Interface of n-gram models. The implementations are outside `decoding`."""

from collections.abc import Hashable, Sequence
from typing import Protocol, TypeVar

StateT = TypeVar("StateT", bound=Hashable)


class NgramScorer(Protocol[StateT]):
    """Next-token log-probabilities of an n-gram model over token ids.

    A *state* is the context that an n-gram model needs to score the next token. States are immutable and hashable. Each
    draft has its own, and `advance` derives a child draft's state from its parent's. Equal states give equal scores, so
    an implementation may look up a repeated (state, candidates) pair only once.

    If a method raises, or `score` does not return one number per candidate, the request fails and others continue.
    """

    @property
    def order(self) -> int:
        """The length of the longest n-grams, in tokens."""

    def initial_state(self, token_ids: Sequence[int]) -> StateT:
        """The state after these tokens of a prompt.

        Called on the engine's thread: once per request and, with token healing, once more for each stem.
        """

    def score(self, states: Sequence[StateT], candidates: Sequence[Sequence[int]]) -> list[list[float]]:
        """Natural-log probabilities of every candidate of every draft, in one call.

        Args:
            states: one per draft, length k.
            candidates: the token ids to score after each state; `candidates[i]` belongs to `states[i]`. Drafts that
                share a candidate list pass the same object.

        Returns:
            k lists; entry `[i][j]` is `ln p(candidates[i][j] | states[i])`, `-inf` if the model does not support it.
        """

    def advance(self, state: StateT, token_id: int) -> StateT:
        """The state after one more token."""
