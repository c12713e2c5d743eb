"""Weights as the kernels hold them, in plain torch."""

import torch

GROUP_SIZE = 32


def rounded_weight(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """Groups of 32 weights in 16 levels from the smallest to the largest, or in 255 levels around zero.

    Args:
        weight: shape [N, K].
        bits: 4 or 8.
    """
    groups = weight.detach().float().view(len(weight), -1, GROUP_SIZE)
    if bits == 8:
        lows = torch.zeros_like(groups[..., :1])
        scales = (groups.abs().amax(-1, keepdim=True) / 127).half().float()
        limits = (-127, 127)
    else:
        lows = groups.amin(-1, keepdim=True)
        scales = ((groups.amax(-1, keepdim=True) - lows) / 15).half().float()
        lows, limits = lows.half().float(), (0, 15)
    inverse = torch.where(scales > 0, 1 / scales, torch.zeros_like(scales))
    levels = ((groups - lows) * inverse).round().clamp(*limits)
    return (levels * scales + lows).view(weight.shape)
