"""The superposed input of a decode step (Shen et al., 2024, eq. 3 and 4)."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def draft_weights(scores: Sequence[float]) -> NDArray[np.float64]:
    """Gamma = softmax of the drafts' log-scores, that is p_i / sum_j p_j (eq. 4).

    Args:
        scores: ln p of each draft, shape [k].

    Returns:
        Weights, shape [k]: none is negative and they sum to 1.
    """
    weights = np.exp(np.asarray(scores, dtype=np.float64) - max(scores))
    result: NDArray[np.float64] = weights / weights.sum()
    return result


def superpose(embeddings: Tensor, weights: Sequence[NDArray[np.float64]]) -> Tensor:
    """x~ = sum_i gamma_i * E[last token of draft i] (eq. 3), for every sequence of a batch.

    Args:
        embeddings: outputs of the model's embedding module for the last tokens of all drafts of all sequences, one
            sequence after the other, shape [sum of k, D]. The module's outputs and not rows of its weight: some models
            scale them.
        weights: for each of the B sequences the weights of its k drafts.

    Returns:
        One superposed embedding a sequence, shape [B, D], in the dtype of `embeddings`. A weight of exactly 1 gives
        that embedding unchanged.
    """
    mixing = torch.zeros(len(weights), embeddings.shape[0], dtype=torch.float32)
    start = 0
    for row, gamma in enumerate(weights):
        mixing[row, start : start + len(gamma)] = torch.from_numpy(gamma)
        start += len(gamma)
    # Blend in float32: in bfloat16 the small weights of a draft set would vanish.
    return (mixing.to(embeddings.device) @ embeddings.float()).to(embeddings.dtype)
