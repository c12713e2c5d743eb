"""Segments: rows of texts and the cells of a KV cache that each of them sees; and grids of them, as tensors.

A segment's first `base` positions are in the cells of the same number, the others in the cells of a path. So no fork,
drop or merge of drafts moves keys and values.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def to_device(values: Sequence[Any], device: torch.device, dtype: torch.dtype = torch.long) -> Tensor:
    """Copy (nested) numbers into a tensor on `device`, without waiting for the device.

    A copy to a GPU from memory that is not pinned would wait for all work queued before it.
    """
    tensor = torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda")
    return tensor.to(device, non_blocking=True)


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows at consecutive positions of one text in one slot.

    Attributes:
        slot: the slot.
        start: the position of the first row.
        count: rows.
        base: the text's positions [0, base) are in the cells of the same number.
        path: the cells of the positions [base, start + count).
    """

    slot: int
    start: int
    count: int
    base: int
    path: tuple[int, ...] = ()

    @classmethod
    def plain(cls, slot: int, start: int, count: int) -> "Segment":
        """A segment of a text whose positions are all in the cells of the same number."""
        return cls(slot, start, count, start + count)

    @property
    def positions(self) -> range:
        """The rows' positions."""
        return range(self.start, self.start + self.count)

    def cell(self, position: int) -> int:
        """The cell of a position."""
        return position if position < self.base else self.path[position - self.base]

    @property
    def furthest(self) -> int:
        """One more than the last cell that the rows see."""
        return max([self.base, *(cell + 1 for cell in self.path)])


@dataclass(frozen=True, slots=True)
class Grid:
    """Segments as a grid of B slots with T rows each; a slot with fewer rows repeats its last one.

    Attributes:
        positions: each row's position in its text, shape [B, T].
        distances: from each row back to the position in each cell, shape [B, T, read_length]; negative: not visible.
        places: where each row of the segments is in the flattened grid.
    """

    positions: Tensor
    distances: Tensor
    places: list[int]


def grid_of(segments: Sequence[Segment], device: torch.device) -> tuple[Grid, list[int], list[list[int]]]:
    """Arrange segments as a grid.

    Args:
        segments: the rows.
        device: where the grid's tensors are.

    Returns:
        The grid, its B slots, and each row's own cell, shape [B, T].
    """
    by_slot: dict[int, list[Segment]] = {}
    for segment in segments:
        by_slot.setdefault(segment.slot, []).append(segment)
    slots, of_slots = list(by_slot), list(by_slot.values())
    width = max(sum(segment.count for segment in own) for own in of_slots)
    read_length = max(segment.furthest for segment in segments)
    positions, cells, bases = [], [], []
    # The cells of paths: where in the flattened grid, which cell, which position.
    rows: list[int] = []
    seen: list[int] = []
    seen_positions: list[int] = []
    for row, own in enumerate(of_slots):
        per_row = [(segment, position) for segment in own for position in segment.positions]
        per_row += [per_row[-1]] * (width - len(per_row))
        positions.append([position for _, position in per_row])
        cells.append([segment.cell(position) for segment, position in per_row])
        bases.append([segment.base for segment, _ in per_row])
        for column, (segment, _) in enumerate(per_row):
            rows += [row * width + column] * len(segment.path)
            seen += segment.path
            seen_positions += range(segment.base, segment.base + len(segment.path))
    at, place = to_device(positions, device), torch.arange(read_length, device=device)
    distances = at.unsqueeze(-1) - place
    distances.masked_fill_(place >= to_device(bases, device).unsqueeze(-1), -1)
    if rows:
        index = to_device(rows, device)
        back = at.flatten()[index] - to_device(seen_positions, device)
        distances.view(-1, read_length)[index, to_device(seen, device)] = back
    next_place = {slot: row * width for row, slot in enumerate(slots)}
    places: list[int] = []
    for segment in segments:
        places += range(next_place[segment.slot], next_place[segment.slot] + segment.count)
        next_place[segment.slot] += segment.count
    return Grid(at, distances, places), slots, cells
