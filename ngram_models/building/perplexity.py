"""Perplexity of a model on held-out documents."""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from superdraft.ngram_models.building.corpus import Document
from superdraft.ngram_models.scoring.scorer import KenLMScorer


@dataclass(frozen=True, slots=True)
class HeldOutResult:
    """Perplexity of a model on documents that it was not built from.

    Attributes:
        num_tokens: number of tokens scored, including end-of-text tokens.
        num_unknown: how many of these are not in the model's corpus. They are included in the perplexity, as `<unk>`.
        perplexity: exp of the mean negative natural-log probability per token.
    """

    num_tokens: int
    num_unknown: int
    perplexity: float


class HeldOutTail:
    """Iterates over all documents except the last ones, which it keeps for measuring.

    Args:
        documents: iterated over once.
        num_held_out: how many of the last documents to keep.

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
    """Measure the perplexity on `sequences`. Each sequence begins a new text.

    Raises:
        ValueError: the sequences contain no tokens.
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
        raise ValueError("There are no tokens to measure the perplexity on.")
    return HeldOutResult(num_tokens, num_unknown, math.exp(-total / num_tokens))
