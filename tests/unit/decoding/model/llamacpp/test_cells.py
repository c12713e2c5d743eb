"""Slots and cells by sequences, against a plain table of cells; without llama.cpp."""

import random

import pytest
from support.sequences import FakeMemory

from superdraft.decoding.model.kv_cache import CachePlan
from superdraft.decoding.model.llamacpp.cells import SequenceCells, groups
from superdraft.decoding.model.segments import Segment

NUM_SLOTS, NUM_CELLS, NUM_SEQUENCES = 3, 40, 7


class Table:
    """Cells of slots, each with a position and a value, and the same by sequences."""

    def __init__(self) -> None:
        self.memory = FakeMemory(NUM_SEQUENCES)
        self.cells = SequenceCells(self.memory, CachePlan(NUM_SLOTS, NUM_CELLS, 1), NUM_SEQUENCES)
        self.slots: list[dict[int, int]] = [{} for _ in range(NUM_SLOTS)]
        self.num_values = 0

    def run(self, *segments: Segment) -> None:
        """Run rows, each with a new value; check what they see, and that nothing else takes up memory."""
        self.cells.begin(segments)
        for segment in segments:
            if segment.cell(segment.start) == 0:
                self.slots[segment.slot].clear()
        chosen = [(segment, self.cells.sequence_of(segment)) for segment in segments]
        assert len({sequence for _, sequence in chosen}) == len(segments)
        for segment, sequence in chosen:
            expected = {at: self.slots[segment.slot][segment.cell(at)] for at in range(segment.start)}
            assert self.memory.held[sequence] == expected
            for position in segment.positions:
                self.num_values += 1
                self.memory.held[sequence][position] = self.slots[segment.slot][segment.cell(position)] = (
                    self.num_values
                )
        for segment, sequence in chosen:
            self.cells.note_run(segment, sequence)
        self.cells.end()
        kept = {value for slot in self.slots for value in slot.values()}
        assert {value for held in self.memory.held for value in held.values()} <= kept


@pytest.fixture
def table() -> Table:
    return Table()


def test_a_row_behind_a_row_takes_its_sequence_over(table):
    table.run(Segment.plain(0, 0, 5))
    table.run(Segment(0, 5, 1, 5, (20,)))
    before = [dict(held) for held in table.memory.held]
    table.cells.begin([segment := Segment(0, 6, 1, 5, (20, 21))])
    sequence = table.cells.sequence_of(segment)
    assert table.memory.held == before
    assert len(before[sequence]) == 6


def test_a_cell_that_is_written_again_is_seen_as_it_is_now(table):
    table.run(Segment.plain(0, 0, 5))
    for _ in range(2):
        table.run(Segment(0, 5, 1, 5, (20,)))
    table.run(Segment(0, 6, 1, 5, (20, 21)))


def test_a_new_text_and_a_copy_free_what_the_slot_held(table):
    table.run(Segment.plain(0, 0, 5))
    table.run(Segment(0, 5, 1, 5, (20,)))
    table.run(Segment.plain(0, 0, 3))
    table.run(Segment.plain(1, 0, 9))
    table.cells.copy(0, 1, 2)
    table.slots[1] = {cell: table.slots[0][cell] for cell in range(2)}
    table.run(Segment.plain(1, 2, 1))


def test_forks_share_and_nothing_is_copied(table):
    table.run(Segment.plain(0, 0, 5))
    table.run(Segment(0, 5, 1, 5, (20,)), Segment(0, 5, 1, 5, (21,)), Segment(0, 3, 1, 3, (22,)))
    table.run(Segment(0, 6, 1, 5, (20, 23)), Segment(0, 6, 1, 5, (20, 24)), Segment(0, 4, 1, 3, (22, 25)))
    table.cells.copy(0, 1, 4)
    table.slots[1] = {cell: table.slots[0][cell] for cell in range(4)}
    table.run(Segment.plain(1, 4, 2))
    assert table.cells.num_copied_bytes == 0


def test_more_alternatives_than_sequences_are_saved_and_come_back(table):
    table.run(Segment.plain(0, 0, 4))
    for cell in range(10, 25):
        table.run(Segment(0, 4, 1, 4, (cell,)))
    assert table.memory.num_saved > 0
    assert table.cells.num_copied_bytes > 0
    for cell in range(10, 25):
        table.run(Segment(0, 5, 1, 4, (cell, 30)))


