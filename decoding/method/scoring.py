"""Scores of candidate tokens: cut, temper, interpolate (Shen et al., 2024, eq. 6 and 7).

One call serves all requests of a decode step: the arrays have leading dimensions for them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from superdraft.decoding.method.draft_set import Floats

_BLOCK = 64  # 64 rows of 49,152: 0.9 ms for 9 candidates, 4.1 for 64; blocks of 128 take 1.1 and 6.4, topk 2.9 and 3.9
ROWS_AT_ONCE = 16
"""Rows per softmax. 64 rows of 49,152 tokens take 1.8 ms in parts of this size and 6.3 ms as a whole, because the copy
of the whole goes to newly allocated memory each time."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """The m most probable next tokens of each of B rows, most probable first.

    Attributes:
        token_ids: shape [B, m].
        logits: the model's, with the request's logit bias, shape [B, m]; `-inf`: the request forbids the token.
        logprobs: ln p under the whole vocabulary at temperature 1, shape [B, m].
    """

    token_ids: NDArray[np.int64]
    logits: Floats
    logprobs: Floats

    def are_numbers(self, row: int) -> bool:
        """Whether a token can be chosen for a row: a NaN or infinity anywhere in its logits makes all its ln p NaN."""
        return bool(np.isfinite(self.logprobs[row, 0]))

    def row(self, index: int) -> "Candidates":
        """A copy of one row."""
        own = slice(index, index + 1)
        return Candidates(self.token_ids[own].copy(), self.logits[own].copy(), self.logprobs[own].copy())


def joined(parts: Sequence[Candidates]) -> Candidates:
    """The rows of all parts. Rows with fewer candidates than others get more that are never chosen."""
    widest = max(part.token_ids.shape[-1] for part in parts)

    def padded(values: NDArray[Any], filler: float) -> NDArray[Any]:
        return np.pad(values, ((0, 0), (0, widest - values.shape[-1])), constant_values=filler)

    return Candidates(
        np.concatenate([padded(part.token_ids, 0) for part in parts]),
        np.concatenate([padded(part.logits, -np.inf) for part in parts]),
        np.concatenate([padded(part.logprobs, -np.inf) for part in parts]),
    )


def cut(logits: Tensor, num: int, suppressed: Tensor) -> Candidates:
    """The m most probable tokens of each row that a draft may contain.

    Args:
        logits: the model's output at the last position, float32, shape [B, V]. Changed in place: the suppressed tokens
            are `-inf` afterwards.
        num: m. If there are fewer tokens, all of them are candidates.
        suppressed: ids that no draft may contain, shape [S].
    """
    barred = logits.index_select(-1, suppressed)
    logits.index_fill_(-1, suppressed, float("-inf"))
    values, ids = highest(logits, min(num, logits.shape[-1] - suppressed.shape[0]))
    logits.index_copy_(-1, suppressed, barred)  # suppressed tokens count in the model's distribution
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
    """The highest values of each row and their ids; of equal values the lower id.

    Ties are common, because a bfloat16 logit has 8 significant bits, and `torch.topk` takes any of equal values.

    The `num` highest values lie in the `num` blocks with the highest maxima. On a CPU, topk copies each row. Finding
    these blocks first takes a third of the time for few candidates, and as long for 64.

    Args:
        values: float32, shape [B, V].
        num: how many, at most V.

    Returns:
        Values and ids, both of shape [B, num].
    """
    size = values.shape[-1]
    if num * _BLOCK >= size:
        ids = torch.arange(size, device=values.device).expand(len(values), -1)
    else:
        blocks = torch.nn.functional.pad(values, (0, -size % _BLOCK), value=float("-inf")) if size % _BLOCK else values
        blocks = blocks.view(len(values), -1, _BLOCK)
        maxima = blocks.amax(-1)
        best = torch.topk(_ordered(maxima, torch.arange(maxima.shape[-1], device=values.device)), num).indices
        values = torch.gather(blocks, 1, best.unsqueeze(-1).expand(-1, -1, _BLOCK)).flatten(1)
        ids = (best.unsqueeze(-1) * _BLOCK + torch.arange(_BLOCK, device=values.device)).flatten(1)
    top = torch.topk(_ordered(values, ids), num).indices
    # A NaN with the sign bit set comes last, after the padding: keep the ids of such a row within the vocabulary.
    return values.gather(1, top), ids.gather(1, top).clamp(max=size - 1)


def _ordered(values: Tensor, ids: Tensor) -> Tensor:
    """Integers in the order of float32 values; of equal values, the one with the lower id is greater."""
    bits = values.view(torch.int32).long()
    return (torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits) << 32) - ids


def tempered_logprobs(logits: Floats, tau: Floats | float) -> Floats:
    """The tempered distribution: ln of softmax(logits / tau), renormalised over the m candidates.

    A softmax over the vocabulary that is cut to the candidates and renormalised equals a softmax over the candidates,
    so the other logits are not needed.

    Args:
        logits: shape [..., m]; at least one per row is finite.
        tau: the temperature, a number or of shape [..., 1].

    Returns:
        Shape [..., m].
    """
    scaled = logits / tau
    scaled = scaled - scaled.max(axis=-1, keepdims=True)
    logprobs: Floats = scaled - np.log(np.exp(scaled).sum(axis=-1, keepdims=True))
    return logprobs


def interpolate(
    lm_logprobs: Floats, ngram_logprobs: Floats | None, alpha: Floats | float, penalty: Floats | float
) -> Floats:
    """Interpolate: ln p_f of every candidate of every draft: the un-normalised geometric mean (eq. 6).

    If a draft's n-gram model supports none of its candidates, the language model alone scores them and each pays the
    penalty (eq. 7).

    Args:
        lm_logprobs: the tempered distribution, shape [..., k, m], or [..., 1, m] if the k drafts share it; `-inf`: the
            request forbids the token.
        ngram_logprobs: each draft's own n-gram log-probabilities, shape [..., k, m]; None: no n-gram model.
        alpha: weight of the n-gram model, a number or of shape [..., 1, 1]; above 0 for all drafts, or 0 for all.
        penalty: subtracted where eq. 7 applies; shape as `alpha`.

    Returns:
        ln p_f, shape [..., k, m]; without an n-gram model the shape of `lm_logprobs`. `-inf`: the token is forbidden,
        or the draft's n-gram model supports another candidate but not this one.
    """
    if ngram_logprobs is None or not np.any(alpha):
        return lm_logprobs
    with np.errstate(invalid="ignore"):  # alpha 1: 0 * -inf
        from_lm = np.where(np.isneginf(lm_logprobs), -np.inf, (1 - alpha) * lm_logprobs)
    mean = from_lm + alpha * ngram_logprobs
    # A forbidden token that the n-gram model supports is no support: the draft would be left without a child.
    unsupported = np.isneginf(mean).all(axis=-1, keepdims=True)
    return np.where(unsupported, from_lm - penalty, mean)


def are_numbers(logits: Tensor) -> bool:
    """Whether each row's highest logit is finite: false for NaN, infinity, or a row of `-inf` alone."""
    return bool(logits.amax(-1).isfinite().all())
