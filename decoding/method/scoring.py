"""Scores of candidate tokens: cut, temper, interpolate (Shen et al., 2024, eq. 6 and 7).

All functions take arrays with any leading shape, so one call serves every request of a decode step.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from superdraft.decoding.method.draft_set import Floats

_BLOCK = 128
ROWS_AT_ONCE = 16
"""Rows whose softmax is taken at once. 64 rows of 49,152 tokens take 1.8 ms in parts of this size and 6.3 ms as a
whole, whose copy lies in memory that is new each time."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """The language model's m most probable tokens after each of B rows, most probable first.

    Attributes:
        token_ids: shape [B, m].
        logits: as the model gave them, shape [B, m]; `-inf` is a token that the request rules out.
        logprobs: ln p under the whole vocabulary at temperature 1, shape [B, m].
    """

    token_ids: NDArray[np.int64]
    logits: Floats
    logprobs: Floats

    def are_numbers(self, row: int) -> bool:
        """Whether the model's output for a row is finite: a NaN or infinity anywhere in it makes all ln p NaN."""
        return bool(np.isfinite(self.logprobs[row, 0]))


def cut(logits: Tensor, num: int, suppressed: Tensor) -> Candidates:
    """The m most probable tokens of each row that a draft may contain.

    Args:
        logits: the model's output at the last position, float32, shape [B, V]. Changed in place: the suppressed tokens
            are `-inf` afterwards.
        num: m; a larger one than there are tokens means all of them.
        suppressed: ids that no draft may contain, shape [S].
    """
    barred = logits.index_select(-1, suppressed)
    logits.index_fill_(-1, suppressed, float("-inf"))
    values, ids = highest(logits, min(num, logits.shape[-1] - suppressed.shape[0]))
    logits.index_copy_(-1, suppressed, barred)  # they count in the model's distribution
    logprobs = torch.cat(
        [
            torch.log_softmax(rows, -1).gather(-1, top)
            for rows, top in zip(torch.split(logits, ROWS_AT_ONCE), torch.split(ids, ROWS_AT_ONCE), strict=True)
        ]
    )
    logits.index_fill_(-1, suppressed, float("-inf"))
    # One copy to the host for the whole batch: on a GPU this is the step's only synchronisation.
    packed = torch.stack([values.double(), ids.double(), logprobs.double()]).cpu().numpy()
    return Candidates(packed[1].astype(np.int64), packed[0], packed[2])


def highest(values: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """`torch.topk` of each row, shape [B, V] -> two of shape [B, num].

    The `num` highest values lie in the `num` blocks with the highest maxima. topk copies each row on a CPU; looking at
    the maxima first takes a fifth of the time (64 rows of 49,152: 0.6 against 2.8 ms).
    """
    num_rows, size = values.shape
    if size % _BLOCK or num * _BLOCK >= size:
        return torch.topk(values, num, dim=-1)
    blocks = values.view(num_rows, -1, _BLOCK)
    _, best = torch.topk(blocks.amax(-1), num, dim=-1)
    inside = torch.gather(blocks, 1, best.unsqueeze(-1).expand(-1, -1, _BLOCK)).flatten(1)
    top, places = torch.topk(inside, num, dim=-1)
    return top, torch.gather(best, 1, places // _BLOCK) * _BLOCK + places % _BLOCK


def tempered_logprobs(logits: Floats, tau: Floats | float) -> Floats:
    """Take ln of softmax(logits / tau), cut to the candidates and renormalised over them.

    A softmax over the vocabulary that is cut and renormalised equals a softmax over what was kept, so the vocabulary
    is not needed. Shape [..., m] -> [..., m]; `tau` is a number or has shape [..., 1].
    """
    scaled = logits / tau
    scaled = scaled - scaled.max(axis=-1, keepdims=True)
    logprobs: Floats = scaled - np.log(np.exp(scaled).sum(axis=-1, keepdims=True))
    return logprobs


def interpolate(
    lm_logprobs: Floats, ngram_logprobs: Floats | None, alpha: Floats | float, penalty: Floats | float
) -> Floats:
    """Interpolate: ln p_f of every candidate of every draft.

    The un-normalised geometric mean (eq. 6), with the rule for drafts without support (eq. 7).

    Args:
        lm_logprobs: the tempered distribution, shape [..., k, m], or [..., 1, m] where the k drafts share it.
        ngram_logprobs: each draft's own n-gram log-probabilities, shape [..., k, m]; None: no n-gram model.
        alpha: weight of the n-gram model, a number or of shape [..., 1, 1]; above 0 for all, or 0 for all.
        penalty: subtracted from all candidates of a draft whose n-gram model supports none of them; shape as `alpha`.

    Returns:
        ln p_f, shape [..., k, m], or that of `lm_logprobs` without an n-gram model. `-inf` marks a candidate that the
        draft's n-gram model does not support although it supports another.
    """
    if ngram_logprobs is None or not np.any(alpha):
        return lm_logprobs
    with np.errstate(invalid="ignore"):  # alpha 1: 0 * -inf
        from_lm = np.where(np.isneginf(lm_logprobs), -np.inf, (1 - alpha) * lm_logprobs)
    unsupported = np.isneginf(ngram_logprobs).all(axis=-1, keepdims=True)
    return np.where(unsupported, from_lm - penalty, from_lm + alpha * ngram_logprobs)
