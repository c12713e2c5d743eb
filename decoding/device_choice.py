"""A decode step's superposition and choice of next tokens as tensor operations, for all rows at once.

The same arithmetic as `superposition`, `scoring`, `draft_set` and `sampling`, in float64 like theirs. What needs a
draft's text is not done here: the host reads the children in order, drops those that repeat a text or meet a stop
string, and has the last word (`run_ahead`). The device goes on with what nearly always comes out of that: the best
children that are no end of text.

Nothing here reads a value back or has a shape that depends on one, so all of it can be recorded as a CUDA graph.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from superdraft.decoding.device_rows import Column, DraftRows, RowKind
from superdraft.decoding.ngram_tables import NgramTables

NUCLEUS_SIZE = 1024
"""Tokens among which a nucleus is looked for; a larger one is left to the host."""
_SPARE_CHILDREN = 4


@dataclass(frozen=True, slots=True)
class StepShape:
    """What a step's graph is made for; steps that differ in anything else share it.

    Attributes:
        num_rows: B; rows beyond those that run are carried along, and their results are not looked at.
        read_length: positions of each slot that attention looks at.
        num_drafts: K, places for drafts in each row.
        samples_all: whether some row is sampled from all tokens.
        samples_nucleus: whether some row is sampled from a nucleus.
        with_ngram: whether some row has the n-gram model.
    """

    num_rows: int
    read_length: int
    num_drafts: int
    samples_all: bool
    samples_nucleus: bool
    with_ngram: bool

    @property
    def num_candidates(self) -> int:
        """M, the most candidates that a row's drafts may go on with."""
        return most_candidates(self.num_drafts)

    @property
    def num_children(self) -> int:
        """L, children that the host gets to see: 2k would do if none repeated another's text."""
        return min(2 * self.num_drafts + _SPARE_CHILDREN, self.num_drafts * self.num_candidates)


def most_candidates(num_drafts: int) -> int:
    """M for a number of places: k squared is the default, and few more cost nothing."""
    return max(16, num_drafts**2)


def superposed(rows: DraftRows, embedding: torch.nn.Module, shape: StepShape) -> Tensor:
    """x~ = sum_i gamma_i * E[last token of draft i] (eq. 3 and 4) of every row, shape [B, D]."""
    tokens = rows.tokens(shape.num_rows, shape.num_drafts).long()
    weights = torch.softmax(rows.scores(shape.num_rows, shape.num_drafts), dim=-1)
    # A row whose drafts have all ended has weights that are no numbers. Its keys must be numbers nonetheless: they stay
    # in the slot, and a mask does not keep a NaN out.
    weights = weights.nan_to_num(0.0).float().unsqueeze(1)
    embeddings: Tensor = embedding(tokens)
    return torch.bmm(weights, embeddings.float()).squeeze(1).to(embeddings.dtype)


