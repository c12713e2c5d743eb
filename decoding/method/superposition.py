"""Superposition: the model input of a decode step (Shen et al., 2024, eq. 3 and 4)."""

import math
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor


def draft_weights(scores: Sequence[float]) -> list[float]:
    """Draft weights gamma: softmax of the drafts' log-scores, that is p_i / sum_j p_j (eq. 4).

    Args:
        scores: ln p of each draft, shape [k].

    Returns:
        Weights, shape [k], none negative, with the sum 1.
    """
    best = max(scores)
    weights = [math.exp(score - best) for score in scores]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def superpose(embeddings: Tensor, weights: Sequence[Sequence[float]]) -> Tensor:
    """x~ = sum_i gamma_i * E[last token of draft i] (eq. 3), for every branch of a batch.

    Args:
        embeddings: the last tokens of all drafts, branch after branch, shape [sum of k, D]. These are outputs of the
            model's embedding module, not rows of its weight, because some models scale them.
        weights: the weights of the k drafts of each of B branches.

    Returns:
        One superposed embedding per branch, shape [B, D], in the dtype of `embeddings`. A draft with the weight 1 gives
        its embedding unchanged.
    """
    if len(embeddings) == len(weights):  # a draft each
        return embeddings
    rows = [row for row, gamma in enumerate(weights) for _ in gamma]
    mixing = torch.zeros(len(weights), embeddings.shape[0])
    mixing[rows, torch.arange(len(rows))] = torch.tensor(list(chain.from_iterable(weights)))
    # Blended in float32: in bfloat16 small weights would be lost.
    return (mixing.to(embeddings.device) @ embeddings.float()).to(embeddings.dtype)
