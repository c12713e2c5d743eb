"""The superposed input of a decode step (Shen et al., 2024, eq. 3 and 4)."""

import math
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor


def draft_weights(scores: Sequence[float]) -> list[float]:
    """Gamma = softmax of the drafts' log-scores, that is p_i / sum_j p_j (eq. 4).

    Args:
        scores: ln p of each draft, shape [k].

    Returns:
        Weights, shape [k]: none is negative and they sum to 1.
    """
    best = max(scores)
    weights = [math.exp(score - best) for score in scores]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def superpose(embeddings: Tensor, weights: Sequence[Sequence[float]]) -> Tensor:
    """x~ = sum_i gamma_i * E[last token of draft i] (eq. 3), for every branch of a batch.

    Args:
        embeddings: outputs of the model's embedding module for the last tokens of all drafts of all branches, one
            branch after the other, shape [sum of k, D]. The module's outputs and not rows of its weight: some models
            scale them.
        weights: for each of the B branches the weights of its k drafts.

    Returns:
        One superposed embedding per branch, shape [B, D], in the dtype of `embeddings`. A weight of exactly 1 gives
        that embedding unchanged.
    """
    rows = [row for row, gamma in enumerate(weights) for _ in gamma]
    mixing = torch.zeros(len(weights), embeddings.shape[0])
    mixing[rows, torch.arange(len(rows))] = torch.tensor(list(chain.from_iterable(weights)))
    # Blend in float32: in bfloat16 the small weights of a draft set would vanish.
    return (mixing.to(embeddings.device) @ embeddings.float()).to(embeddings.dtype)
