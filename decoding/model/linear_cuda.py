"""Weight format int4 on a GPU, using torch's kernels; each layer checks its kernel when it is built.

The kernels are `_weight_int4pack_mm` (bfloat16, compute capability 8.0 or higher) and, in builds of torch that have it
for GPUs, `_weight_int8pack_mm`. This code was written without a GPU to run it on. Each new layer therefore compares one
product with that of its rounded weights, so a model whose weights are packed in the wrong order is never served.
"""

import torch
from torch import Tensor, nn

from superdraft.decoding.errors import UnsupportedModelError
from superdraft.decoding.model.linear import DenseLinear
from superdraft.decoding.model.quantise import GROUP_SIZE, quantise_int4, quantise_int8

GPU_MAX_ROWS = 16  # one tile of the 4-bit kernel; which number is best has not been measured
_TOLERANCE = 0.02  # of the largest result: bfloat16 rounds each weight and each result to 8 bits
_OUTPUTS_TILE = 8
_INPUTS_TILE = 16
_INNER_TILES = (8, 4, 2)  # adjacent tiles of inputs; the more there are, the more are read at once


class Int4GpuLinear(DenseLinear):
    """y = x W^T + b with 4-bit weights for up to `GPU_MAX_ROWS` rows, for bfloat16 on a GPU.

    Each group of 32 weights has a scale and a zero point: w = scale * (q - 8) + zero, q = 0..15.

    Raises:
        UnsupportedModelError: the kernel's product is not that of these weights.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight, bias)
        levels, scales, zeros = quantise_int4(weight)
        scales, zeros = scales.to(weight.dtype), zeros.to(weight.dtype)
        self._packed = torch.ops.aten._convert_weight_to_int4pack(pack_levels(levels), inner_tiles(weight.shape[1]))
        self._scales_and_zeros = torch.stack([scales, zeros], dim=-1).transpose(0, 1).contiguous()
        groups = levels.sub_(8).float().view(*scales.shape, GROUP_SIZE)
        _check(self, groups.mul_(scales.unsqueeze(-1)).add_(zeros.unsqueeze(-1)).flatten(1))

    def __call__(self, rows: Tensor) -> Tensor:
        """[..., K] -> [..., N]."""
        flat = rows.reshape(-1, rows.shape[-1])
        if flat.shape[0] > GPU_MAX_ROWS:
            return super().__call__(rows)
        product: Tensor = torch.ops.aten._weight_int4pack_mm(
            flat.contiguous(), self._packed, GROUP_SIZE, self._scales_and_zeros
        )
        product = product if self.bias is None else product + self.bias
        return product.view(*rows.shape[:-1], product.shape[-1])


class Int8GpuLinear(DenseLinear):
    """y = x W^T + b with 8-bit weights and a scale per output for up to `GPU_MAX_ROWS` rows, on a GPU.

    Raises:
        UnsupportedModelError: the kernel's product is not that of these weights.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight, bias)
        self._levels, scales = quantise_int8(weight)
        self._scales = scales.to(weight.dtype)
        _check(self, self._levels * self._scales.float().unsqueeze(1))

    def __call__(self, rows: Tensor) -> Tensor:
        """[..., K] -> [..., N]."""
        flat = rows.reshape(-1, rows.shape[-1])
        if flat.shape[0] > GPU_MAX_ROWS:
            return super().__call__(rows)
        product = torch._weight_int8pack_mm(flat, self._levels, self._scales)
        product = product if self.bias is None else product + self.bias
        return product.view(*rows.shape[:-1], product.shape[-1])


def pack_levels(levels: Tensor) -> Tensor:
    """Pack pairs of levels into bytes, the first of a pair in the upper half: 0..15, [N, K] -> uint8, [N, K / 2]."""
    halves = levels.to(torch.uint8).view(levels.shape[0], -1, 2)
    return (halves[:, :, 0] << 4) | halves[:, :, 1]


def inner_tiles(num_inputs: int) -> int:
    """How many adjacent tiles of 16 inputs the kernel packs together: the most that divide K, a multiple of 32."""
    return next(tiles for tiles in _INNER_TILES if num_inputs % (tiles * _INPUTS_TILE) == 0)


def convert_int4_on_gpu(linear: DenseLinear, *, is_head: bool = False) -> DenseLinear:
    """`linear_int4.convert_int4` on a GPU; the output head stays dense if torch has no 8-bit kernel for GPUs.

    Raises:
        UnsupportedModelError: the kernel rejects the weights or the GPU, or its product is wrong.
    """
    num_outputs, num_inputs = linear.weight.shape
    if num_outputs % _OUTPUTS_TILE or num_inputs % GROUP_SIZE or (is_head and not has_int8_kernel()):
        return linear
    kind = Int8GpuLinear if is_head else Int4GpuLinear
    try:
        return kind(linear.weight, linear.bias)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UnsupportedModelError(
            f"dtype int4 does not work on this GPU with torch {torch.__version__}: {reason}. Use dtype bfloat16."
        ) from error


def has_int8_kernel() -> bool:
    """Whether this build of torch can multiply by 8-bit weights on a GPU."""
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key("aten::_weight_int8pack_mm", "CUDA"))


def _check(linear: DenseLinear, rounded: Tensor) -> None:
    """Compare the layer's product with that of the rounded weights [N, K], float32, for one random row."""
    weight, bias = linear.weight, linear.bias
    generator = torch.Generator(weight.device).manual_seed(0)
    row = torch.randn(1, weight.shape[1], generator=generator, device=weight.device).to(weight.dtype)
    expected = nn.functional.linear(row.float(), rounded, None if bias is None else bias.float())
    error = float((linear(row).float() - expected).abs().max() / expected.abs().max())
    if not error <= _TOLERANCE:  # also true of NaN
        raise UnsupportedModelError(
            f"{type(linear).__name__}: torch {torch.__version__} does not multiply by the weights it was given (off by "
            f"{error:.2g} of the largest result, allowed {_TOLERANCE}). Use dtype bfloat16."
        )
