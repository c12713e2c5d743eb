"""The parts of a `.gguf` file that the runner reads itself: token embeddings, and the shapes of keys and values."""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from superdraft.decoding.errors import BrokenModelError
from superdraft.decoding.model.kv_cache import LayerShape

_EMBEDDINGS = "token_embd.weight"
_LONGEST_ARRAY = 4096  # more layers than any model has


class _ShortReader(gguf.GGUFReader):  # type: ignore[misc]
    """Skips long arrays, which are the vocabulary's. The reader of `gguf` takes seconds for them, item by item."""

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        if raw_type == gguf.GGUFValueType.ARRAY and self.byte_order == "I":
            kind, count = int(self._get(orig_offs, np.uint32)[0]), int(self._get(orig_offs + 4, np.uint64)[0])
            scalar = self.gguf_scalar_to_np.get(gguf.GGUFValueType(kind))
            stop = orig_offs + 12
            if count > _LONGEST_ARRAY and scalar is not None:
                stop += count * np.dtype(scalar).itemsize
                return stop - orig_offs, [], [], [gguf.GGUFValueType.ARRAY]
            if count > _LONGEST_ARRAY and kind == gguf.GGUFValueType.STRING:
                data = memoryview(self.data)
                for _ in range(count):
                    stop += 8 + struct.unpack_from("<Q", data, stop)[0]
                return stop - orig_offs, [], [], [gguf.GGUFValueType.ARRAY]
        return super()._get_field_parts(orig_offs, raw_type)


class GgufFile:
    """A mapped file: a row of the embedding matrix is read when it is needed.

    Args:
        path: the file.
        shape: of the embedding matrix, [V, D].

    Raises:
        BrokenModelError: it has no token embeddings of this shape, or in a format that cannot be read row by row.
    """

    def __init__(self, path: Path, shape: tuple[int, int]) -> None:
        reader = _ShortReader(path)
        self._fields = {name: field for name, field in reader.fields.items() if not name.startswith("tokenizer.")}
        found = next((tensor for tensor in reader.tensors if tensor.name == _EMBEDDINGS), None)
        if found is None:
            raise BrokenModelError(f"{path} has no tensor {_EMBEDDINGS}.")
        own = tuple(int(size) for size in reversed(found.shape))
        if own != shape:  # llama.cpp reads as many numbers as it expects
            raise BrokenModelError(f"{path} has embeddings of the shape {own} instead of {shape}.")
        self._rows, self._format = found.data, found.tensor_type
        try:
            self.embeddings([0])
        except NotImplementedError as error:
            raise BrokenModelError(f"{path} has token embeddings of an unknown format: {error}.") from error

    def embeddings(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Embeddings of N tokens, as the file has them, shape [N, D]."""
        rows = self._rows[list(token_ids)]
        found: NDArray[np.float32] = np.asarray(gguf.dequantize(rows, self._format), dtype=np.float32)
        return found

    def layer_shapes(self) -> list[LayerShape]:
        """Keys and values of one position, layer by layer."""
        num_layers, num_heads = int(self._value("block_count")), self._value("attention.head_count")
        most_heads = max(num_heads) if isinstance(num_heads, list) else int(num_heads)
        per_layer = self._value("attention.head_count_kv", num_heads)
        heads = per_layer if isinstance(per_layer, list) else [int(per_layer)] * num_layers
        width = int(self._value("embedding_length")) // most_heads
        key_dim, value_dim = (int(self._value(f"attention.{part}_length", width)) for part in ("key", "value"))
        return [LayerShape(num, key_dim, value_dim) for num in heads]

    def _value(self, key: str, default: Any = None) -> Any:
        """A value of the model's own metadata.

        Raises:
            BrokenModelError: it is missing.
        """
        architecture = self._fields["general.architecture"].contents()
        field = self._fields.get(f"{architecture}.{key}")
        if field is None and default is None:
            raise BrokenModelError(f"the GGUF file says nothing about {architecture}.{key}.")
        return default if field is None else field.contents()
