"""Random choices: nucleus sampling of a branch's next token, and the draw of one draft."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from superdraft.decoding.errors import SequenceFailedError
from superdraft.decoding.method.draft_set import Floats

_PRESELECTED = 1024
"""Tokens that are looked at first: nearly every nucleus is smaller, and the vocabulary need not be sorted."""


def make_generator(seed: int | None, branch: int) -> np.random.Generator:
    """The random numbers of one branch of a request: the same for the same seed, independent between branches.

    Args:
        seed: an integer of 64 bits; None: another one each time.
        branch: index of the branch, from 0.
    """
    if seed is None:
        return np.random.default_rng()
    return np.random.default_rng(np.random.SeedSequence(seed % 2**64, spawn_key=(branch,)))


def choose_by_weight(weights: Floats | Sequence[float], rng: np.random.Generator) -> int:
    """Index i with probability w_i / sum w. An index of weight 0 is never chosen.

    Args:
        weights: none negative, at least one positive, shape [n].
        rng: where the one random number comes from.
    """
    weights = np.asarray(weights, dtype=np.float64)
    return int(rng.choice(len(weights), p=weights / weights.sum()))


def nucleus_sample(
    logits: Tensor, normaliser: float, temperature: float, top_p: float, rng: np.random.Generator
) -> tuple[int, float]:
    """One token from the nucleus: the smallest set of tokens whose probability reaches `top_p` (Holtzman et al., 2020).

    Equal logits go into the nucleus by their id, so the choice is the same on every device.

    Args:
        logits: of one row, float32, shape [V]; `-inf` for tokens that must not be chosen.
        normaliser: ln of the sum of exp of the row's logits at temperature 1; only for the log-probability that is
            returned. Taken before tokens were ruled out, it gives the model's own.
        temperature: 0 takes the most probable token.
        top_p: above 0; 1 or more samples from all tokens.
        rng: where the random number comes from.

    Returns:
        The token's id and its log-probability, `logits[id] - normaliser`: temperature and nucleus do not count in it.

    Raises:
        SequenceFailedError: the logits hold NaN or +inf, or every token is ruled out.
    """
    highest = float(logits.max())
    if not np.isfinite(highest):
        raise SequenceFailedError("The model's output holds values that are not numbers; this request cannot go on.")
    if temperature == 0:
        return int(logits.argmax()), highest - normaliser
    scaled = (logits.double() - highest) / temperature
    ids, weights = _all_tokens(scaled) if top_p >= 1 else _nucleus(scaled, top_p)
    token_id = int(ids[choose_by_weight(weights, rng)])
    return token_id, float(logits[token_id]) - normaliser


def _all_tokens(scaled: Tensor) -> tuple[NDArray[np.int64], Floats]:
    return np.arange(len(scaled)), scaled.exp().cpu().numpy()


def _nucleus(scaled: Tensor, top_p: float) -> tuple[NDArray[np.int64], Floats]:
    """Ids of the nucleus, most probable first, and their weights, not normalised, both shape [size of the nucleus].

    Args:
        scaled: logits divided by the temperature, the highest 0, shape [V].
        top_p: between 0 and 1.
    """
    mass = top_p * float(scaled.exp().sum())
    values, ids = (part.cpu().numpy() for part in torch.topk(scaled, min(_PRESELECTED, len(scaled))))
    size = _nucleus_size(values, mass)
    # The cut must lie above the lowest preselected value: others that equal it may not be among the preselected.
    if values[_nucleus_size(values, mass) - 1] == values[-1]:
        values, ids = scaled.cpu().numpy(), np.arange(len(scaled))
    order = np.lexsort((ids, -values))
    size = _nucleus_size(values[order], mass)
    return ids[order[:size]], np.exp(values[order[:size]])


def _nucleus_size(values: Floats, mass: float) -> int:
    """How many of the values, highest first, it takes until their exponentials sum to `mass`; all if they never do."""
    return min(int(np.searchsorted(np.cumsum(np.exp(values)), mass)) + 1, len(values))