def test_a_row_that_sees_an_empty_cell_is_refused_and_takes_no_sequence(table):
    table.run(Segment.plain(0, 0, 4))
    for _ in range(3 * NUM_SEQUENCES):
        table.cells.begin([segment := Segment(0, 5, 1, 4, (20, 21))])
        with pytest.raises(RuntimeError, match="cell 20 holds nothing"):
            table.cells.sequence_of(segment)
        table.cells.end(failed=True)
    table.run(Segment(0, 4, 1, 4, (20,)))


def test_what_a_failed_row_wrote_is_gone(table):
    table.run(Segment.plain(0, 0, 4))
    segment = Segment(0, 4, 1, 4, (20,))
    table.cells.begin([segment])
    table.memory.held[table.cells.sequence_of(segment)][4] = -1  # half done
    table.cells.end(failed=True)
    table.run(segment)
    table.run(Segment(0, 5, 1, 4, (20, 21)))


def test_a_cleared_slot_gives_all_its_sequences_back(table):
    table.run(Segment.plain(0, 0, 4))
    table.run(Segment(0, 4, 1, 4, (20,)), Segment(0, 4, 1, 4, (21,)))
    table.cells.clear(0)
    assert table.memory.held == [{}] * NUM_SEQUENCES
    borrowed = [table.cells.borrow() for _ in range(NUM_SEQUENCES)]
    assert sorted(borrowed) == list(range(NUM_SEQUENCES))


@pytest.mark.parametrize("seed", range(40))
def test_random_use_equals_a_table_of_cells(table, seed):
    """Texts that begin, fork, grow, are copied, moved within a slot, and cleared; cells are used again at random."""
    rng = random.Random(seed)
    texts: list[tuple[int, int, tuple[int, ...]]] = []  # slot, base, path
    for _ in range(120):
        action, slot = rng.random(), rng.randrange(NUM_SLOTS)
        own = [text for text in texts if text[0] == slot]
        if action < 0.08 or not own:
            table.run(Segment.plain(slot, 0, length := rng.randint(1, 12)))
            texts = [text for text in texts if text[0] != slot] + [(slot, length, ())]
        elif action < 0.13:
            table.cells.clear(slot)
            table.slots[slot].clear()
            texts = [text for text in texts if text[0] != slot]
        elif action < 0.2:
            target, (_, base, _) = (slot + 1) % NUM_SLOTS, rng.choice(own)
            table.cells.copy(slot, target, base)
            table.slots[target] = {cell: table.slots[slot][cell] for cell in range(base)}
            texts = [text for text in texts if text[0] != target] + [(target, base, ())]
        elif action < 0.3:
            # A path becomes the end of the trunk, which only it follows.
            _, base, path = max(own, key=lambda text: len(text[2]))
            to = range(base, base + len(path))
            if to.stop <= NUM_CELLS:
                table.cells.copy_cells(slot, path, slot, to)
                table.slots[slot] |= dict(zip(to, [table.slots[slot][cell] for cell in path], strict=True))
                texts = [text for text in texts if text[0] != slot] + [(slot, to.stop, ())]
        else:
            segments = []
            for text in rng.sample(own, min(len(own), rng.randint(1, 2))):
                _, base, path = text
                if rng.random() < 0.5:  # a fork, from anywhere
                    cut = rng.randint(1, base + len(path))
                    base, path = min(base, cut), path[: max(0, cut - base)]
                    texts.append((slot, base, path))
                else:
                    texts.remove(text)
                    texts.append((slot, base, path))
                taken = {cell for _, b, p in texts for cell in (*range(b), *p)} | {c for s in segments for c in s.path}
                free = [cell for cell in range(1, NUM_CELLS) if cell not in taken]
                if len(free) < 2:
                    continue
                start, new = base + len(path), rng.sample(free, rng.randint(1, 2))
                segments.append(Segment(slot, start, len(new), base, (*path, *new)))
                texts[-1] = (slot, base, (*path, *new))
            if segments:
                table.run(*segments)
            while len(texts) > 9:
                texts.remove(rng.choice(texts))


def test_groups_are_small_enough_and_keep_the_order():
    segments = [Segment(0, 3, 9, 5, tuple(range(20, 27))), Segment.plain(1, 0, 4), *[Segment.plain(2, 7, 1)] * 5]
    found = list(groups(segments, max_rows=4, max_texts=3))
    assert all(sum(part.count for part in group) <= 4 and len(group) <= 3 for group in found)
    parts = [part for group in found for part in group]
    rows = [(part.slot, at, part.cell(at)) for part in parts for at in part.positions]
    assert rows == [(one.slot, at, one.cell(at)) for one in segments for at in one.positions]
    assert all(len(part.path) == part.start + part.count - part.base for part in parts)
    assert [len(group) for group in found] == [1, 1, 1, 1, 3, 2]
