"""Weight format int4: linear layers in 4 bits (8 for the output head), with bfloat16 weights kept for larger batches.

A decode step of a few rows takes as long as reading the weights, so fewer bits per weight make it faster. With more
rows, arithmetic dominates and the processor's bfloat16 matrix units are faster. Each layer therefore keeps both forms
and chooses by the number of rows. The kernels are torch's `_weight_int4pack_mm_for_cpu` and `_weight_int8pack_mm`; see
`linear_cuda` for GPUs.
"""

import torch
from torch import Tensor

from superdraft.decoding.model.linear import DenseLinear

GROUP_SIZE = 32
INT4_MAX_ROWS = 16  # measured on a processor with AMX, see docs/performance.md
INT8_MAX_ROWS = 16
_LEVELS = 15
_FEWEST_LEVELS = 8
_EXACT_MISFIT = 0.05  # of a step; bfloat16 rounds the eighth step by 0.016 of a step
_SAMPLE_GROUPS = 256
# Rounded together: small enough that the temporaries stay in the processor's cache and reuse the same memory.
_BLOCK_GROUPS = 2048
_GPU_BLOCK_GROUPS = 1 << 18  # on a GPU the number of operations is what takes time
_BLOCK_ROWS = 128


_int4_product = torch.ops.aten._weight_int4pack_mm_for_cpu.default  # looked up once: it is called 120 times per step


class Int4Linear(DenseLinear):
    """y = x W^T + b with 4-bit weights for up to `INT4_MAX_ROWS` rows, dense weights for more.

    Each group of 32 weights has a scale and a zero point: w = scale * (q - 8) + zero, q = 0..15.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight, bias)
        levels, scales, zeros = quantise_int4(weight)
        self._packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels, 1)
        self._scales_and_zeros = torch.stack([scales, zeros], dim=-1).transpose(0, 1).contiguous().to(weight.dtype)

    def __call__(self, rows: Tensor) -> Tensor:
        """[..., K] -> [..., N]."""
        flat = rows if rows.dim() == 2 else rows.reshape(-1, rows.shape[-1])
        if flat.shape[0] > INT4_MAX_ROWS:
            return super().__call__(rows)
        product: Tensor = _int4_product(flat, self._packed, GROUP_SIZE, self._scales_and_zeros)
        product = product if self.bias is None else product + self.bias
        return product if flat is rows else product.view(*rows.shape[:-1], -1)


class Int8Linear(DenseLinear):
    """y = x W^T + b with 8-bit weights and a scale per output for up to `max_rows` rows, dense weights for more."""

    max_rows = INT8_MAX_ROWS

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight, bias)
        self._levels, scales = quantise_int8(weight)
        self._scales = scales.to(weight.dtype)

    def __call__(self, rows: Tensor) -> Tensor:
        """[..., K] -> [..., N]."""
        flat = rows if rows.dim() == 2 else rows.reshape(-1, rows.shape[-1])
        if flat.shape[0] > self.max_rows:
            return super().__call__(rows)
        product = torch._weight_int8pack_mm(flat, self._levels, self._scales)
        product = product if self.bias is None else product + self.bias
        return product if flat is rows else product.view(*rows.shape[:-1], -1)


def quantise_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round each output's weights to 255 evenly spaced values around zero.

    Args:
        weight: shape [N, K].

    Returns:
        Levels -127..127, [N, K] int8; scales, [N] float32.
    """
    scales = torch.empty(weight.shape[0], device=weight.device)
    levels = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    blocks = (torch.split(tensor, _BLOCK_ROWS) for tensor in (weight.detach(), scales, levels))
    for rows, scale, level in zip(*blocks, strict=True):
        exact = rows.float()
        scale.copy_(exact.abs().amax(dim=1).clamp_(min=1e-12).div_(127))
        level.copy_(exact.div_(scale[:, None]).round_())
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
    block_groups = _BLOCK_GROUPS if weight.device.type == "cpu" else _GPU_BLOCK_GROUPS
    blocks = torch.split(weight.detach().reshape(-1, GROUP_SIZE), block_groups)
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


def convert_int4(linear: DenseLinear, *, is_head: bool = False) -> DenseLinear:
    """See `Conversion`: 8 bits for the output head, 4 for other layers, dense where the kernels rule out the shape."""
    if linear.weight.device.type == "cuda":
        from superdraft.decoding.model.linear_cuda import convert_int4_on_gpu  # it imports this module

        return convert_int4_on_gpu(linear, is_head=is_head)
    num_outputs, num_inputs = linear.weight.shape
    if is_head:
        return Int8Linear(linear.weight, linear.bias) if num_inputs % 32 == 0 else linear
    fits = num_outputs % 16 == 0 and num_inputs % GROUP_SIZE == 0
    return Int4Linear(linear.weight, linear.bias) if fits else linear
