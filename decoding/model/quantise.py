"""Rounding of weights to 4 and 8 bits."""

import torch
from torch import Tensor

GROUP_SIZE = 32
_LEVELS = 15
_FEWEST_LEVELS = 8
_EXACT_MISFIT = 0.05  # of a step; bfloat16 rounds the eighth step by 0.016 of a step
_SAMPLE_GROUPS = 256
# Rounded together: small enough that the temporaries stay in the processor's cache and reuse the same memory.
_BLOCK_GROUPS = 2048
_BLOCK_ROWS = 128


def quantise_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round each output's weights to 255 evenly spaced values around zero.

    Args:
        weight: shape [N, K].

    Returns:
        Levels -127..127, [N, K] int8; scales, [N] float32.
    """
    scales = torch.empty(weight.shape[0])
    levels = torch.empty(weight.shape, dtype=torch.int8)
    blocks = (torch.split(tensor, _BLOCK_ROWS) for tensor in (weight.detach(), scales, levels))
    for rows, scale, level in zip(*blocks, strict=True):
        exact = rows.float()
        scale.copy_(exact.abs().amax(dim=1).clamp_(min=1e-12).div_(127))
        level.copy_((exact / scale[:, None]).round_())
    return levels, scales


def quantise_int4(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Round each group of 32 weights to 16 evenly spaced values.

    Weights that were quantised this way before (GGUF's Q4_0 and Q4_1) are recovered exactly, up to bfloat16's rounding,
    even where a group does not use all 16 values.

    Args:
        weight: shape [N, K], K a multiple of 32.

    Returns:
        Levels 0..15, [N, K] int32; scales, [N, K / 32]; zeros, the value of level 8, [N, K / 32].
    """
    blocks = torch.split(weight.detach().reshape(-1, GROUP_SIZE), _BLOCK_GROUPS)
    parts = [_quantise_groups(groups.float()) for groups in blocks]
    levels, scales, zeros = (torch.cat(part).view(weight.shape[0], -1) for part in zip(*parts, strict=True))
    return levels, scales, zeros


def _quantise_groups(groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise groups [G, 32]: levels, [G, 32] int32; scales and zeros, each [G, 1]."""
    lows, highs = groups.aminmax(dim=-1, keepdim=True)
    spans = highs - lows
    levels, scales, misfits = _round_to_grid(groups, lows, spans, _LEVELS)
    for used in range(_LEVELS - 1, _FEWEST_LEVELS - 1, -1):
        inexact = (misfits > _EXACT_MISFIT).nonzero().squeeze(-1)
        if len(inexact) == 0:
            break
        few = inexact[:_SAMPLE_GROUPS]
        if not bool((_round_to_grid(groups[few], lows[few], spans[few], used)[2] <= _EXACT_MISFIT).any()):
            continue  # no sample fits, as with weights never quantised before: a coarser grid would only be worse
        finer = _round_to_grid(groups[inexact], lows[inexact], spans[inexact], used)
        fits = finer[2] <= _EXACT_MISFIT
        for found, value in zip((levels, scales, misfits), finer, strict=True):
            found[inexact[fits]] = value[fits]
    return levels.to(torch.int32), scales, lows + 8 * scales


def _round_to_grid(groups: Tensor, lows: Tensor, spans: Tensor, used: int) -> tuple[Tensor, Tensor, Tensor]:
    """Round each group to a grid of `used` steps: levels [G, 32], scales [G, 1], largest error in steps [G]."""
    scales = (spans / used).clamp_(min=1e-8)
    exact = (groups - lows).div_(scales)
    levels = exact.round()
    return levels, scales, exact.sub_(levels).abs_().amax(dim=-1)
