"""KV cache: the keys and values of all running and warm requests, in slots of one fixed block of memory.

Index arithmetic, all ranges half-open::

    slots     keys and values of one layer, [num_slots, H, num_cells, Dh]
    slot      the cells of one token tree, which all drafts of a request share
    cell      keys and values of one position of a text; other texts of the same tree may have other cells there
    block     one tensor with the slots of all layers' keys and values, if their shapes are equal
"""

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from superdraft.decoding.config import TREE_CELLS
from superdraft.decoding.errors import ModelLoadError
from superdraft.decoding.model.segments import Grid, Segment, grid_of, to_device


@dataclass(frozen=True, slots=True)
class LayerShape:
    """Shapes of one layer's keys [H, Dk] and values [H, Dv] at one position."""

    num_heads: int
    key_dim: int
    value_dim: int

    @property
    def num_numbers(self) -> int:
        """Numbers of the keys and values together."""
        return self.num_heads * (self.key_dim + self.value_dim)


@dataclass(frozen=True, slots=True)
class CachePlan:
    """How a memory budget is divided.

    Attributes:
        num_slots: number of slots.
        num_cells: cells per slot.
        bytes_per_position: bytes of one position's keys and values, all layers together.
    """

    num_slots: int
    num_cells: int
    bytes_per_position: int


MAX_DEFAULT_SLOTS = 64
_MAPPED_BYTES = 1 << 20  # smaller tensors are not worth a mapping of their own


def cells_per_slot(max_len: int) -> int:
    """Cells of a slot for texts of at most `max_len` positions: the drafts that share it need more than one text."""
    return max_len + min(max_len, TREE_CELLS)


def plan_cache(
    shapes: list[LayerShape],
    item_bytes: int,
    memory_bytes: int,
    max_len: int,
    num_slots: int | None,
    *,
    max_slots: int = MAX_DEFAULT_SLOTS,
    num_extra_cells: int = 0,
) -> CachePlan:
    """Divide the memory into slots.

    Args:
        shapes: one per layer.
        item_bytes: bytes per number.
        memory_bytes: the budget for all keys and values.
        max_len: positions of the longest text.
        num_slots: number of slots; None: as many as fit, at most `max_slots`.
        max_slots: see `num_slots`.
        num_extra_cells: cells that are needed besides the slots.

    Raises:
        ModelLoadError: the slots do not fit.
    """
    per_position = item_bytes * sum(shape.num_numbers for shape in shapes)
    num_cells = cells_per_slot(max_len)
    slot_bytes, extra_bytes = per_position * num_cells, per_position * num_extra_cells
    fitting = (memory_bytes - extra_bytes) // slot_bytes
    if fitting < (num_slots or 1):
        needed = (num_slots or 1) * slot_bytes + extra_bytes
        raise ModelLoadError(
            f"kv_memory is {memory_bytes / 1e6:.0f} MB, but {num_slots or 1} slots of max_model_len {max_len} need "
            f"{needed / 1e6:.0f} MB. Raise kv_memory, or lower max_model_len or num_slots."
        )
    return CachePlan(num_slots or min(max_slots, fitting), num_cells, per_position)


@dataclass(slots=True)
class _Window:
    """The part of the slots that the current forward writes and reads; shared by all layers.

    `slots` is a slice if possible, so that reading returns a view. For rows in one slot and in consecutive cells,
    `cells` is also a slice. Else it is a tensor [B, T], used together with `write_slots` [B, 1].
    """

    slots: slice | Tensor
    write_slots: slice | Tensor
    cells: slice | Tensor
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


@dataclass(frozen=True, slots=True)
class SlotLayer:
    """One layer's keys and values, each [num_slots, H, num_cells, Dh]."""

    keys: Tensor
    values: Tensor
    window: _Window

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write [B, H, T, Dh] at each row's own cell; return what the rows may read, [B, H, read_length, Dh]."""
        window = self.window
        if isinstance(window.cells, slice):
            self.keys[window.slots, :, window.cells] = keys
            self.values[window.slots, :, window.cells] = values
        else:
            self.keys[window.write_slots, :, window.cells] = keys.transpose(1, 2)
            self.values[window.write_slots, :, window.cells] = values.transpose(1, 2)
        return self.keys[window.slots, :, : window.read_length], self.values[window.slots, :, : window.read_length]


class SlotKVCache:
    """Keys and values of all slots, allocated once and never grown.

    Args:
        shapes: one per layer.
        plan: sizes.
        like: a tensor with the dtype and device to use.

    Attributes:
        plan: sizes.
        layers: keys and values, layer by layer.
        num_copied_bytes: bytes copied so far from cell to cell.
    """

    def __init__(self, shapes: list[LayerShape], plan: CachePlan, like: Tensor) -> None:
        self.plan = plan
        self.num_copied_bytes = 0
        self._window = _Window(slice(0), slice(0), slice(0))
        # Keys and values alternate, layer after layer. In one block, all layers are handled by one operation.
        dims = [(shape.num_heads, dim) for shape in shapes for dim in (shape.key_dim, shape.value_dim)]
        self._slots = _blocks([(plan.num_slots, heads, plan.num_cells, dim) for heads, dim in dims], like)
        tensors = [tensor for block in self._slots for tensor in block.unbind(0)]
        pairs = zip(tensors[::2], tensors[1::2], strict=True)
        self.layers = [SlotLayer(keys, values, self._window) for keys, values in pairs]

    @property
    def num_bytes(self) -> int:
        """Bytes of all slots."""
        return sum(block.nbytes for block in self._slots)

    def select(self, segments: Sequence[Segment]) -> Grid:
        """Select the cells of the next forward.

        Args:
            segments: the rows. Consecutive slots, in order, are read through a view, any others are copied.
        """
        grid, slots, cells = grid_of(segments, self.layers[0].keys.device)
        window, device = self._window, self.layers[0].keys.device
        window.read_length = grid.distances.shape[-1]
        is_view = slots == list(range(slots[0], slots[0] + len(slots)))
        window.slots = slice(slots[0], slots[0] + len(slots)) if is_view else to_device(slots, device)
        own = cells[0]
        if len(slots) == 1 and own == list(range(own[0], own[0] + len(own))):
            window.cells = slice(own[0], own[0] + len(own))
        else:
            window.write_slots, window.cells = to_device(slots, device).unsqueeze(1), to_device(cells, device)
        return grid

    @torch.inference_mode()
    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` cells of a slot to another slot."""
        self.num_copied_bytes += length * self.plan.bytes_per_position
        for slots in self._slots:
            slots[:, target, :, :length] = slots[:, source, :, :length]

    @torch.inference_mode()
    def copy_cells(self, source: int, cells: Sequence[int], target: int, to: Sequence[int]) -> None:
        """Copy cells of one slot to cells of another."""
        self.num_copied_bytes += len(cells) * self.plan.bytes_per_position
        device = self._slots[0].device
        read, written = to_device(cells, device), to_device(to, device)
        for slots in self._slots:
            slots[:, target, :, written] = slots[:, source, :, read]

    @torch.inference_mode()
    def clear(self, slot: int) -> None:
        """Zero a slot, so that NaNs of a failed sequence cannot reach the next one."""
        for slots in self._slots:
            slots[:, slot].zero_()
