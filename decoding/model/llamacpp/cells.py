"""Slots and cells by llama.cpp's sequences. Index arithmetic only: `Memory` moves keys and values.

llama.cpp knows no cells by number. Its memory is a pool of entries, each with a position and the set of sequences that
hold it; a row sees the entries of its sequence. One entry can be in many sequences, so sharing it moves nothing.

::

    row sequence   holds exactly the positions that a row sees, and is extended by the row; made anew from lanes if it
                   is not there any more, so any that no forward uses can be given up
    lane           keeps the cells of one slot, at most one per position; together the lanes of a slot keep all of its
                   cells, whether a row sees them or not

    cell 0 1 2 3   the trunk, in lane A at the positions 0 1 2 3      row a sees (0 1 2 3 20 21)
    cell 20 21     a draft,   in lane A at the positions 4 5          row b sees (0 1 2 30)
    cell 30        another,   in lane B at the position  3

There are few sequences. When they run out, idle row sequences are given up first, then the lane that has not been used
for longest is saved to ordinary memory, until one of its cells is needed.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from superdraft.decoding.model.kv_cache import CachePlan
from superdraft.decoding.model.segments import Segment


class Memory(Protocol):
    """llama.cpp's memory of keys and values. Positions are half-open ranges; gaps in them are allowed."""

    def share(self, source: int, target: int, start: int, stop: int) -> None:
        """Add what sequence `source` holds at these positions to sequence `target`."""

    def remove(self, sequence: int, start: int, stop: int) -> None:
        """Take these positions from a sequence. What no other sequence holds is gone."""

    def drop(self, sequence: int) -> None:
        """Take everything from a sequence."""

    def save(self, sequence: int) -> bytes:
        """A copy of all that a sequence holds."""

    def restore(self, sequence: int, saved: bytes) -> None:
        """Put a saved copy into an empty sequence."""


@dataclass(slots=True, eq=False)
class _Lane:
    """A sequence that keeps cells of a slot.

    Attributes:
        slot: the slot.
        sequence: None while it is saved.
        saved: the saved copy, and its positions.
        cells: by position.
    """

    slot: int
    sequence: int | None
    saved: tuple[bytes, frozenset[int]] | None = None
    cells: dict[int, int] = field(default_factory=dict)


