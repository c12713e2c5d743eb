"""N-grams of the prompt itself: names, identifiers and phrases that its document has used already."""

import math
import weakref
from collections import OrderedDict
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from itertools import compress, count
from operator import ne
from typing import Final, NamedTuple, Protocol

from superdraft.ngram_models.scoring.counts import Context, CountTable
from superdraft.ngram_models.scoring.mixture import MixtureScorer, Scorer, UniformScorer

DEFAULT_ORDER: Final = 5
DEFAULT_MAX_TOKENS: Final = 65_536
# Every prompt is compared with every kept document.
_MAX_DOCUMENTS: Final = 256
# Copying a token's counts costs about this part of counting it.
_COPY_COST: Final = 0.05


class Lease:
    """A document's counts, which stay as they are while anybody holds this.

    Attributes:
        counts: of the n-grams of the document.
        context: its last tokens.
    """

    __slots__ = ("__weakref__", "context", "counts")

    def __init__(self, counts: CountTable, context: Context) -> None:
        self.counts = counts
        self.context = context


@dataclass(frozen=True, slots=True)
class TextContexts:
    """Which tokens n-grams look back at: the last ones of the same text.

    Attributes:
        order: the longest n-gram, in tokens.
        end_of_text_ids: the ids that end a text. N-grams do not cross them.
    """

    order: int
    end_of_text_ids: frozenset[int]

    def at(self, token_ids: Sequence[int], position: int) -> Context:
        """The tokens before `position` that belong to the same text, `order - 1` at most."""
        before = tuple(token_ids[max(0, position - self.order + 1) : position])
        if self.end_of_text_ids.isdisjoint(before):
            return before
        last_end = max(place for place, token_id in enumerate(before) if token_id in self.end_of_text_ids)
        return before[last_end + 1 :]

    def advance(self, context: Context, token_id: int) -> Context:
        """The context after one more token."""
        if token_id in self.end_of_text_ids:
            return ()
        return (*context, token_id)[-(self.order - 1) :] if self.order > 1 else ()


class CountSource(Protocol):
    """Gives each prompt the counts that belong to it: the prompt's own, or those of its user."""

    @property
    def contexts(self) -> TextContexts:
        """How far its n-grams look back."""

    def lease(self, token_ids: Sequence[int]) -> Lease:
        """The counts for this prompt, and the context after it."""


class DocumentCache:
    """Documents that were prompts, with their n-gram counts, kept for the next prompt.

    While somebody types, each prompt differs from the one before in its last tokens. A prompt takes the document that
    needs the least work to become it: tokens behind the common beginning are taken out of the counts, the prompt's are
    put in. A document that is leased is not changed: equal prompts share it, others get a copy. Documents that were not
    used for longest are forgotten first, which does nothing to those who hold a lease.

    For one thread.

    Args:
        end_of_text_ids: the ids that end a text. N-grams do not cross them, and they are not counted.
        order: the longest n-gram, in tokens.
        max_tokens: of all kept documents together. A token takes about 1 kB.
    """

    def __init__(
        self, end_of_text_ids: Collection[int], *, order: int = DEFAULT_ORDER, max_tokens: int = DEFAULT_MAX_TOKENS
    ) -> None:
        self.contexts = TextContexts(order, frozenset(end_of_text_ids))
        self.max_tokens = max_tokens
        self._by_use: OrderedDict[_Document, None] = OrderedDict()  # least recently used first
        self._num_tokens = 0

    @property
    def num_tokens(self) -> int:
        """Tokens of all kept documents."""
        return self._num_tokens

    def lease(self, token_ids: Sequence[int]) -> Lease:
        """The counts of this prompt."""
        prompt = list(token_ids)
        document = self._cheapest(prompt)
        if document is None:
            document = _Document(CountTable(self.contexts.order), self.contexts)
        elif document.is_leased and document.token_ids != prompt:
            document = document.copy()
        if document in self._by_use:
            self._num_tokens -= len(document.token_ids)
        document.edit(prompt)
        self._num_tokens += len(prompt)
        self._by_use[document] = None
        self._by_use.move_to_end(document)
        lease = document.lease()
        while self._num_tokens > self.max_tokens or len(self._by_use) > _MAX_DOCUMENTS:
            oldest, _ = self._by_use.popitem(last=False)
            self._num_tokens -= len(oldest.token_ids)
        return lease

    def _cheapest(self, prompt: list[int]) -> "_Document | None":
        """The document that takes the least work; None: a new one does."""
        best, least_work = None, float(len(prompt))
        for document in reversed(self._by_use):
            work = document.work_to_become(prompt)
            if work < least_work:
                best, least_work = document, work
            if work == 0:
                break
        return best


