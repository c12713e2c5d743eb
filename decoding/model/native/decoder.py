"""A Llama-like decoder's forward in C++, with quantised linear layers; see `decoder.cpp`."""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from superdraft.decoding.model.decoder_spec import DecoderSpec, LayerSpec
from superdraft.decoding.model.kv_cache import LayerShape, SlotKVCache
from superdraft.decoding.model.native.library import load_kernels
from superdraft.decoding.model.native.linear import NativeLinear, address, packed_bytes
from superdraft.decoding.model.native.structs import (
    GROUP,
    LANES,
    MAX_SHARED,
    PANEL,
    PHASES,
    BatchStruct,
    LayerStruct,
    LinearStruct,
    ModelStruct,
)
from superdraft.decoding.model.segments import Segment
from superdraft.decoding.progress import Stage

_UNLIMITED = 2**31 - 1
_NO_ROTATION = -1


class NativeDecoder:
    """A decoder's forward over the slots of a KV cache, on as many threads as torch uses.

    A row's logits do not depend on the other rows of the forward, up to the way in which its own prompt is cut.

    Args:
        spec: a decoder for which `problem_of` finds none. Its matrices are copied into the kernels' order.
        max_len: positions of the longest text.
        current: is told how many bytes are done.
    """

    def __init__(self, spec: DecoderSpec, max_len: int, current: Stage | None = None) -> None:
        self._kernels = load_kernels()
        self._tables = [
            torch.stack(parts) for parts in zip(*(rotation.tables(max_len) for rotation in spec.rotations), strict=True)
        ]  # cosines and sines, each [rotations, max_len, rotary_dim]
        self._addresses: tuple[SlotKVCache, Any, Any] | None = None
        self._kept_alive: list[Any] = []
        self._current = current
        self._logit_scale, self._logit_cap = spec.logit_scale, spec.logit_cap
        self.num_weight_bytes = 0
        layers = (LayerStruct * len(spec.layers))()
        for struct, layer in zip(layers, spec.layers, strict=True):
            self._fill(struct, layer)
        self._layers = layers
        self._num_logits = spec.head.shape[0]
        self._model = ModelStruct(
            layers=ctypes.addressof(layers),
            norm=self._floats(spec.norm),
            head=self._linear((spec.head,), None, bits=8),
            num_layers=len(layers),
            width=spec.embedding.width,
            num_heads=spec.num_heads,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            rotary_dim=self._tables[0].shape[-1] if self._tables else 0,
            activation=spec.activation,
            epsilon=spec.epsilon,
            scaling=spec.attention_scale,
            residual=spec.residual_scale,
        )
        self._memory = ctypes.c_void_p(self._new_memory())
        self._seconds: Tensor | None = None
        self._current = None

    def _fill(self, struct: LayerStruct, layer: LayerSpec) -> None:
        query_norm, key_norm = layer.head_norms or (None, None)
        struct.input_norm, struct.mlp_norm = self._floats(layer.input_norm), self._floats(layer.mlp_norm)
        struct.query_norm, struct.key_norm = self._floats(query_norm), self._floats(key_norm)
        struct.post_attention_norm = self._floats(layer.post_attention_norm)
        struct.post_mlp_norm = self._floats(layer.post_mlp_norm)
        struct.qkv = self._linear(layer.qkv, layer.qkv_bias)
        struct.output = self._linear((layer.output,), layer.output_bias)
        struct.gate_up, struct.down = self._linear(layer.gate_up, None), self._linear((layer.down,), None)
        struct.window = layer.window or _UNLIMITED
        struct.rotation = _NO_ROTATION if layer.rotation is None else layer.rotation

    def _linear(self, matrices: tuple[Any, ...], bias: Tensor | None, *, bits: int = 4) -> LinearStruct:
        linear = NativeLinear(matrices, bias, bits=bits)
        self._kept_alive.append(linear)
        self.num_weight_bytes += linear.num_bytes
        if self._current is not None:
            self._current.advance(linear.num_bytes)
        return linear.struct

    def _new_memory(self) -> int:
        self._kernels.superdraft_new_memory.restype = ctypes.c_void_p
        return int(self._kernels.superdraft_new_memory())

    def __del__(self) -> None:
        if hasattr(self, "_memory"):
            self._kernels.superdraft_delete_memory(self._memory)

    def __call__(
        self, embeddings: Tensor, cache: SlotKVCache, segments: Sequence[Segment], kept: Sequence[int]
    ) -> Tensor:
        """Run segments; their keys and values are written into the cache.

        Args:
            embeddings: inputs of all rows, segment after segment, shape [N, D].
            cache: in bfloat16, all layers of one shape.
            segments: the rows; those of one slot, if next to one another, read what they share together.
            kept: rows whose logits to return.

        Returns:
            Logits, float32, shape [len(kept), V].
        """
        inputs = embeddings.float().contiguous()
        positions = [position for segment in segments for position in segment.positions]
        place = torch.tensor(positions)
        rotations: list[Tensor | None] = [table[:, place].contiguous() for table in self._tables] or [None, None]
        numbers = [
            torch.tensor(part, dtype=torch.int32)
            for part in (
                [segment.slot for segment in segments],
                [segment.start for segment in segments],
                [segment.count for segment in segments],
                [segment.base for segment in segments],
                [cell for segment in segments for cell in segment.path],
                kept,
            )
        ]
        keys = cache.layers[0].keys
        if self._addresses is None or self._addresses[0] is not cache:
            assert all(part.stride() == keys.stride() for layer in cache.layers for part in (layer.keys, layer.values))
            self._addresses = cache, *_addresses(cache)
        logits = torch.empty(len(kept), self._num_logits)
        batch = BatchStruct(
            *(address(tensor) for tensor in (inputs, *rotations, *numbers)),
            *(ctypes.addressof(part) for part in self._addresses[1:]),
            logits=logits.data_ptr(),
            seconds=address(self._seconds),
            slot_stride=keys.stride(0),
            head_stride=keys.stride(1),
            num_rows=len(positions),
            num_segments=len(segments),
            num_kept=len(kept),
            num_threads=torch.get_num_threads(),
        )
        self._kernels.superdraft_forward(ctypes.byref(self._model), ctypes.byref(batch), self._memory)
        if self._logit_scale != 1:
            logits.mul_(self._logit_scale)
        return logits if self._logit_cap is None else logits.div_(self._logit_cap).tanh_().mul_(self._logit_cap)

    def measure(self) -> Tensor:
        """Add up the seconds of each of `PHASES` from now on, in the tensor returned, float64."""
        self._seconds = torch.zeros(len(PHASES), dtype=torch.float64)
        return self._seconds

    def _floats(self, tensor: Tensor | None) -> int | None:
        """Address of a copy in float32 that lives as long as the decoder."""
        if tensor is None:
            return None
        self._kept_alive.append(tensor.detach().float().contiguous())
        return address(self._kept_alive[-1])


