"""KV cache: the keys and values of all running sequences, in slots of one fixed block of memory.

Index arithmetic, all ranges half-open::

    slots     keys and values of one layer, [num_slots, H, max_len, Dh]
    slot      the row of one branch, shared by its k drafts
    active    running sequences occupy slots [0, num_active), so a decode step over all of them reads the slots
              through a view and copies nothing; when a sequence ends, the last active slot is moved into its place
    length    positions [0, length) of a slot hold real keys and values; later positions are masked
    pool      keys and values of prompts that may be repeated, one position per token, in any order,
              [num_prefix_positions, H, Dh]; `prefix_cache` records which token is at which position
    block     one tensor with the slots (or the pools) of all layers' keys and values, if their shapes are equal
"""

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from superdraft.decoding.errors import ModelLoadError, UnsupportedModelError


def to_device(values: Sequence[Any], device: torch.device, dtype: torch.dtype = torch.long) -> Tensor:
    """Copy (nested) numbers into a tensor on `device`, without waiting for the device.

    A copy to a GPU from memory that is not pinned would wait for all work queued before it.
    """
    tensor = torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda")
    return tensor.to(device, non_blocking=True)


@dataclass(frozen=True, slots=True)
class LayerShape:
    """Shapes of one layer's keys [H, Dk] and values [H, Dv] at one position."""

    num_heads: int
    key_dim: int
    value_dim: int


@dataclass(frozen=True, slots=True)
class CachePlan:
    """How a memory budget is divided.

    Attributes:
        num_slots: number of slots for running branches.
        max_len: positions per slot.
        num_prefix_positions: positions of the prefix pool.
        bytes_per_position: bytes of one position's keys and values, all layers together.
    """

    num_slots: int
    max_len: int
    num_prefix_positions: int
    bytes_per_position: int


MAX_DEFAULT_SLOTS = 64
_MAPPED_BYTES = 1 << 20  # smaller tensors are not worth a mapping of their own
MAX_PREFIX_POSITIONS = 100_000  # a tiny model's keys and values would take less memory than their bookkeeping


