"""GGUF files: what they say, and where their tensors are. The file is mapped; tensors are read where they lie.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. gguf-py reads it too, but takes 5 to 15 s for the
vocabularies of the models that we serve.
"""

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from superdraft.decoding.errors import BrokenModelError, UnsupportedModelError
from superdraft.decoding.model.native.matrix import MATRIX_TYPES, Matrix

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_NUMBERS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_STRING, _ARRAY = 8, 9
_MAX_DEPTH = 4  # of arrays in arrays
_MAX_DIMENSIONS = 4
_F32, _F16 = 0, 1


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor of a file.

    Attributes:
        name: its name.
        type: the number of its type, one of `MATRIX_TYPES`.
        shape: rows come first: [N, K] is N rows of K numbers.
        offset: its first byte in the file.
        num_bytes: its size; 0 if its type is not in `MATRIX_TYPES`.
    """

    name: str
    type: int
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


class GgufFile:
    """A mapped file.

    Args:
        path: the file.

    Attributes:
        path: the file.
        metadata: key -> number, text, list of texts, or array of numbers.
        tensors: name -> tensor.

    Raises:
        BrokenModelError: it is no GGUF file, is damaged or ends too early.
        UnsupportedModelError: it is of another version.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            if path.stat().st_size < len(_MAGIC):
                raise BrokenModelError(f"{path} is not a GGUF file: it is empty.")
            self._memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        cursor = _Cursor(self._memory, path)
        if cursor.take(4) != _MAGIC:
            raise BrokenModelError(f"{path} is not a GGUF file: it does not begin with {_MAGIC.decode()}.")
        version = cursor.number("<I")
        if version not in _VERSIONS:
            raise UnsupportedModelError(
                f"{path} is a GGUF file of version {version}; versions {_VERSIONS[0]} and {_VERSIONS[1]} are read, "
                "with the bytes of numbers in little-endian order."
            )
        num_tensors, num_keys = cursor.number("<Q"), cursor.number("<Q")
        self.metadata: Mapping[str, Any] = dict(cursor.entry() for _ in range(cursor.checked(num_keys, 13)))
        found = [cursor.tensor() for _ in range(cursor.checked(num_tensors, 24))]
        alignment = self.metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment <= 0:
            raise BrokenModelError(f"{path} is damaged: general.alignment is {alignment!r}, expected a number above 0.")
        data = -(-cursor.place // alignment) * alignment
        self.tensors = {name: self._placed(name, kind, shape, data + offset) for name, kind, shape, offset in found}
        if len(self.tensors) != num_tensors:
            raise BrokenModelError(f"{path} is damaged: two tensors have the same name.")

    def _placed(self, name: str, kind: int, shape: tuple[int, ...], offset: int) -> GgufTensor:
        about = MATRIX_TYPES.get(kind)
        if about is None:  # no error yet: llama.cpp may run the file, with the tokenizer that is read here
            return GgufTensor(name, kind, shape, offset, 0)
        if shape[-1] % about.block_size:
            raise BrokenModelError(
                f"{self.path} is damaged: the rows of tensor {name} have {shape[-1]} numbers, and blocks of "
                f"{about.name} have {about.block_size}."
            )
        num_bytes = math.prod(shape) // about.block_size * about.block_bytes
        if offset + num_bytes > len(self._memory):
            raise BrokenModelError(
                f"{self.path} is damaged or incomplete: tensor {name} ends at byte {offset + num_bytes}, and the file "
                f"has {len(self._memory)}."
            )
        return GgufTensor(name, kind, shape, offset, num_bytes)

    def _known(self, name: str) -> GgufTensor:
        tensor = self.tensors[name]
        if tensor.type not in MATRIX_TYPES:
            known = ", ".join(each.name for each in MATRIX_TYPES.values())
            raise UnsupportedModelError(
                f"tensor {name} of {self.path} is of type {tensor.type}; these can be read: {known}. Use --runner "
                "llamacpp, or a file that is quantised otherwise."
            )
        return tensor

    def matrix(self, name: str) -> Matrix:
        """A tensor [N, K], where it lies in the file.

        Raises:
            KeyError: there is no such tensor.
            BrokenModelError: it has another number of dimensions.
            UnsupportedModelError: its type is not in `MATRIX_TYPES`.
        """
        tensor = self._known(name)
        if len(tensor.shape) != 2:
            raise BrokenModelError(
                f"tensor {name} of {self.path} has the shape {tensor.shape}, expected two dimensions."
            )
        memory = torch.frombuffer(self._memory, dtype=torch.uint8, count=tensor.num_bytes, offset=tensor.offset)
        return Matrix(memory, MATRIX_TYPES[tensor.type], tensor.shape[0], tensor.shape[1])

    def vector(self, name: str) -> Tensor:
        """A tensor [K] of floating point, float32.

        Raises:
            KeyError: there is no such tensor.
            BrokenModelError: it has another number of dimensions, or is not of type F32 or F16.
            UnsupportedModelError: its type is not in `MATRIX_TYPES`.
        """
        tensor = self._known(name)
        if len(tensor.shape) != 1 or tensor.type not in (_F32, _F16):
            raise BrokenModelError(
                f"tensor {name} of {self.path} has the shape {tensor.shape} and the type "
                f"{MATRIX_TYPES[tensor.type].name}, expected one dimension of F32 or F16."
            )
        dtype = np.float32 if tensor.type == _F32 else np.float16
        numbers = np.frombuffer(self._memory, dtype, tensor.shape[0], tensor.offset)
        return torch.from_numpy(numbers.astype(np.float32))

    def forget_pages(self) -> None:
        """Give back the memory of what has been read of the file; it is read again where it is needed."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._memory.madvise(mmap.MADV_DONTNEED)


class _Cursor:
    """Reads a file's head from front to back."""

    def __init__(self, memory: mmap.mmap, path: Path) -> None:
        self.place = 0
        self._memory, self._path = memory, path

    def take(self, count: int) -> bytes:
        end = self.place + count
        if end > len(self._memory):
            raise self._too_short()
        found = self._memory[self.place : end]
        self.place = end
        return found

    def number(self, form: str) -> int:
        (value,) = struct.unpack(form, self.take(struct.calcsize(form)))
        return int(value)

    def checked(self, count: int, least_bytes: int) -> int:
        """A number of items, each of at least so many bytes, that can be in the rest of the file."""
        if count * least_bytes > len(self._memory) - self.place:
            raise self._too_short()
        return count

    def text(self) -> str:
        return self.take(self.number("<Q")).decode("utf-8", errors="replace")

    def entry(self) -> tuple[str, Any]:
        key = self.text()
        return key, self._value(self.number("<I"), key, 0)

    def _value(self, kind: int, key: str, depth: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind in _NUMBERS:
            form = np.dtype(_NUMBERS[kind])
            return np.frombuffer(self.take(form.itemsize), form)[0].item()
        if kind != _ARRAY or depth == _MAX_DEPTH:
            raise BrokenModelError(f"{self._path} is damaged: the value of {key!r} is of the unknown type {kind}.")
        kind, count = self.number("<I"), self.number("<Q")
        if kind in _NUMBERS:
            form = np.dtype(_NUMBERS[kind])
            return np.frombuffer(self.take(self.checked(count, form.itemsize) * form.itemsize), form)
        if kind == _STRING:
            return self._texts(self.checked(count, 8))
        return [self._value(kind, key, depth + 1) for _ in range(self.checked(count, 8))]

    def _texts(self, count: int) -> list[str]:
        memory, place, end = self._memory, self.place, len(self._memory)
        length_of = struct.Struct("<Q").unpack_from
        texts = []
        for _ in range(count):
            begin = place + 8
            if begin > end:
                raise self._too_short()
            place = begin + length_of(memory, place)[0]
            if place > end:
                raise self._too_short()
            texts.append(memory[begin:place].decode("utf-8", errors="replace"))
        self.place = place
        return texts

    def tensor(self) -> tuple[str, int, tuple[int, ...], int]:
        """Name, type, shape, and offset in the data."""
        name, num_dimensions = self.text(), self.number("<I")
        if not 1 <= num_dimensions <= _MAX_DIMENSIONS:
            raise BrokenModelError(
                f"{self._path} is damaged: tensor {name!r} has {num_dimensions} dimensions, expected 1 to "
                f"{_MAX_DIMENSIONS}."
            )
        shape = tuple(self.number("<Q") for _ in range(num_dimensions))[::-1]
        if 0 in shape:
            raise BrokenModelError(f"{self._path} is damaged: tensor {name!r} has the shape {shape}.")
        return name, self.number("<I"), shape, self.number("<Q")

    def _too_short(self) -> BrokenModelError:
        return BrokenModelError(
            f"{self._path} is damaged or incomplete: its head does not end within the file's {len(self._memory)} bytes."
        )
