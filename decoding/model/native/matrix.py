"""Matrices where they lie in memory: as blocks of a GGUF file, or in floating point."""

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from superdraft.decoding.model.native.library import load_kernels
from superdraft.decoding.model.native.structs import MatrixStruct


@dataclass(frozen=True, slots=True)
class MatrixType:
    """A type of numbers in a GGUF file.

    Attributes:
        name: its name in GGML.
        number: its number there.
        block_size: numbers of one block.
        block_bytes: bytes of one block.
    """

    name: str
    number: int
    block_size: int
    block_bytes: int


MATRIX_TYPES: Mapping[int, MatrixType] = {
    number: MatrixType(name, number, block_size, block_bytes)
    for name, number, block_size, block_bytes in (
        ("F32", 0, 1, 4),
        ("F16", 1, 1, 2),
        ("Q4_0", 2, 32, 18),
        ("Q4_1", 3, 32, 20),
        ("Q5_0", 6, 32, 22),
        ("Q5_1", 7, 32, 24),
        ("Q8_0", 8, 32, 34),
        ("Q2_K", 10, 256, 84),
        ("Q3_K", 11, 256, 110),
        ("Q4_K", 12, 256, 144),
        ("Q5_K", 13, 256, 176),
        ("Q6_K", 14, 256, 210),
        ("IQ4_NL", 20, 32, 18),
        ("BF16", 30, 1, 2),
    )
}
"""The types that can be read, by number: `Type` in `packing.h`."""

_OF_TENSORS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 30}


@dataclass(frozen=True, slots=True, eq=False)
class Matrix:
    """N rows of K numbers each.

    Attributes:
        memory: the bytes of all rows, [bytes] uint8, which the matrix keeps alive.
        type: the numbers' type.
        num_rows: rows in memory.
        width: K, a multiple of 32.
        order: the rows that the matrix has, in its order, [N] int32; None: all, as they are.
    """

    memory: Tensor
    type: MatrixType
    num_rows: int
    width: int
    order: Tensor | None = None

    @classmethod
    def of(cls, tensor: Tensor) -> "Matrix":
        """The matrix of a tensor [N, K] in float32, float16 or bfloat16; shares its memory where it can."""
        tensor = tensor.detach().contiguous()
        return cls(tensor.view(torch.uint8).flatten(), MATRIX_TYPES[_OF_TENSORS[tensor.dtype]], *tensor.shape)

    @property
    def shape(self) -> tuple[int, int]:
        """N and K."""
        return (self.num_rows if self.order is None else len(self.order)), self.width

    @property
    def struct(self) -> MatrixStruct:
        """What the kernels read."""
        row_bytes = self.width // self.type.block_size * self.type.block_bytes
        return MatrixStruct(self.memory.data_ptr(), row_bytes, self.type.number, self.width)

    def rows_in(self, order: Tensor) -> "Matrix":
        """The matrix of some rows of this one, by their numbers, [N'] int32."""
        own = self.order
        return replace(self, order=(order if own is None else own[order.long()]).to(torch.int32).contiguous())

    def split(self, sizes: Sequence[int]) -> "tuple[Matrix, ...]":
        """Matrices of so many rows each, which lie below one another in this one."""
        numbers = torch.arange(sum(sizes), dtype=torch.int32)
        return tuple(self.rows_in(part) for part in torch.split(numbers, list(sizes)))

    def numbers(self, rows: Sequence[int] | None = None) -> Tensor:
        """Some rows as numbers, exactly, float32, [R, K]; None: all."""
        wanted = torch.arange(self.shape[0]) if rows is None else torch.tensor(rows, dtype=torch.int64)
        if self.order is not None:
            wanted = self.order[wanted].long()
        found = torch.empty(len(wanted), self.width)
        load_kernels().superdraft_dequantise(
            ctypes.byref(self.struct),
            ctypes.c_void_p(wanted.data_ptr()),
            ctypes.c_int64(len(wanted)),
            ctypes.c_void_p(found.data_ptr()),
            torch.get_num_threads() if len(wanted) > 64 else 1,
        )
        return found