def plan_cache(
    shapes: list[LayerShape], item_bytes: int, memory_bytes: int, max_len: int, num_slots: int | None
) -> CachePlan:
    """Divide the memory: three quarters for slots unless their number is given, the rest for the prefix pool.

    Args:
        shapes: one per layer.
        item_bytes: bytes per number.
        memory_bytes: the budget for all keys and values.
        max_len: positions per slot.
        num_slots: number of slots; None: as many as fit, at most 64.

    Raises:
        ModelLoadError: the slots do not fit.
    """
    per_position = item_bytes * sum(shape.num_heads * (shape.key_dim + shape.value_dim) for shape in shapes)
    slot_bytes = per_position * max_len
    fitting = memory_bytes // slot_bytes
    if fitting < (num_slots or 1):
        raise ModelLoadError(
            f"kv_memory is {memory_bytes / 1e6:.0f} MB, but {num_slots or 1} slots of max_model_len {max_len} need "
            f"{(num_slots or 1) * slot_bytes / 1e6:.0f} MB. Raise kv_memory, or lower max_model_len or num_slots."
        )
    slots = num_slots or min(MAX_DEFAULT_SLOTS, max(1, fitting * 3 // 4))
    num_prefix_positions = min(MAX_PREFIX_POSITIONS, (memory_bytes - slots * slot_bytes) // per_position)
    return CachePlan(slots, max_len, num_prefix_positions, per_position)


def probe_layer_shapes(model: PreTrainedModel) -> list[LayerShape]:
    """Run one token to see what each layer writes into a KV cache; works for any architecture.

    Raises:
        UnsupportedModelError: a layer stores something other than keys and values.
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
                f"Layer {index} of this {type(model).__name__} does not store keys and values per position, so its "
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
    """The part of the slots that the current forward writes and reads; shared by all layers.

    `slots` is a slice if possible, so that reading returns a view. For one row `positions` is also a slice. For several
    rows it is a tensor [B, T], used together with `write_slots` [B, 1].
    """

    slots: slice | Tensor
    write_slots: slice | Tensor
    positions: slice | Tensor
    length: int = 0
    read_length: int = 0


def _zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Zeros that, on a CPU, use physical memory only for pages that have been written.

    `torch.zeros` writes every byte, here gigabytes. The pages of a new anonymous mapping are zero until they are
    written. The mapping is private, so reading an untouched page uses no memory either.
    """
    num_bytes = math.prod(shape) * like.element_size()
    if like.device.type != "cpu" or num_bytes < _MAPPED_BYTES or not hasattr(mmap, "MAP_ANONYMOUS"):
        return like.new_zeros(shape)
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=like.dtype).view(shape)  # the tensor keeps the mapping alive


def _blocks(sizes: list[tuple[int, ...]], like: Tensor) -> list[Tensor]:
    """Zeroed tensors of these sizes, stacked: one block [N, *size] if all sizes are equal, else N blocks [1, *size].

    Memory must be zeroed, because a NaN beyond a slot's length would survive the mask.
    """
    if len(set(sizes)) == 1:
        return [_zeros((len(sizes), *sizes[0]), like)]
    return [_zeros((1, *size), like) for size in sizes]


class _SlotLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers has no types
    """One layer's slots. transformers calls `update` from inside each attention layer."""

    is_sliding = False

    def __init__(self, keys: Tensor, values: Tensor, window: _Window) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.is_initialized = True
        self._window = window

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing is lazy here; required by the interface."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Write [B, H, T, Dh] at each row's new positions; return what the rows may read, [B, H, read_length, Dh]."""
        window = self._window
        if isinstance(window.positions, slice):
            self.keys[window.slots, :, window.positions] = key_states
            self.values[window.slots, :, window.positions] = value_states
        else:
            self.keys[window.write_slots, :, window.positions] = key_states.transpose(1, 2)
            self.values[window.write_slots, :, window.positions] = value_states.transpose(1, 2)
        return self.read()

    def read(self) -> tuple[Tensor, Tensor]:
        """Keys and values that the rows of the current forward may read, [B, H, read_length, Dh]."""
        window = self._window
        return self.keys[window.slots, :, : window.read_length], self.values[window.slots, :, : window.read_length]

    def get_seq_length(self) -> int:
        return self._window.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:  # noqa: ARG002 (required by the interface)
        return self._window.read_length, 0

    def get_max_length(self) -> int:
        return int(self.keys.shape[2])

    get_max_cache_shape = get_max_length  # its name before transformers 5.20


@dataclass(frozen=True, slots=True)
class SlotMove:
    """The first `length` positions of slot `source` have to be copied to slot `target`."""

    source: int
    target: int
    length: int


class SlotKVCache(Cache):  # type: ignore[misc]  # transformers has no types
    """Keys and values of all slots and of the prefix pool, allocated once and never grown.

    Args:
        shapes: one per layer.
        plan: sizes.
        like: a tensor with the dtype and device to use.
    """

    def __init__(self, shapes: list[LayerShape], plan: CachePlan, like: Tensor) -> None:
        self.plan = plan
        self._window = _Window(slice(0), slice(0), slice(0))
        # Keys and values alternate, layer after layer. In one block, all layers are handled by one operation.
        dims = [(shape.num_heads, dim) for shape in shapes for dim in (shape.key_dim, shape.value_dim)]
        self._slots = _blocks([(plan.num_slots, heads, plan.max_len, dim) for heads, dim in dims], like)
        self._pools = _blocks([(plan.num_prefix_positions, heads, dim) for heads, dim in dims], like)
        self._pairs = self._slots[0].view(-1, 2, *self._slots[0].shape[1:]).unbind(0) if len(self._slots) == 1 else None
        tensors = [tensor for block in self._slots for tensor in block.unbind(0)]
        pairs = zip(tensors[::2], tensors[1::2], strict=True)
        super().__init__(layers=[_SlotLayer(keys, values, self._window) for keys, values in pairs])

    @property
    def num_bytes(self) -> int:
        """Bytes of the slots and the pool."""
        return sum(block.nbytes for block in (*self._slots, *self._pools))

    @property
    def read_length(self) -> int:
        """Positions of each selected slot that the current forward reads."""
        return self._window.read_length

    def select(self, slots: Sequence[int], starts: Sequence[int], num_tokens: int) -> Tensor:
        """Select the slots of the next forward.

        Args:
            slots: one per row. Slots 0, 1, 2, ... in this order are read through a view, any others are copied.
            starts: each row's length so far, which is where its new positions begin; start + T must fit.
            num_tokens: T, the number of new positions per row.

        Returns:
            The new positions, shape [B, T].
        """
        window, device = self._window, self.layers[0].keys.device
        positions = to_device(starts, device).unsqueeze(1) + torch.arange(num_tokens, device=device)
        window.length = max(starts)
        window.read_length = window.length + num_tokens
        if len(slots) == 1:
            window.slots = slice(slots[0], slots[0] + 1)
            window.positions = slice(starts[0], starts[0] + num_tokens)
        else:
            index = to_device(slots, device)
            window.slots = slice(0, len(slots)) if list(slots) == list(range(len(slots))) else index
            window.write_slots, window.positions = index.unsqueeze(1), positions
        return positions

    def select_at(self, positions: Tensor, read_length: int) -> None:
        """Select slots [0, B) with device tensors only, so the step can be captured in a CUDA graph.

        Args:
            positions: each row's single new position, shape [B, 1].
            read_length: positions of each slot to read, including the new ones.
        """
        window = self._window
        window.length, window.read_length = read_length - 1, read_length
        window.slots = slice(0, len(positions))
        window.write_slots = torch.arange(len(positions), device=positions.device).unsqueeze(1)
        window.positions = positions

    def row_views(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]] | None:
        """Views for a forward of one row, made for all layers at once, which takes far fewer operations.

        Returns:
            Two tuples, in which keys and values alternate, layer after layer: what to read, [1, H, read_length, Dh],
            and the part of it to write, [1, H, T, Dh]. None: use each layer's `update`.
        """
        window = self._window
        if len(self._slots) > 1 or not isinstance(window.positions, slice):
            return None
        slots = self._slots[0][:, window.slots]
        return slots[:, :, :, : window.read_length].unbind(0), slots[:, :, :, window.positions].unbind(0)

    def row_pairs(self) -> tuple[tuple[Tensor, ...], Tensor, Tensor] | None:
        """Targets for a forward of several rows, with which a layer writes keys and values in one operation.

        Returns:
            For each layer the keys and values of all slots, [2, num_slots, H, max_len, Dh]; the slots to write, [B, 1];
            and their positions to write, [B, T]. Use the layers' `read` to read. None: use `row_views` or `update`.
        """
        slots, positions = self._window.write_slots, self._window.positions
        if self._pairs is None or isinstance(slots, slice) or isinstance(positions, slice):
            return None
        return self._pairs, slots, positions

    @torch.inference_mode()
    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one slot over another."""
        for slots in self._slots:
            slots[:, target, :, :length] = slots[:, source, :, :length]

    @torch.inference_mode()
    def read(self, slot: int, start: int, stop: int) -> list[Tensor]:
        """Copy positions [start, stop) of a slot, all layers' keys and values; `write` restores the copy."""
        return [slots[:, slot, :, start:stop].clone() for slots in self._slots]

    @torch.inference_mode()
    def write(self, slot: int, start: int, saved: list[Tensor], num_positions: int) -> None:
        """Write the first `num_positions` positions of a copy made by `read` into a slot, from `start` on."""
        for slots, block in zip(self._slots, saved, strict=True):
            slots[:, slot, :, start : start + num_positions] = block[:, :, :num_positions]

    @torch.inference_mode()
    def load_prefix(self, slot: int, positions: list[int]) -> None:
        """Copy these positions of the pool to the beginning of a slot."""
        index = to_device(positions, self._pools[0].device)
        for slots, pool in zip(self._slots, self._pools, strict=True):
            slots[:, slot, :, : len(positions)] = pool[:, index].transpose(1, 2)

    @torch.inference_mode()
    def save_prefix(self, slot: int, start: int, positions: list[int]) -> None:
        """Copy a slot's positions, from `start` on, to these positions of the pool."""
        index = to_device(positions, self._pools[0].device)
        stop = start + len(positions)
        for slots, pool in zip(self._slots, self._pools, strict=True):
            pool[:, index] = slots[:, slot, :, start:stop].transpose(1, 2)

    @torch.inference_mode()
    def clear(self, slot: int) -> None:
        """Zero a slot, so that NaNs of a failed sequence cannot reach the next one."""
        for slots in self._slots:
            slots[:, slot].zero_()
