"""Linear layers with quantised weights, whose products are taken with 8-bit activations.

The layout of the weights is described in `products.h`.
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from superdraft.decoding.model.native.library import load_kernels
from superdraft.decoding.model.native.matrix import Matrix
from superdraft.decoding.model.native.structs import MAX_PARTS, PANEL, Format, LinearStruct


def address(tensor: Tensor | None) -> int | None:
    """Where a tensor's numbers begin; None for no tensor."""
    return None if tensor is None else tensor.data_ptr()


def packed_bytes(matrix: Matrix, *, bits: int = 4) -> int:
    """Bytes of a matrix in the kernels' order; `bits` as in `NativeLinear`."""
    return -(-matrix.shape[0] // PANEL) * _panel_bytes(_format(matrix, bits), matrix.width)


def _format(matrix: Matrix, bits: int) -> int:
    own: int = load_kernels().superdraft_format_of(matrix.type.number)
    return own if own >= 0 else Format.INT4 if bits == 4 else Format.INT8


def _panel_bytes(kind: int, width: int) -> int:
    kernels = load_kernels()
    kernels.superdraft_panel_bytes.restype = ctypes.c_int64
    return int(kernels.superdraft_panel_bytes(kind, width))


class NativeLinear:
    """y = x W^T + b with quantised weights; activations are rounded to 8 bits in groups of 32.

    Weights that are quantised stay as they are, to the last bit; those in floating point are rounded: to 16 levels in
    groups of 32, or to 255 levels. A row's result does not depend on the other rows.

    Args:
        matrices: at most three that lie below one another, each [N', K]; N' a multiple of 16 of all but the last.
        bias: shape [N], or None.
        bits: of weights in floating point, 4 or 8.

    Raises:
        KernelsUnavailableError: there are no kernels for this machine.
    """

    def __init__(self, matrices: Sequence[Matrix], bias: Tensor | None = None, *, bits: int = 4) -> None:
        self._kernels = load_kernels()
        widths = {matrix.width for matrix in matrices}
        assert len(widths) == 1, "the matrices do not make one layer"
        assert len(matrices) <= MAX_PARTS, f"a layer has at most {MAX_PARTS} matrices"
        assert all(matrix.shape[0] % PANEL == 0 for matrix in matrices[:-1]), "a part would share a panel with the next"
        self.shape = (sum(matrix.shape[0] for matrix in matrices), widths.pop())
        padding = (0, -self.shape[0] % PANEL)
        self._bias = None if bias is None else torch.nn.functional.pad(bias.detach().float(), padding)
        self._panels: list[Tensor] = []
        self.struct = LinearStruct(bias=address(self._bias), num_outputs=self.shape[0], num_inputs=self.shape[1])
        for part, matrix in zip(self.struct.parts, matrices, strict=False):
            part.format = _format(matrix, bits)
            part.num_panels = -(-matrix.shape[0] // PANEL)
            self._panels.append(self._packed(matrix, part.format, part.num_panels))
            part.panels = self._panels[-1].data_ptr()

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights."""
        return sum(panels.nbytes for panels in self._panels)

    def _packed(self, matrix: Matrix, kind: int, num_panels: int) -> Tensor:
        panels = torch.empty(num_panels * _panel_bytes(kind, matrix.width), dtype=torch.uint8)
        order = torch.arange(matrix.num_rows, dtype=torch.int32) if matrix.order is None else matrix.order
        self._kernels.superdraft_pack(
            ctypes.byref(matrix.struct),
            ctypes.c_void_p(order.data_ptr()),
            len(order),
            kind,
            ctypes.c_void_p(panels.data_ptr()),
            torch.get_num_threads(),
        )
        return panels

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
