"""What decoding asks of an n-gram model. Implementations live elsewhere; this is the seam."""

from collections.abc import Hashable, Sequence
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

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


class NgramArrays(Protocol):
    """A back-off n-gram model as hash tables; `NgramTables` looks its n-grams up on a device.

    Every n-gram is a *node*: the single words, whose nodes are their numbers, then those of two words, and so on, with
    gaps. The n-gram of the node c and the word w behind it has the key `c * num_words + w`. Let o be its order less 2
    and h the product of the key and `hash_factor`, modulo 2**64, as a signed number: the n-gram is the one of the
    `window` nodes from `starts[o] + h mod sizes[o]` that holds this key, if any. No key is between minus twice
    `num_words` and -1; the last node is empty.
    """

    @property
    def order(self) -> int:
        """The longest n-gram, in tokens; at least 2."""

    @property
    def keys(self) -> NDArray[np.int64]:
        """What each of the N nodes holds, shape [N]."""

    @property
    def logprobs(self) -> NDArray[np.float32]:
        """The natural log of each n-gram's probability, shape [N]."""

    @property
    def backoffs(self) -> NDArray[np.float32]:
        """The natural log of each n-gram's back-off weight, shape [N]; 0 where it has none."""

    @property
    def words(self) -> NDArray[np.int64]:
        """The word of each token id, shape [V]; 0 is the unknown word."""

    @property
    def starts(self) -> NDArray[np.int64]:
        """The first node of each order from 2 up, shape [order - 1]."""

    @property
    def sizes(self) -> NDArray[np.int64]:
        """What hashes are reduced by in each order from 2 up, shape [order - 1]."""

    @property
    def num_words(self) -> int:
        """Number of words."""

    @property
    def window(self) -> int:
        """How many nodes a look-up compares."""

    @property
    def hash_factor(self) -> int:
        """Odd, signed, of 64 bits."""

    @property
    def begin_word(self) -> int:
        """The word that stands before a text."""

    @property
    def end_word(self) -> int:
        """The word of every end-of-text token."""


class TabularScorer(NgramScorer[StateT], Protocol[StateT]):
    """An n-gram model that can be held as hash tables on the language model's device."""

    def tables(self) -> NgramArrays:
        """The model as arrays."""

    def context_words(self, token_ids: Sequence[int]) -> list[int]:
        """The numbers of the words that the state after `token_ids` depends on: `order - 1` at most, oldest first."""
