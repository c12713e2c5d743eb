"""A Llama-like decoder's forward in C++, with quantised linear layers; see `decoder.cpp`."""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from superdraft.decoding.model.fused_decoder import DecoderLayer, FusedDecoder
from superdraft.decoding.model.kv_cache import SlotKVCache
from superdraft.decoding.model.linear import Linear
from superdraft.decoding.model.native.library import load_kernels
from superdraft.decoding.model.native.linear import NativeLinear, address
from superdraft.decoding.model.native.structs import (
    LANES,
    MAX_SHARED,
    PHASES,
    BatchStruct,
    LayerStruct,
    LinearStruct,
    ModelStruct,
)
from superdraft.decoding.model.segments import Segment

_FIXED_ROTATIONS = ("default", "linear", "llama3", "yarn")
_UNLIMITED = 2**31 - 1


class NativeDecoder:
    """A Llama-like model's forward over the slots of a KV cache, on as many threads as torch uses.

    A row's logits do not depend on the other rows of the forward, up to the way in which its own prompt is cut.

    Args:
        decoder: a decoder that `supports` accepts.
        windows: per layer, how many positions a position sees, itself included; None: all.
        max_len: positions of the longest text.
    """

    def __init__(self, decoder: FusedDecoder, windows: Sequence[int | None], max_len: int) -> None:
        self._kernels = load_kernels()
        self._decoder = decoder
        # Computing a row's rotation takes a tenth of a step; some kinds depend on the length of the text.
        is_fixed = getattr(decoder.rotary, "rope_type", None) in _FIXED_ROTATIONS
        self._rotations = self._rotation(torch.arange(max_len)) if is_fixed else None
        self._addresses: tuple[SlotKVCache, Any, Any] | None = None
        self._kept_alive: list[Tensor] = []
        layers = (LayerStruct * len(decoder.layers))()
        for struct, layer, window in zip(layers, decoder.layers, windows, strict=True):
            query_norm, key_norm = layer.norms or (None, None)
            struct.input_norm, struct.mlp_norm = self._floats(layer.input_norm), self._floats(layer.mlp_norm)
            struct.query_norm, struct.key_norm = self._floats(query_norm), self._floats(key_norm)
            struct.qkv, struct.output, struct.gate_up, struct.down = map(_struct, _linears(layer))
            struct.window = window or _UNLIMITED
        self._layers = layers
        self._width, self._num_logits = decoder.norm.shape[0], _native(decoder.head).shape[0]
        self._model = ModelStruct(
            layers=ctypes.addressof(layers),
            norm=self._floats(decoder.norm),
            head=_struct(decoder.head),
            num_layers=len(layers),
            width=self._width,
            num_heads=decoder.num_heads,
            num_kv_heads=decoder.num_kv_heads,
            head_dim=decoder.head_dim,
            epsilon=decoder.epsilon,
            scaling=decoder.scaling,
        )
        self._memory = ctypes.c_void_p(self._new_memory())
        self._seconds: Tensor | None = None

    def _new_memory(self) -> int:
        self._kernels.superdraft_new_memory.restype = ctypes.c_void_p
        return int(self._kernels.superdraft_new_memory())

    def __del__(self) -> None:
        if hasattr(self, "_memory"):
            self._kernels.superdraft_delete_memory(self._memory)

    @staticmethod
    def supports(decoder: FusedDecoder) -> bool:
        """Whether the kernels can run this model: its layers are quantised, its shapes and activation are known."""
        linears = [linear for layer in decoder.layers for linear in _linears(layer)]
        return (
            all(isinstance(linear, NativeLinear) for linear in [*linears, decoder.head])
            and _has_like_layers(decoder)
            and decoder.activation is nn.functional.silu
            and decoder.head_dim % (2 * LANES) == 0
            and decoder.num_heads % decoder.num_kv_heads == 0
            and decoder.num_heads // decoder.num_kv_heads <= MAX_SHARED
        )

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
        if self._rotations is None:
            cosines, sines = self._rotation(place)
        else:
            cosines, sines = (table[place] for table in self._rotations)
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
            *(address(tensor) for tensor in (inputs, cosines, sines, *numbers)),
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
        return logits

    def measure(self) -> Tensor:
        """Add up the seconds of each of `PHASES` from now on, in the tensor returned, float64."""
        self._seconds = torch.zeros(len(PHASES), dtype=torch.float64)
        return self._seconds

    def _rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of N positions, float32, shape [N, Dh]; the sines include the sign of rotate-half."""
        cosines, sines = self._decoder.rotary(torch.empty(0), positions.unsqueeze(0))
        sines[..., : self._decoder.head_dim // 2].neg_()
        return cosines[0].contiguous(), sines[0].contiguous()

    def _floats(self, tensor: Tensor | None) -> int | None:
        """Address of a copy in float32 that lives as long as the decoder."""
        if tensor is None:
            return None
        self._kept_alive.append(tensor.detach().float().contiguous())
        return address(self._kept_alive[-1])


def _linears(layer: DecoderLayer) -> tuple[Linear, Linear, Linear, Linear]:
    return layer.qkv, layer.output, layer.gate_up, layer.down


def _has_like_layers(decoder: FusedDecoder) -> bool:
    """Whether every layer has the shapes that the kernels' working memory is made for."""
    width, head_dim = decoder.norm.shape[0], decoder.head_dim
    num_all = decoder.num_heads + 2 * decoder.num_kv_heads
    inner = _native(decoder.layers[0].down).shape[1]
    expected = [
        (num_all * head_dim, width),
        (width, decoder.num_heads * head_dim),
        (2 * inner, width),
        (width, inner),
    ]
    return all([_native(linear).shape for linear in _linears(layer)] == expected for layer in decoder.layers)


def _native(linear: Linear) -> NativeLinear:
    assert isinstance(linear, NativeLinear), "`supports` was not asked"
    return linear


def _struct(linear: Linear) -> LinearStruct:
    return _native(linear).struct


def _addresses(cache: SlotKVCache) -> tuple[ctypes.Array[ctypes.c_void_p], ctypes.Array[ctypes.c_void_p]]:
    """Where each layer's keys and values begin."""
    pointers = ctypes.c_void_p * len(cache.layers)
    return (
        pointers(*(layer.keys.data_ptr() for layer in cache.layers)),
        pointers(*(layer.values.data_ptr() for layer in cache.layers)),
    )