class SequenceCells:
    """The `CellStore` of a runner over llama.cpp, and the sequences of rows to run.

    Args:
        memory: of keys and values, empty.
        plan: sizes.
        num_sequences: how many sequences there are, at least three more than the texts that are run at once.
    """

    def __init__(self, memory: Memory, plan: CachePlan, num_sequences: int) -> None:
        self.plan = plan
        self.num_copied_bytes = 0
        self._memory = memory
        self._free = list(reversed(range(num_sequences)))
        self._homes: list[dict[int, tuple[int, _Lane]]] = [{} for _ in range(plan.num_slots)]
        # Both in order of last use.
        self._lanes: dict[_Lane, None] = {}
        self._rows: dict[int, tuple[int, tuple[int, ...]]] = {}
        self._busy: set[int] = set()

    # Rows

    def begin(self, segments: Sequence[Segment]) -> None:
        """Make the own cells of all rows of a forward free, before any of them is run."""
        for segment in segments:
            own = [segment.cell(position) for position in segment.positions]
            if own[0] == 0:
                self.clear(segment.slot)
            self._forget(segment.slot, own)

    def sequence_of(self, segment: Segment) -> int:
        """The sequence to run a segment's rows in: it holds what is before them, and nothing else.

        Raises:
            RuntimeError: a cell that the rows see holds nothing.
        """
        seen = tuple(segment.cell(position) for position in range(segment.start))
        wanted = segment.slot, seen
        known = (one for one, held in self._rows.items() if held == wanted and one not in self._busy)
        sequence = next(known, None)
        if sequence is None:
            sequence = self._take()
            self._busy.add(sequence)
            self._gather(segment.slot, seen, sequence)
        self._busy.add(sequence)
        self._rows.pop(sequence, None)
        self._rows[sequence] = wanted
        return sequence

    def note_run(self, segment: Segment, sequence: int) -> None:
        """Note that a segment's rows have been run in a sequence."""
        slot, seen = self._rows[sequence]
        own = [segment.cell(position) for position in segment.positions]
        self._rows[sequence] = slot, (*seen, *own)
        self._keep(slot, sequence, dict(zip(segment.positions, own, strict=True)))

    def end(self, *, failed: bool = False) -> None:
        """Let other rows have the sequences of the rows that have been run; after a failure, what they hold is gone."""
        for sequence in list(self._busy) if failed else ():
            self._release(sequence)
        self._busy.clear()

    def borrow(self) -> int:
        """An empty sequence for a text outside all slots; `give_back` it."""
        sequence = self._take()
        self._busy.add(sequence)
        return sequence

    def give_back(self, sequence: int) -> None:
        """Drop what a borrowed sequence holds."""
        self._busy.discard(sequence)
        self._release(sequence)

    # CellStore

    def copy(self, source: int, target: int, length: int) -> None:
        """Replace what a slot holds by the first `length` cells of another; nothing is moved."""
        self.clear(target)
        self.copy_cells(source, range(length), target, range(length))

    def copy_cells(self, source: int, cells: Sequence[int], target: int, to: Sequence[int]) -> None:
        """Make cells of a slot hold what cells of one text in a slot hold; nothing is moved."""
        homes = self._homes[source]
        placed = {self._home(homes, cell)[0]: copy for cell, copy in zip(cells, to, strict=True)}
        sequence = self.borrow()
        self._gather_at({homes[cell][0]: homes[cell][1] for cell in cells}, sequence)
        self._forget(target, to)
        self._keep(target, sequence, placed)
        self.give_back(sequence)

    def clear(self, slot: int) -> None:
        """Drop what a slot holds."""
        for sequence in [one for one, (own, _) in self._rows.items() if own == slot]:
            self._release(sequence)
        for lane in [one for one in self._lanes if one.slot == slot]:
            self._drop_lane(lane)
        self._homes[slot].clear()

    # Lanes

    def _keep(self, slot: int, source: int, cells: dict[int, int]) -> None:
        """Keep what a sequence holds at some positions as these cells, by position."""
        lane = next((one for one in reversed(self._lanes) if self._has_room(one, slot, cells)), None)
        if lane is None:
            lane = _Lane(slot, self._take())
        self._lanes.pop(lane, None)
        self._lanes[lane] = None
        assert lane.sequence is not None
        for start, stop in _runs(cells):
            self._memory.share(source, lane.sequence, start, stop)
        lane.cells |= cells
        self._homes[slot].update((cell, (position, lane)) for position, cell in cells.items())

    @staticmethod
    def _has_room(lane: _Lane, slot: int, positions: Iterable[int]) -> bool:
        return lane.slot == slot and lane.sequence is not None and lane.cells.keys().isdisjoint(positions)

    def _gather(self, slot: int, cells: Sequence[int], sequence: int) -> None:
        """Let a sequence hold these cells, the first one at position 0."""
        homes = [self._home(self._homes[slot], cell) for cell in cells]
        assert all(position == at for at, (position, _) in enumerate(homes)), "a cell is seen at another position"
        self._gather_at(dict(homes), sequence)

    def _gather_at(self, lanes: dict[int, _Lane], sequence: int) -> None:
        """Let a sequence hold what lanes keep at these positions."""
        for lane in dict.fromkeys(lanes.values()):
            source = self._resident(lane)
            for start, stop in _runs(position for position, one in lanes.items() if one is lane):
                self._memory.share(source, sequence, start, stop)

    @staticmethod
    def _home(homes: dict[int, tuple[int, _Lane]], cell: int) -> tuple[int, _Lane]:
        if cell not in homes:
            raise RuntimeError(f"cell {cell} holds nothing that a row could see")
        return homes[cell]

    def _forget(self, slot: int, cells: Iterable[int]) -> None:
        """Let cells of a slot hold nothing."""
        homes = self._homes[slot]
        gone = {cell: homes.pop(cell) for cell in cells if cell in homes}
        if not gone:
            return
        rows = [(one, seen) for one, (own, seen) in self._rows.items() if own == slot]
        for sequence in [one for one, seen in rows if not gone.keys().isdisjoint(seen)]:
            self._release(sequence)
        by_lane: dict[_Lane, list[int]] = {}
        for position, lane in gone.values():
            del lane.cells[position]
            by_lane.setdefault(lane, []).append(position)
        for lane, positions in by_lane.items():
            if not lane.cells:
                self._drop_lane(lane)
            elif lane.sequence is not None:
                for start, stop in _runs(positions):
                    self._memory.remove(lane.sequence, start, stop)

    def _resident(self, lane: _Lane) -> int:
        """A lane's sequence; a saved lane is restored."""
        self._lanes.pop(lane)
        self._lanes[lane] = None
        if lane.sequence is None:
            assert lane.saved is not None
            saved, positions = lane.saved
            sequence = self._take()
            self._memory.restore(sequence, saved)
            for start, stop in _runs(positions - lane.cells.keys()):
                self._memory.remove(sequence, start, stop)
            self.num_copied_bytes += len(saved)
            lane.sequence, lane.saved = sequence, None
        return lane.sequence

    def _drop_lane(self, lane: _Lane) -> None:
        del self._lanes[lane]
        if lane.sequence is not None:
            self._release(lane.sequence)

    # Sequences

    def _take(self) -> int:
        """An empty sequence."""
        if not self._free:
            idle = next((one for one in self._rows if one not in self._busy), None)
            if idle is not None:
                self._release(idle)
            else:
                self._save(next(lane for lane in self._lanes if lane.sequence is not None))
        return self._free.pop()

    def _release(self, sequence: int) -> None:
        self._memory.drop(sequence)
        self._rows.pop(sequence, None)
        self._free.append(sequence)

    def _save(self, lane: _Lane) -> None:
        assert lane.sequence is not None
        lane.saved = self._memory.save(lane.sequence), frozenset(lane.cells)
        self.num_copied_bytes += len(lane.saved[0])
        self._release(lane.sequence)
        lane.sequence = None


def groups(segments: Sequence[Segment], max_rows: int, max_texts: int) -> Iterator[list[Segment]]:
    """The segments in order, long ones in parts, in groups that can be run at once.

    Args:
        segments: to run.
        max_rows: rows of a group.
        max_texts: segments of a group.
    """
    group: list[Segment] = []
    for segment in segments:
        for part in _parts(segment, max_rows):
            if sum(one.count for one in group) + part.count > max_rows or len(group) == max_texts:
                yield group
                group = []
            group.append(part)
    if group:
        yield group


def _parts(segment: Segment, max_rows: int) -> Iterator[Segment]:
    """A segment in parts, of which all but the last have `max_rows` rows, so that none shares a group with the next."""
    end = segment.start + segment.count
    for start in range(segment.start, end, max_rows):
        stop = min(start + max_rows, end)
        base = min(segment.base, stop)
        yield Segment(segment.slot, start, stop - start, base, segment.path[: stop - base])


def _runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Half-open ranges that together hold these numbers, in order."""
    start = stop = None
    for number in sorted(numbers):
        if number != stop:
            if start is not None and stop is not None:
                yield start, stop
            start = number
        stop = number + 1
    if start is not None and stop is not None:
        yield start, stop
