"""Linear layers in 4 or 8 bits whose products are taken with 8-bit activations.

The layout of the weights is described in `products.h`.
"""

import ctypes
from collections.abc import Mapping

import torch
from torch import Tensor

from superdraft.decoding.model.native.library import load_kernels
from superdraft.decoding.model.native.structs import INT4_BLOCK, INT8_BLOCK, PANEL, LinearStruct
from superdraft.decoding.model.quantise import GROUP_SIZE, quantise_int4, quantise_int8


def address(tensor: Tensor | None) -> int | None:
    """Where a tensor's numbers begin; None for no tensor."""
    return None if tensor is None else tensor.data_ptr()


class NativeLinear:
    """y = x W^T + b with quantised weights; activations are rounded to 8 bits in groups of 32.

    A row's result does not depend on the other rows.

    Args:
        weight: shape [N, K], K a multiple of 32.
        bias: shape [N], or None.
        bits: 4: each group of 32 weights has a scale and a minimum; 8: each output has a scale.

    Raises:
        KernelsUnavailableError: there are no kernels for this machine.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, bits: int) -> None:
        self._kernels = load_kernels()
        num_outputs, num_inputs = weight.shape
        self.shape = (num_outputs, num_inputs)
        num_panels = -(-num_outputs // PANEL)
        padding = (0, num_panels * PANEL - num_outputs)
        self._bias = None if bias is None else torch.nn.functional.pad(bias.detach().float(), padding)
        self._scales: Tensor | None = None
        num_blocks = num_panels * (num_inputs // GROUP_SIZE)
        if bits == 4:
            self._panels = torch.empty(num_blocks * INT4_BLOCK, dtype=torch.uint8)
            self._pack_int4(weight)
        else:
            self._panels = torch.empty(num_blocks * INT8_BLOCK, dtype=torch.uint8)
            levels, scales = quantise_int8(weight)
            self._scales = torch.nn.functional.pad(scales, padding)
            self._kernels.superdraft_pack_int8(
                ctypes.c_void_p(levels.data_ptr()),
                num_outputs,
                num_inputs,
                ctypes.c_void_p(self._panels.data_ptr()),
                torch.get_num_threads(),
            )
        self.struct = self._described(bits)

    def _described(self, bits: int) -> LinearStruct:
        return LinearStruct(address(self._panels), address(self._scales), address(self._bias), *self.shape, bits)

    def parts(self) -> dict[str, Tensor]:
        """What the layer consists of, by name; see `from_parts`."""
        found = {"panels": self._panels, "scales": self._scales, "bias": self._bias}
        sizes = torch.tensor([*self.shape, self.struct.bits])
        return {"sizes": sizes} | {name: part for name, part in found.items() if part is not None}

    @classmethod
    def from_parts(cls, parts: Mapping[str, Tensor]) -> "NativeLinear":
        """A layer from the parts of another one.

        Raises:
            KeyError, ValueError: these are not the parts of a layer.
            KernelsUnavailableError: there are no kernels for this machine.
        """
        num_outputs, num_inputs, bits = parts["sizes"].tolist()
        num_panels = -(-num_outputs // PANEL)
        num_blocks = num_panels * (num_inputs // GROUP_SIZE)
        layer = cls.__new__(cls)
        layer._kernels = load_kernels()
        layer._panels, layer._scales, layer._bias = parts["panels"], parts.get("scales"), parts.get("bias")
        found = [None if part is None else part.shape for part in (layer._panels, layer._scales, layer._bias)]
        padded = (num_panels * PANEL,)
        expected = (num_blocks * (INT4_BLOCK if bits == 4 else INT8_BLOCK),)
        if (
            found[0] != expected
            or found[1] not in ((None,) if bits == 4 else (padded,))
            or found[2] not in (None, padded)
        ):
            raise ValueError(f"parts of the shapes {found} do not make a layer of {num_outputs} x {num_inputs}")
        layer.shape = (num_outputs, num_inputs)
        layer.struct = layer._described(bits)
        return layer

    def _pack_int4(self, weight: Tensor) -> None:
        levels, scales, zeros = quantise_int4(weight)
        minima = (zeros - 8 * scales).half().contiguous()
        levels, scales = levels.to(torch.uint8), scales.half().contiguous()
        self._kernels.superdraft_pack_int4(
            *(ctypes.c_void_p(part.data_ptr()) for part in (levels, scales, minima)),
            *self.shape,
            ctypes.c_void_p(self._panels.data_ptr()),
            torch.get_num_threads(),
        )

    def __call__(self, rows: Tensor) -> Tensor:
        """[..., K] -> [..., N], in the type of `rows`."""
        flat = rows.reshape(-1, rows.shape[-1]).float().contiguous()
        product = torch.empty(flat.shape[0], self.shape[0])
        self._kernels.superdraft_linear(
            ctypes.byref(self.struct),
            ctypes.c_void_p(flat.data_ptr()),
            ctypes.c_int64(flat.shape[0]),
            ctypes.c_void_p(product.data_ptr()),
            torch.get_num_threads(),
        )
        return product.to(rows.dtype).view(*rows.shape[:-1], self.shape[0])
