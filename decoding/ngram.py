"""What decoding asks of an n-gram model. Implementations live elsewhere; this is the seam."""

from collections.abc import Hashable, Sequence
from typing import Protocol, TypeVar

StateT = TypeVar("StateT", bound=Hashable)


class NgramScorer(Protocol[StateT]):
    """Next-token log-probabilities of an n-gram model over token ids.

    A *state* is the context an n-gram model needs to score the next token. States are immutable and hashable: each
    draft holds its own, and a child draft's state is made from its parent's by `advance`. Two equal states give equal
    scores, so an implementation may look a repeated (state, candidates) up once.
    """

    @property
    def order(self) -> int:
        """The longest n-gram looked at, in tokens."""

    def initial_state(self, token_ids: Sequence[int]) -> StateT:
        """The state after the whole prompt `token_ids`, less what token healing took back.

        Asked once a request, on the engine's thread, and again if healing is given up.
        """

    def score(self, states: Sequence[StateT], candidates: Sequence[Sequence[int]]) -> list[list[float]]:
        """Natural-log probabilities of every candidate of every draft, in one call.

        Args:
            states: one a draft; length k.
            candidates: the token ids to score after each state; `candidates[i]` belongs to `states[i]`. Drafts that
                share one candidate list pass the same object.

        Returns:
            k lists; entry `[i][j]` is `ln p(candidates[i][j] | states[i])`, `-inf` where the model gives it no support.
        """

    def advance(self, state: StateT, token_id: int) -> StateT:
        """The state after one more token."""
