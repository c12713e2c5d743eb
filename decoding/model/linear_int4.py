"""Weight format int4: linear layers in 4 bits (8 for the output head).

A decode step of a few rows takes as long as reading the weights, so fewer bits per weight make it faster. With more
rows, arithmetic dominates, and 8-bit activations make that faster too: the layers are those of `native`. Where there
are no native kernels, torch's `_weight_int4pack_mm_for_cpu` and `_weight_int8pack_mm` are used.
"""

import torch
from torch import Tensor

from superdraft.decoding.model.linear import DenseLinear, Linear
from superdraft.decoding.model.native.library import has_kernels
from superdraft.decoding.model.native.linear import NativeLinear
from superdraft.decoding.model.native.matrix import Matrix
from superdraft.decoding.model.quantise import GROUP_SIZE, quantise_int4, quantise_int8

_int4_product = torch.ops.aten._weight_int4pack_mm_for_cpu.default  # looked up once: it is called 120 times per step


class Int4Linear:
    """y = x W^T + b with 4-bit weights, by torch's kernel.

    Each group of 32 weights has a scale and a zero point: w = scale * (q - 8) + zero, q = 0..15.

    Args:
        weight: shape [N, K], N a multiple of 16 and K of 32.
        bias: shape [N], or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.bias = bias
        levels, scales, zeros = quantise_int4(weight)
        self._packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels, 1)
        self._scales_and_zeros = torch.stack([scales, zeros], dim=-1).transpose(0, 1).contiguous().to(weight.dtype)

    def __call__(self, rows: Tensor) -> Tensor:
        """[..., K] -> [..., N]."""
        flat = rows if rows.dim() == 2 else rows.reshape(-1, rows.shape[-1])
        product: Tensor = _int4_product(flat, self._packed, GROUP_SIZE, self._scales_and_zeros)
        product = product if self.bias is None else product + self.bias
        return product if flat is rows else product.view(*rows.shape[:-1], product.shape[-1])


class Int8Linear:
    """y = x W^T + b with 8-bit weights and a scale per output, by torch's kernel.

    Args:
        weight: shape [N, K], K a multiple of 32.
        bias: shape [N], or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.bias = bias
        self._levels, scales = quantise_int8(weight)
        self._scales = scales.to(weight.dtype)

    def __call__(self, rows: Tensor) -> Tensor:
        """[..., K] -> [..., N]."""
        flat = rows if rows.dim() == 2 else rows.reshape(-1, rows.shape[-1])
        product = torch._weight_int8pack_mm(flat, self._levels, self._scales)
        product = product if self.bias is None else product + self.bias
        return product if flat is rows else product.view(*rows.shape[:-1], product.shape[-1])


def convert_int4(linear: DenseLinear, *, is_head: bool = False) -> Linear:
    """See `Conversion`: 8 bits for the output head, 4 for other layers, dense where the kernels rule out the shape."""
    num_outputs, num_inputs = linear.weight.shape
    if num_inputs % GROUP_SIZE:
        return linear
    if has_kernels():
        return NativeLinear([Matrix.of(linear.weight)], linear.bias, bits=8 if is_head else 4)
    if is_head:
        return Int8Linear(linear.weight, linear.bias)
    return Int4Linear(linear.weight, linear.bias) if num_outputs % 16 == 0 else linear