def layer_shapes(spec: DecoderSpec) -> list[LayerShape]:
    """Keys and values of one position, layer by layer."""
    return [LayerShape(spec.num_kv_heads, spec.head_dim, spec.head_dim)] * len(spec.layers)


def num_weight_bytes(spec: DecoderSpec) -> int:
    """Bytes of the weights in the kernels' order."""
    matrices = [each for layer in spec.layers for each in (*layer.qkv, layer.output, *layer.gate_up, layer.down)]
    return sum(packed_bytes(matrix) for matrix in matrices) + packed_bytes(spec.head, bits=8)


def problem_of(spec: DecoderSpec) -> str | None:
    """Why the kernels cannot run a decoder; None: they can.

    Args:
        spec: the decoder; its shapes are checked, no weight is read.
    """
    width, head_dim, inner = spec.embedding.width, spec.head_dim, spec.layers[0].down.width
    rotary_dim = 2 * len(spec.rotations[0].frequencies) if spec.rotations else 0
    for what, number, factor in (
        ("the width", width, GROUP),
        ("the gated layer's width", inner, GROUP),
        ("a head's width", head_dim, 2 * LANES),
        ("the rotated part of a head", rotary_dim, 2 * LANES),
    ):
        if number % factor:
            return f"{what} is {number}, which is not a multiple of {factor}"
    if spec.num_heads % spec.num_kv_heads or spec.num_heads // spec.num_kv_heads > MAX_SHARED:
        return f"{spec.num_heads} heads of queries cannot share {spec.num_kv_heads} heads of keys"
    expected = {
        "qkv": ((spec.num_heads + 2 * spec.num_kv_heads) * head_dim, width),
        "output": (width, spec.num_heads * head_dim),
        "gate_up": (2 * inner, width),
        "down": (width, inner),
    }
    for number, layer in enumerate(spec.layers):
        parts = {"qkv": layer.qkv, "output": (layer.output,), "gate_up": layer.gate_up, "down": (layer.down,)}
        for name, matrices in parts.items():
            shape = (sum(matrix.shape[0] for matrix in matrices), matrices[0].width)
            if shape != expected[name] or any(matrix.width != shape[1] for matrix in matrices):
                return f"{name} of layer {number} has the shape {shape}, expected {expected[name]}"
            if any(matrix.shape[0] % PANEL for matrix in matrices[:-1]):
                return f"{name} of layer {number} has parts that are not multiples of {PANEL}"
    if spec.head.shape != spec.embedding.shape:
        return f"the head has the shape {spec.head.shape} and the embedding {spec.embedding.shape}"
    return None


def _addresses(cache: SlotKVCache) -> tuple[ctypes.Array[ctypes.c_void_p], ctypes.Array[ctypes.c_void_p]]:
    """Where each layer's keys and values begin."""
    pointers = ctypes.c_void_p * len(cache.layers)
    return (
        pointers(*(layer.keys.data_ptr() for layer in cache.layers)),
        pointers(*(layer.values.data_ptr() for layer in cache.layers)),
    )
