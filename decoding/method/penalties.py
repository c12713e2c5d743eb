"""Logit biases and repetition penalties."""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from superdraft.decoding.errors import InvalidRequestError
from superdraft.decoding.method.draft_set import Floats

FORBIDDING_BIAS = -100.0
"""A bias this low or lower forbids a token."""


def check_logit_bias(bias: Iterable[tuple[int, float]], vocab_size: int) -> None:
    """Check that all token ids of a logit bias are in the vocabulary.

    Raises:
        InvalidRequestError: an id is outside the vocabulary.
    """
    for token_id, _ in bias:
        if not 0 <= token_id < vocab_size:
            raise InvalidRequestError(
                f"logit_bias names token {token_id}, but token ids of this model go from 0 to {vocab_size - 1}.",
                param="logit_bias",
            )


def apply_logit_bias(logits: Tensor, bias: Sequence[tuple[int, float]]) -> Tensor:
    """Add a request's bias to its logits, before the cut to m candidates.

    Args:
        logits: shape [V] or [B, V]; every row gets the bias. Not changed.
        bias: pairs (token id, value to add), each id once; `FORBIDDING_BIAS` or less makes the logit `-inf`.

    Returns:
        A new tensor of the same shape, float32: a small bias would be lost in bfloat16.

    Raises:
        InvalidRequestError: an id is outside the vocabulary.
    """
    check_logit_bias(bias, logits.shape[-1])
    ids = [token_id for token_id, _ in bias]
    values = [value if value > FORBIDDING_BIAS else float("-inf") for _, value in bias]
    biased = logits.to(torch.float32, copy=True)
    biased[..., torch.tensor(ids, dtype=torch.long, device=logits.device)] += torch.tensor(
        values, dtype=torch.float32, device=logits.device
    )
    return biased


def penalise(
    logits: Floats,
    token_ids: Sequence[int],
    drafts: Sequence[Sequence[int]],
    frequency_penalty: float,
    presence_penalty: float,
) -> Floats:
    """Subtract the penalties for each draft's own tokens from the logits of its candidates.

    OpenAI's definition: `logit[j] - count[j] * frequency_penalty - (count[j] > 0) * presence_penalty`. Tokens are
    counted in the draft, not in the prompt.

    Args:
        logits: logits of the m candidates, which the drafts share, shape [m].
        token_ids: the candidates, shape [m].
        drafts: the token ids of each of k drafts.
        frequency_penalty: subtracted for each time the draft has the token; a negative value favours repetition.
        presence_penalty: subtracted once if the draft has the token.

    Returns:
        Each draft's own logits, shape [k, m].
    """
    own = np.empty((len(drafts), len(token_ids)))
    for row, draft in enumerate(drafts):
        counts = Counter(draft)
        own[row] = [counts[token_id] for token_id in token_ids]
    penalised: Floats = logits - own * frequency_penalty - (own > 0) * presence_penalty
    return penalised
