"""How well a model predicts held-out tokens."""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from superdraft.ngram_models.building.corpus import Document
from superdraft.ngram_models.scoring.scorer import KenLMScorer


@dataclass(frozen=True, slots=True)
class HeldOutResult:
    """A model's perplexity on tokens that it was not built from.

    Attributes:
        num_tokens: tokens scored, end-of-text tokens included.
        num_unknown: how many of them the corpus lacked; they are scored like all others, as `<unk>`.
        perplexity: exp of the mean negative natural-log probability of a token.
    """

    num_tokens: int
    num_unknown: int
    perplexity: float


class HeldOutTail:
    """Iterates over all documents but the last ones, which it keeps for measuring.

    Args:
        documents: iterated once.
        num_held_out: how many of the last documents are kept.

    Attributes:
        tail: the documents that were kept, in order.
    """

    def __init__(self, documents: Iterable[Document], num_held_out: int) -> None:
        self._documents = documents
        self._num_held_out = num_held_out
        self.tail: deque[Document] = deque()

    def __iter__(self) -> Iterator[Document]:
        for document in self._documents:
            self.tail.append(document)
            if len(self.tail) > self._num_held_out:
                yield self.tail.popleft()


def measure_perplexity(scorer: KenLMScorer, sequences: Iterable[Sequence[int]]) -> HeldOutResult:
    """Score every token of `sequences` in its full context; each sequence starts a text.

    Raises:
        ValueError: there is no token at all.
    """
    total, num_tokens, num_unknown = 0.0, 0, 0
    for sequence in sequences:
        state = scorer.text_start_state()
        for token_id in sequence:
            total += scorer.score([state], [[token_id]])[0][0]
            state = scorer.advance(state, token_id)
            num_unknown += not scorer.is_known(token_id)
        num_tokens += len(sequence)
    if num_tokens == 0:
        raise ValueError("There is no token to measure the perplexity on.")
    return HeldOutResult(num_tokens, num_unknown, math.exp(-total / num_tokens))
