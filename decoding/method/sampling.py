"""Random choices: nucleus sampling of next tokens, and the draw of one draft."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from superdraft.decoding.method.draft_set import Floats
from superdraft.decoding.method.scoring import ROWS_AT_ONCE, highest

_PRESELECTED = (64, 1024)
"""Tokens that are looked at first, and then: nearly every nucleus is smaller, so the vocabulary is rarely sorted."""


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


def nucleus_sample(logits: Tensor, temperatures: Sequence[float], top_ps: Sequence[float], uniforms: Tensor) -> Tensor:
    """One token per row from its nucleus (Holtzman et al., 2020): the smallest set whose probability reaches top-p.

    Equal logits enter the nucleus by their id, so the choice is the same on every device. Each row's token depends on
    that row alone.

    Args:
        logits: float32, shape [B, V]; `-inf` for tokens that must not be chosen. Every row has a finite maximum.
        temperatures: length B; 0 takes the most probable token.
        top_ps: length B, above 0; 1 or more samples from all tokens.
        uniforms: a random number in [0, 1) for each row, float64, shape [B].

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
    """Probabilities at these temperatures, divided by that of the row's most probable token."""
    temperature = torch.tensor(temperatures, dtype=torch.float64, device=logits.device).unsqueeze(1)
    return (logits - logits.amax(-1, keepdim=True)).double().div_(temperature).float().exp_()


def _at(cumulative: Tensor, numbers: Tensor) -> Tensor:
    """The column of each row at which a running sum passes a share of the row's last one, shape [B]."""
    return torch.searchsorted(cumulative, numbers * cumulative[:, -1:], right=True).squeeze(1)


def _from_nucleus(weights: Tensor, top_p: Tensor, numbers: Tensor) -> Tensor:
    """One token per row by its weight, from the most probable ones that together reach a share of the mass.

    Args:
        weights: shape [B, V].
        top_p: float64, shape [B, 1].
        numbers: in [0, 1), float64, shape [B, 1].
    """
    num_rows, num_tokens = weights.shape
    mass = weights.sum(-1, keepdim=True, dtype=torch.float64) * top_p
    chosen = torch.empty(num_rows, dtype=torch.long, device=weights.device)
    pending = torch.arange(num_rows, device=weights.device)
    for size in (*(size for size in _PRESELECTED if size < num_tokens), num_tokens):
        values, ids = _by_weight(weights[pending], size)
        cumulative = values.double().cumsum(-1)
        last = (cumulative < mass[pending]).sum(-1, keepdim=True).clamp(max=size - 1)
        # The nucleus must end above the lowest preselected weight: equal ones may not be among the preselected.
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
    """The highest weights of each row and their ids, equal ones by id, both of shape [B, size]."""
    if size == weights.shape[-1]:
        return torch.sort(weights, stable=True, dim=-1, descending=True)
    values, ids = highest(weights, size)
    ids, by_id = ids.sort(-1)
    values, by_value = values.gather(-1, by_id).sort(stable=True, dim=-1, descending=True)
    return values, ids.gather(-1, by_value)
