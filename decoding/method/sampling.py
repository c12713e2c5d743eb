"""Random choices: nucleus sampling of next tokens, and the draw of one draft for a reset."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from superdraft.decoding.method.draft_set import Floats
from superdraft.decoding.method.scoring import ROWS_AT_ONCE, highest

_PRESELECTED = (64, 1024)
"""Numbers of most probable tokens in which a nucleus is searched for. It is rarely larger, so the whole vocabulary is
rarely sorted."""


def make_generator(seed: int | None, branch: int) -> np.random.Generator:
    """The random-number generator of one branch: repeatable for a seed, independent between branches.

    Args:
        seed: a 64-bit integer; None: a different generator each time.
        branch: index of the branch, from 0.
    """
    if seed is None:
        return np.random.default_rng()
    return np.random.default_rng(np.random.SeedSequence(seed % 2**64, spawn_key=(branch,)))


def choose_by_weight(weights: Floats | Sequence[float], rng: np.random.Generator) -> int:
    """Draw index i with probability w_i / sum w. An index of weight 0 is never drawn.

    Args:
        weights: none is negative, at least one is positive, shape [n].
        rng: the generator, from which one number is taken.
    """
    weights = np.asarray(weights, dtype=np.float64)
    return int(rng.choice(len(weights), p=weights / weights.sum()))


def nucleus_sample(logits: Tensor, temperatures: Sequence[float], top_ps: Sequence[float], uniforms: Tensor) -> Tensor:
    """Draw one token per row from its nucleus (Holtzman et al., 2020).

    The nucleus is the smallest set of tokens whose probability reaches top-p. Tokens with equal logits enter it in the
    order of their ids, so the choice is the same on every device. The token of a row depends on that row alone.

    Args:
        logits: float32, shape [B, V]; `-inf`: the token must not be chosen. Every row has a finite maximum.
        temperatures: one per row; 0 takes the most probable token.
        top_ps: one per row, above 0; 1 or more samples from all tokens.
        uniforms: a random number in [0, 1) per row, float64, shape [B].

    Returns:
        Token ids, shape [B].
    """
    chosen = logits.argmax(-1)
    for is_whole in (False, True):
        rows = [row for row, top_p in enumerate(top_ps) if temperatures[row] > 0 and (top_p >= 1) == is_whole]
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = rows[start : start + ROWS_AT_ONCE]
            weights = _weights(logits[part], [temperatures[row] for row in part])
            numbers = uniforms[part].unsqueeze(1)
            if is_whole:
                chosen[part] = _at(weights.double().cumsum(-1), numbers)
            else:
                top_p = torch.tensor([[top_ps[row]] for row in part], dtype=torch.float64, device=logits.device)
                chosen[part] = _from_nucleus(weights, top_p, numbers)
    return chosen


def _weights(logits: Tensor, temperatures: Sequence[float]) -> Tensor:
    """Each token's probability at the row's temperature, divided by that of the row's most probable token."""
    temperature = torch.tensor(temperatures, dtype=torch.float64, device=logits.device).unsqueeze(1)
    return (logits - logits.amax(-1, keepdim=True)).double().div_(temperature).float().exp_()


def _at(cumulative: Tensor, numbers: Tensor) -> Tensor:
    """The column at which each row's cumulative sum exceeds a share of the row's total, shape [B]."""
    return torch.searchsorted(cumulative, numbers * cumulative[:, -1:], right=True).squeeze(1)


def _from_nucleus(weights: Tensor, top_p: Tensor, numbers: Tensor) -> Tensor:
    """Draw one token per row by weight, from the most probable tokens that together reach the share `top_p`.

    Args:
        weights: shape [B, V].
        top_p: float64, shape [B, 1].
        numbers: random numbers in [0, 1), float64, shape [B, 1].

    Returns:
        Token ids, shape [B].
    """
    num_rows, num_tokens = weights.shape
    mass = weights.sum(-1, keepdim=True, dtype=torch.float64) * top_p
    chosen = torch.empty(num_rows, dtype=torch.long, device=weights.device)
    pending = torch.arange(num_rows, device=weights.device)
    for size in (*(size for size in _PRESELECTED if size < num_tokens), num_tokens):
        values, ids = _by_weight(weights[pending], size)
        cumulative = values.double().cumsum(-1)
        last = (cumulative < mass[pending]).sum(-1, keepdim=True).clamp(max=size - 1)
        # The nucleus must end above the lowest preselected weight: other tokens of equal weight may be missing.
        is_known = (values.gather(-1, last) > values[:, -1:]).squeeze(1)
        if size == num_tokens:
            is_known[:] = True
        drawn = _at(cumulative.minimum(cumulative.gather(-1, last)), numbers[pending])
        chosen[pending[is_known]] = ids.gather(-1, drawn.clamp(max=size - 1).unsqueeze(1)).squeeze(1)[is_known]
        pending = pending[~is_known]
        if not len(pending):
            break
    return chosen


def _by_weight(weights: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The highest weights of each row and their ids, both of shape [B, size]; equal weights in the order of ids."""
    if size == weights.shape[-1]:
        return torch.sort(weights, stable=True, dim=-1, descending=True)
    return highest(weights, size)