class DeviceChoice:
    """Chooses next tokens on the device.

    Args:
        rows: changed in place: each row's drafts become their children.
        vocab_size: V.
        suppressed: ids that no draft may contain, shape [S].
        ends: ids that end a text, shape [E].
    """

    def __init__(self, rows: DraftRows, vocab_size: int, suppressed: Tensor, ends: Tensor) -> None:
        self._rows = rows
        self._suppressed = suppressed
        self._is_end = torch.zeros(vocab_size, dtype=torch.bool, device=suppressed.device)
        self._is_end[ends] = True
        self.tables: NgramTables | None = None

    def __call__(self, logits: Tensor, shape: StepShape) -> Tensor:
        """One more token for every draft of every row.

        Args:
            logits: float32, shape [B, V].
            shape: of the step.

        Returns:
            What the host is to know, float64, shape [B, 1 + 4 L]: the logits' normaliser (not finite if the logits are
            not numbers), then of the L best children, best first, the score (`-inf` where there is none; NaN in the
            first place of a sampled row whose nucleus is too large), parent, token and log-probability.
        """
        rows, size = self._rows, shape.num_rows
        kind = rows.column(Column.KIND, size)
        normaliser = logits.logsumexp(-1, keepdim=True).double()
        allowed = logits.index_fill(-1, self._suppressed, -torch.inf)
        values, ids = torch.topk(allowed, min(shape.num_candidates, logits.shape[-1]))
        num = values.shape[-1]
        values = values.double()
        is_one = torch.arange(num, device=logits.device) < rows.column(Column.NUM_CANDIDATES, size)
        values = torch.where(is_one, values, -torch.inf)

        scored, states = self._scored(values, ids, normaliser, shape)
        totals = rows.scores(size, shape.num_drafts).unsqueeze(-1) + scored
        totals = torch.where(totals.isnan() | values.isneginf().unsqueeze(1), -torch.inf, totals)
        is_best = totals == totals.amax(-1, keepdim=True)
        is_best &= is_best.cumsum(-1) == 1  # of equals the first: torch's argmax does not promise that
        is_own = (kind == RowKind.OWN).unsqueeze(-1)
        totals = torch.where(is_own & ~is_best, -torch.inf, totals)

        # A stable sort, as in `draft_set`: equal scores go to the better parent, then to the likelier token.
        totals, flat = torch.sort(totals.flatten(1), dim=-1, descending=True, stable=True)
        totals, flat = totals[:, : shape.num_children], flat[:, : shape.num_children]
        parents, places = flat // num, flat % num
        tokens = ids.gather(1, places)
        logprobs = values.gather(1, places) - normaliser
        if shape.samples_all or shape.samples_nucleus:
            self._sample(allowed, normaliser, shape, totals, tokens, logprobs)
        self._go_on(totals, tokens, flat, states, shape)
        return torch.cat([normaliser, totals, parents.double(), tokens.double(), logprobs], dim=-1)

    def _scored(
        self, values: Tensor, ids: Tensor, normaliser: Tensor, shape: StepShape
    ) -> tuple[Tensor, Tensor | None]:
        """Ln p_f of every candidate (eq. 6, 7), [B, K or 1, M], and the n-gram states that would follow, if any."""
        rows, size = self._rows, shape.num_rows
        tempered = torch.log_softmax(values / rows.column(Column.TAU, size), dim=-1)
        is_sampled = rows.column(Column.KIND, size) == RowKind.SAMPLED
        lm = torch.where(is_sampled, values - normaliser, tempered).unsqueeze(1)
        if not shape.with_ngram or self.tables is None or rows.nodes is None:
            return lm, None
        alpha = rows.column(Column.ALPHA, size).unsqueeze(-1)
        penalty = rows.column(Column.PENALTY, size).unsqueeze(-1)
        ngram, states = self.tables.score(rows.nodes[:size, : shape.num_drafts], ids)
        is_supported = (~ngram.isneginf() & ~values.isneginf().unsqueeze(1)).any(-1, keepdim=True)
        mixed = (1 - alpha) * lm + torch.where(is_supported, alpha * ngram, -penalty)
        return torch.where(alpha == 0, lm, mixed), states

    def _sample(
        self, allowed: Tensor, normaliser: Tensor, shape: StepShape, totals: Tensor, tokens: Tensor, logprobs: Tensor
    ) -> None:
        """Put a drawn token in the place of the best child of the rows that are sampled (`sampling.nucleus_sample`)."""
        rows, size = self._rows, shape.num_rows
        temperature = rows.column(Column.TEMPERATURE, size)
        is_drawn = ((rows.column(Column.KIND, size) == RowKind.SAMPLED) & (temperature > 0)).squeeze(1)
        scaled = allowed.double() - allowed.amax(-1, keepdim=True)
        weights = (scaled / torch.where(temperature > 0, temperature, 1.0)).exp()
        uniforms = rows.uniforms[:size].unsqueeze(1)
        drawn = torch.zeros_like(tokens[:, :1])
        is_missed = torch.zeros_like(drawn, dtype=torch.bool)
        if shape.samples_all:
            cumulative = weights.cumsum(-1)
            drawn = torch.searchsorted(cumulative, uniforms * cumulative[:, -1:], right=True)
        if shape.samples_nucleus:
            top_p = rows.column(Column.TOP_P, size)
            # Logits and not weights are sorted: some that differ have the same weight.
            order = torch.topk(allowed, min(NUCLEUS_SIZE, allowed.shape[-1])).indices
            cumulative = weights.gather(1, order).cumsum(-1)
            last = (cumulative < top_p * weights.sum(-1, keepdim=True)).sum(-1, keepdim=True)
            is_missed = (top_p < 1) & (last >= NUCLEUS_SIZE)
            mass = cumulative.gather(1, last.clamp(max=order.shape[1] - 1))
            place = torch.searchsorted(cumulative, uniforms * mass, right=True)
            from_nucleus = order.gather(1, place.clamp(max=order.shape[1] - 1))
            drawn = torch.where(top_p < 1, from_nucleus, drawn)
        drawn = drawn.clamp(max=allowed.shape[-1] - 1)
        logprob = allowed.gather(1, drawn).double() - normaliser
        score = rows.scores(size, 1) + logprob
        score = torch.where(is_missed, torch.nan, score)
        for column, value in ((tokens, drawn), (logprobs, logprob), (totals, score)):
            column[:, :1] = torch.where(is_drawn.unsqueeze(1), value, column[:, :1])

    def _go_on(self, totals: Tensor, tokens: Tensor, flat: Tensor, states: Tensor | None, shape: StepShape) -> None:
        """Make the k best children that are no end of text the drafts of the next step."""
        rows, size, num_drafts = self._rows, shape.num_rows, shape.num_drafts
        is_none = self._is_end[tokens] | ~(totals > -torch.inf)
        chosen = torch.sort(is_none.byte(), dim=-1, stable=True).indices[:, :num_drafts]
        is_free = torch.arange(chosen.shape[1], device=chosen.device) >= rows.column(Column.NUM_DRAFTS, size)
        is_free = is_free | is_none.gather(1, chosen)
        width = chosen.shape[1]  # less than K places only where the vocabulary is tiny
        rows.tokens(size, width).copy_(tokens.gather(1, chosen))
        rows.scores(size, width).copy_(torch.where(is_free, -torch.inf, totals.gather(1, chosen)))
        if states is not None and rows.nodes is not None:
            children = states.flatten(1, 2)
            index = flat.gather(1, chosen).unsqueeze(-1).expand(-1, -1, children.shape[-1])
            rows.nodes[:size, :width].copy_(children.gather(1, index))
        rows.column(Column.LENGTH, size).add_(1)
