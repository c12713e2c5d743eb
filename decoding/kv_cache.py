"""Keys and values of all running sequences, in slots of one fixed block of memory.

Index arithmetic, all ranges half-open::

    pool      keys and values of one layer          [num_slots, H, max_len, Dh]
    slot      one branch's row of the pool; its k drafts share it
    active    slots [0, num_active) are those of the running sequences, so that a decode step over all of them reads
              the pool through a view and copies nothing; whoever ends a sequence moves the last one into the hole
    length    positions [0, length) of a slot hold real keys and values; what lies beyond is masked
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from superdraft.decoding.errors import UnsupportedModelError


@dataclass(frozen=True, slots=True)
class LayerShape:
    """One layer's keys [H, Dk] and values [H, Dv] for one position."""

    num_heads: int
    key_dim: int
    value_dim: int


def probe_layer_shapes(model: PreTrainedModel) -> list[LayerShape]:
    """What each layer writes into a KV cache, found out with one token: true for any architecture.

    Raises:
        UnsupportedModelError: a layer keeps something other than keys and values.
    """
    cache = DynamicCache()
    with torch.inference_mode():
        token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
        model(input_ids=token, past_key_values=cache, use_cache=True)
    shapes = []
    for index, layer in enumerate(cache.layers):
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is None or values is None or keys.dim() != 4 or keys.shape[2] != 1:
            raise UnsupportedModelError(
                f"Layer {index} of this {type(model).__name__} keeps no keys and values for each position, so its "
                "drafts cannot share a KV cache. Use a model with attention in all layers."
            )
        shapes.append(LayerShape(keys.shape[1], keys.shape[3], values.shape[3]))
    if not shapes:
        raise UnsupportedModelError(
            f"{type(model).__name__} does not write to a KV cache. Use a causal model with attention."
        )
    return shapes


@dataclass(slots=True)
class _Window:
    """The part of the pool that the forward in progress writes and reads; shared by all layers."""

    first_slot: int = 0
    starts: Tensor | None = None  # [B], on the device
    start: int = 0  # of the only row, when there is one
    num_rows: int = 0
    read_length: int = 0


class _SlotLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers has no types
    """One layer's pool. transformers calls `update` from inside each attention layer."""

    is_sliding = False

    def __init__(self, shape: LayerShape, num_slots: int, max_len: int, window: _Window, like: Tensor) -> None:
        super().__init__()
        size = (num_slots, shape.num_heads, max_len)
        # Zeros and not empty memory: a NaN beyond a slot's length would survive the mask.
        self.keys: Tensor = torch.zeros(*size, shape.key_dim, dtype=like.dtype, device=like.device)
        self.values: Tensor = torch.zeros(*size, shape.value_dim, dtype=like.dtype, device=like.device)
        self.is_initialized = True
        self._window = window

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing is lazy here; required by the interface."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Write [B, H, T, Dh] at each row's start; give back what those rows may read, [B, H, read_length, Dh]."""
        window = self._window
        slots = slice(window.first_slot, window.first_slot + window.num_rows)
        if window.num_rows == 1:
            positions = slice(window.start, window.start + key_states.shape[2])
            self.keys[slots, :, positions] = key_states
            self.values[slots, :, positions] = value_states
        else:
            rows = torch.arange(slots.start, slots.stop, device=key_states.device)
            self.keys[rows, :, window.starts] = key_states[:, :, 0]
            self.values[rows, :, window.starts] = value_states[:, :, 0]
        return self.keys[slots, :, : window.read_length], self.values[slots, :, : window.read_length]

    def get_seq_length(self) -> int:
        return self._window.start

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:  # noqa: ARG002 (the interface's)
        return self._window.read_length, 0

    def get_max_length(self) -> int:
        return int(self.keys.shape[2])

    get_max_cache_shape = get_max_length  # its name before transformers 5.20


class SlotKVCache(Cache):  # type: ignore[misc]  # transformers has no types
    """A KV cache of `num_slots` slots, allocated once.

    Args:
        shapes: one entry a layer.
        num_slots: slots, one a branch.
        max_len: positions of a slot.
        like: gives dtype and device.
    """

    def __init__(self, shapes: list[LayerShape], num_slots: int, max_len: int, like: Tensor) -> None:
        self.num_slots = num_slots
        self.max_len = max_len
        self._window = _Window()
        super().__init__(layers=[_SlotLayer(shape, num_slots, max_len, self._window, like) for shape in shapes])

    @property
    def num_bytes(self) -> int:
        """Memory of the whole pool."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.layers)

    @property
    def read_length(self) -> int:
        """Positions of every selected slot that the forward in progress reads."""
        return self._window.read_length

    def select(self, first_slot: int, starts: list[int], num_tokens: int) -> None:
        """Point the next forward at slots [first_slot, first_slot + B).

        Args:
            first_slot: slot of the first row.
            starts: each row's length so far, that is where its new positions begin; length B.
            num_tokens: T, new positions of every row; more than one only for a single row.
        """
        window = self._window
        window.first_slot = first_slot
        window.num_rows = len(starts)
        window.start = max(starts)
        window.starts = torch.tensor(starts, device=self.layers[0].keys.device)
        window.read_length = max(starts) + num_tokens

    @torch.inference_mode()
    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one slot over another."""
        for layer in self.layers:
            layer.keys[target, :, :length] = layer.keys[source, :, :length]
            layer.values[target, :, :length] = layer.values[source, :, :length]

    @torch.inference_mode()
    def clear(self, slot: int) -> None:
        """Zero a slot, so that not-a-number values of a failed sequence cannot reach the next one."""
        for layer in self.layers:
            layer.keys[slot].zero_()
            layer.values[slot].zero_()