class _Document:
    """Token ids and their counts, which follow each other."""

    def __init__(self, counts: CountTable, contexts: TextContexts) -> None:
        self.token_ids: list[int] = []
        self._counts = counts
        self._contexts = contexts
        self._lease: weakref.ref[Lease] | None = None

    @property
    def is_leased(self) -> bool:
        return self._lease is not None and self._lease() is not None

    def lease(self) -> Lease:
        """The lease that others hold already, or a new one."""
        lease = self._lease() if self._lease is not None else None
        if lease is None:
            lease = Lease(self._counts, self._contexts.at(self.token_ids, len(self.token_ids)))
            self._lease = weakref.ref(lease)
        return lease

    def copy(self) -> "_Document":
        twin = _Document(self._counts.copy(), self._contexts)
        twin.token_ids = self.token_ids.copy()
        return twin

    def work_to_become(self, prompt: list[int]) -> float:
        """In tokens to count; 0: it is this prompt already."""
        num_own, num_common = len(self.token_ids), _num_common(self.token_ids, prompt)
        work = float(num_own + len(prompt) - 2 * num_common)
        if work and self.is_leased:
            work += _COPY_COST * num_own
        return work

    def edit(self, prompt: list[int]) -> None:
        """Become `prompt`; costs as much as differs."""
        ends, context_at = self._contexts.end_of_text_ids, self._contexts.at
        num_common = _num_common(self.token_ids, prompt)
        for position in range(num_common, len(self.token_ids)):
            if self.token_ids[position] not in ends:
                self._counts.remove(context_at(self.token_ids, position), self.token_ids[position])
        self.token_ids[num_common:] = prompt[num_common:]
        for position in range(num_common, len(prompt)):
            if prompt[position] not in ends:
                self._counts.add(context_at(prompt, position), prompt[position])


def _num_common(first: list[int], second: list[int]) -> int:
    """Length of the common beginning."""
    return next(compress(count(), map(ne, first, second)), min(len(first), len(second)))


class InContextState(NamedTuple):
    """The lease keeps the counts as they are; the context is that of prompt and draft."""

    lease: Lease
    context: Context
    background: Hashable


class InContextScorer:
    """The n-grams of the prompt, or of other counted text, over another n-gram model, the *background*.

    `p(x) = w p_document(x) + (1 - w c) p_background(x)`, where the document's probabilities sum to c, its confidence
    (see `CountTable.weighted_counts`). After words that the document never had, c is small and the background speaks
    almost alone; after a phrase that came before, c is near 1. Tokens that the document lacks have no probability in
    it: they live by the background. Drafts are not counted.

    Args:
        background: another n-gram model.
        weight: w, at most 1.
        source: of the counts; a `DocumentCache` is shared by all scorers whose requests may go on with each other's
            prompts.

    Raises:
        ValueError: the weight is not above 0 and at most 1.
    """

    def __init__(self, background: Scorer, weight: float, source: CountSource) -> None:
        if not 0 < weight <= 1:
            raise ValueError(f"The weight of counted n-grams must be above 0 and at most 1, got {weight}.")
        self._background = background
        self._weight = weight
        self._source = source

    @property
    def order(self) -> int:
        """The longest n-gram of both, in tokens."""
        return max(self._source.contexts.order, self._background.order)

    def initial_state(self, token_ids: Sequence[int]) -> InContextState:
        """The state after the whole prompt `token_ids`, all of which counts."""
        lease = self._source.lease(token_ids)
        return InContextState(lease, lease.context, self._background.initial_state(token_ids))

    def score(self, states: Sequence[InContextState], candidates: Sequence[Sequence[int]]) -> list[list[float]]:
        """Natural-log probabilities of every candidate of every draft, in one call.

        Args:
            states: one a draft; length k.
            candidates: the token ids to score after each state, length k. Drafts with equal states that pass the same
                list object are looked up once and share one row of the answer.

        Returns:
            k lists; entry `[i][j]` is `ln p(candidates[i][j] | states[i])`.
        """
        background_rows = self._background.score([state.background for state in states], candidates)
        wanted = {id(token_ids): frozenset(token_ids) for token_ids in candidates}
        rows: dict[tuple[InContextState, int], list[float]] = {}
        scores = []
        for state, token_ids, background_row in zip(states, candidates, background_rows, strict=True):
            key = (state, id(token_ids))
            if key not in rows:
                rows[key] = self._interpolated(state, token_ids, wanted[id(token_ids)], background_row)
            scores.append(rows[key])
        return scores

    def _interpolated(
        self, state: InContextState, token_ids: Sequence[int], wanted: frozenset[int], background_row: Sequence[float]
    ) -> list[float]:
        weighted_counts, confidence = state.lease.counts.weighted_counts(state.context)
        found: dict[int, float] = {}
        for weight, counts in weighted_counts:
            # A set operation: a document has hundreds of tokens, most of which are no candidates.
            for token_id in counts.keys() & wanted:
                found[token_id] = found.get(token_id, 0.0) + weight * counts[token_id]
        own, share, exp, log = self._weight, 1.0 - self._weight * confidence, math.exp, math.log
        log_share = log(share)
        return [
            log(own * found[token_id] + share * exp(logprob)) if token_id in found else log_share + logprob
            for token_id, logprob in zip(token_ids, background_row, strict=True)
        ]

    def advance(self, state: InContextState, token_id: int) -> InContextState:
        """The state after one more token."""
        return InContextState(
            state.lease,
            self._source.contexts.advance(state.context, token_id),
            self._background.advance(state.background, token_id),
        )


def combined(
    parts: Sequence[tuple[Scorer, float]], own_weight: float, source: CountSource | None, vocabulary_size: int
) -> Scorer:
    """The prompt's own n-grams over the mixture of some models.

    Args:
        parts: models and their weights; none: all tokens alike.
        own_weight: of the prompt's own n-grams beside those; 0: they have no say.
        source: of the prompt's own n-grams; None: they have no say.
        vocabulary_size: number of ids of the tokenizer.
    """
    background: Scorer
    if not parts:
        background = UniformScorer(vocabulary_size)
    else:
        background = parts[0][0] if len(parts) == 1 else MixtureScorer(parts)
    if not own_weight or source is None:
        return background
    share = own_weight / (own_weight + math.fsum(weight for _, weight in parts))
    return InContextScorer(background, share, source)
