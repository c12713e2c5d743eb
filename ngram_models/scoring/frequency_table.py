"""Scorer for raw n-gram frequencies with fixed weights, as in the paper on Superposed Decoding (Shen et al., 2024).

Unlike a back-off model, it gives most tokens no support at all, so that Superposed Decoding takes its penalty path.
The counts are kept in Python dictionaries, which is enough for comparisons on small corpora.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from superdraft.ngram_models.vocabulary import split_at_end_of_text

# Published weights of the 2-, 3-, 4-, 5- and 6-grams. They sum to 0.5, which lowers all scores equally.
PUBLISHED_WEIGHTS = (0.01, 0.04, 0.15, 0.18, 0.12)

Context = tuple[int, ...]


class FrequencyTableScorer:
    """`p(x | context) = sum over n of weight_n * count(last n-1 tokens, x) / count(last n-1 tokens, any token)`.

    A state is the tuple of the last `order - 1` tokens of the current text; after an end-of-text token it is empty. A
    token that follows none of the contexts scores `-inf`.

    Args:
        sequences: token ids. N-grams do not cross the end of a sequence or an end-of-text token; the end-of-text token
            itself is counted as a following token.
        weights: weights of the 2-grams, 3-grams and so on; the model's order is their number plus one.
        end_of_text_ids: ids that end a text. All of them count as one token.
    """

    def __init__(
        self,
        sequences: Iterable[Sequence[int]],
        *,
        weights: Sequence[float] = PUBLISHED_WEIGHTS,
        end_of_text_ids: Collection[int] = (),
    ) -> None:
        self._weights = tuple(weights)
        self._end_of_text_ids = frozenset(end_of_text_ids)
        self._end = min(self._end_of_text_ids, default=None)
        self._following: dict[Context, Counter[int]] = {}
        for sequence in sequences:
            for text, ended in split_at_end_of_text(sequence, self._end_of_text_ids):
                self._count([*text, self._end] if ended and self._end is not None else text)
        self._totals = {context: counts.total() for context, counts in self._following.items()}

    def _count(self, token_ids: list[int]) -> None:
        for position, token_id in enumerate(token_ids):
            for length in range(1, min(position, self.order - 1) + 1):
                context = tuple(token_ids[position - length : position])
                self._following.setdefault(context, Counter())[token_id] += 1

    @property
    def order(self) -> int:
        """Length of the longest n-gram, in tokens."""
        return len(self._weights) + 1

    def initial_state(self, token_ids: Sequence[int]) -> Context:
        """State after `token_ids`; only the last `order - 1` matter."""
        state: Context = ()
        for token_id in token_ids[-(self.order - 1) :]:
            state = self.advance(state, token_id)
        return state

    def score(self, states: Sequence[Context], candidates: Sequence[Sequence[int]]) -> list[list[float]]:
        """Natural-log probabilities of all candidates of all drafts; shapes as in `KenLMScorer.score`."""
        return [
            [self._logprob(state, token_id) for token_id in token_ids]
            for state, token_ids in zip(states, candidates, strict=True)
        ]

    def _logprob(self, state: Context, token_id: int) -> float:
        if self._end is not None and token_id in self._end_of_text_ids:
            token_id = self._end
        probability = 0.0
        for length in range(1, len(state) + 1):
            context = state[-length:]
            if context in self._following:
                share = self._following[context][token_id] / self._totals[context]
                probability += self._weights[length - 1] * share
        return math.log(probability) if probability > 0 else -math.inf

    def advance(self, state: Context, token_id: int) -> Context:
        """State after one more token."""
        return () if token_id in self._end_of_text_ids else (*state, token_id)[-(self.order - 1) :]
