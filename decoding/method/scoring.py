"""Scores of candidate tokens (Shen et al., 2024, eq. 6 and 7). One step: cut, temper, interpolate."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Candidates:
    """The language model's m most probable tokens at one step, most probable first.

    Attributes:
        token_ids: shape [m].
        logits: as the model gave them, shape [m].
        logprobs: ln p under the whole vocabulary at temperature 1, shape [m].
    """

    token_ids: list[int]
    logits: Floats
    logprobs: Floats


def top_candidates(logits: Tensor, nums: Sequence[int], suppressed: Tensor) -> list[Candidates]:
    """The m most probable tokens of each row that a draft may contain.

    Args:
        logits: the model's output at the last position, shape [B, V].
        nums: m of each row, length B; a larger one than there are tokens means all of them.
        suppressed: ids that no draft may contain, shape [S].

    Returns:
        For each row its candidates. A row whose logits are not finite numbers has none.
    """
    logits = logits.float()
    normaliser = torch.logsumexp(logits, dim=-1)
    allowed = logits.index_fill(-1, suppressed, float("-inf"))
    num_allowed = logits.shape[-1] - suppressed.shape[0]
    values, ids = torch.topk(allowed, min(max(nums), num_allowed), dim=-1)
    # One copy to the host for the whole batch: on a GPU this is the step's only synchronisation.
    packed = torch.cat([values.double(), ids.double(), normaliser.double().unsqueeze(-1)], dim=-1).cpu().numpy()
    width = values.shape[-1]
    rows = []
    for row, num in zip(packed, nums, strict=True):
        top = row[: min(num, width)]
        # The normaliser of a row with a NaN or +inf is not finite; -inf is a token that the model itself rules out.
        m = int(np.isfinite(top).sum()) if np.isfinite(row[-1]) else 0
        rows.append(Candidates(row[width : width + m].astype(np.int64).tolist(), top[:m], top[:m] - row[-1]))
    return rows


def tempered_logprobs(logits: Floats, tau: float) -> Floats:
    """Take ln of softmax(logits / tau), cut to the candidates and renormalised over them.

    A softmax over the vocabulary that is cut and renormalised equals a softmax over what was kept, so the vocabulary
    is not needed. Shape [m] -> [m].
    """
    scaled = logits / tau
    scaled = scaled - scaled.max()
    logprobs: Floats = scaled - np.log(np.exp(scaled).sum())
    return logprobs


def interpolate(lm_logprobs: Floats, ngram_logprobs: Floats | None, alpha: float, penalty: float) -> Floats:
    """Interpolate: ln p_f of every candidate of every draft.

    The un-normalised geometric mean (eq. 6), with the rule for drafts without support (eq. 7).

    Args:
        lm_logprobs: the shared, tempered distribution, shape [m].
        ngram_logprobs: each draft's own n-gram log-probabilities, shape [k, m]; None: no n-gram model.
        alpha: weight of the n-gram model.
        penalty: subtracted from all candidates of a draft whose n-gram model supports none of them.

    Returns:
        ln p_f, shape [k, m], or [1, m] without an n-gram model (all drafts then share one row). `-inf` marks a
        candidate that the draft's n-gram model does not support although it supports another.
    """
    if ngram_logprobs is None or alpha == 0:
        return lm_logprobs[np.newaxis, :]
    interpolated = (1 - alpha) * lm_logprobs + alpha * ngram_logprobs
    unsupported = np.isneginf(ngram_logprobs).all(axis=1, keepdims=True)
    return np.where(unsupported, (1 - alpha) * lm_logprobs - penalty, interpolated)
