"""KV cache: division of the memory, grids of segments, copies of cells."""

import sys
from pathlib import Path

import pytest
import torch

from superdraft.decoding.errors import ModelLoadError
from superdraft.decoding.model.kv_cache import CachePlan, LayerShape, SlotKVCache, plan_cache
from superdraft.decoding.model.segments import Segment, grid_of

# 2 layers, 3 heads, keys of 4 and values of 6 numbers of 2 bytes: 2 * 3 * 10 * 2 = 120 bytes per position
SHAPES = [LayerShape(3, 4, 6)] * 2


@pytest.mark.parametrize(("max_len", "num_cells"), [(100, 200), (256, 512), (1000, 1256)])
def test_a_slot_has_cells_for_the_longest_text_and_for_the_drafts_behind_a_shorter_one(max_len, num_cells):
    plan = plan_cache(SHAPES, 2, memory_bytes=120 * num_cells * 7 + 119, max_len=max_len, num_slots=None)
    assert (plan.bytes_per_position, plan.num_slots, plan.num_cells) == (120, 7, num_cells)


def test_a_given_number_of_slots_may_take_less():
    plan = plan_cache(SHAPES, 2, memory_bytes=120 * 2000, max_len=100, num_slots=4)
    assert plan.num_slots == 4


def test_there_are_at_most_64_slots_unless_more_are_requested():
    assert plan_cache(SHAPES, 2, memory_bytes=120 * 100_000, max_len=10, num_slots=None).num_slots == 64
    assert plan_cache(SHAPES, 2, memory_bytes=120 * 100_000, max_len=10, num_slots=200).num_slots == 200


@pytest.mark.parametrize(("num_slots", "wanted"), [(None, 1), (11, 11)])
def test_slots_that_do_not_fit_are_refused_with_the_remedy(num_slots, wanted):
    memory = 120 * 200 * wanted - 1
    with pytest.raises(ModelLoadError, match=rf"{wanted} slots of max_model_len 100 need .* MB\. Raise kv_memory"):
        plan_cache(SHAPES, 2, memory_bytes=memory, max_len=100, num_slots=num_slots)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_slots_are_zero_and_use_memory_only_where_written():
    before = resident_bytes()
    plan = CachePlan(num_slots=20, num_cells=1024, bytes_per_position=8192)
    cache = SlotKVCache([LayerShape(2, 64, 64)] * 8, plan, torch.zeros(1, dtype=torch.bfloat16))
    assert cache.num_bytes == 20 * 1024 * 8 * 2 * 128 * 2
    grid = cache.select([Segment.plain(3, 0, 2), Segment.plain(5, 2, 2)])
    keys = torch.full((2, 2, 2, 64), 3.0, dtype=torch.bfloat16)
    for index in range(8):
        read, _ = cache.layers[index].update(keys, 2 * keys)
    assert grid.positions.tolist() == [[0, 1], [2, 3]]
    assert read.flatten(2)[:, 0].view(2, 4, 64)[:, :, 0].tolist() == [[3, 3, 0, 0], [0, 0, 3, 3]]
    assert resident_bytes() - before < cache.num_bytes // 4


@pytest.mark.parametrize("shape", [LayerShape(2, 4, 4), LayerShape(2, 4, 6)], ids=["one block", "many"])
def test_copies_and_clearing_reach_every_layer(shape):
    plan = CachePlan(num_slots=3, num_cells=8, bytes_per_position=10)
    cache = SlotKVCache([shape] * 2, plan, torch.zeros(1))
    written = []
    cache.select([Segment.plain(1, 0, 5)])
    for index in range(2):
        keys, values = torch.rand(1, 2, 5, shape.key_dim), torch.rand(1, 2, 5, shape.value_dim)
        cache.layers[index].update(keys, values)
        written += [keys[0], values[0]]

    def held(slot: int, length: int) -> list[torch.Tensor]:
        pairs = [(layer.keys, layer.values) for layer in cache.layers]
        return [tensor[slot, :, :length] for pair in pairs for tensor in pair]

    cache.copy(1, 2, 5)
    cache.copy_cells(1, (4, 1), 0, (0, 3))
    cache.copy_cells(2, (0, 1, 2), 2, (5, 6, 7))
    assert cache.num_copied_bytes == 10 * (5 + 2 + 3)
    for picked, copied, tensor in zip(held(0, 4), held(2, 8), written, strict=True):
        assert torch.equal(picked[:, [0, 3]], tensor[:, [4, 1]])
        assert not picked[:, 1:3].any()
        assert torch.equal(copied[:, :5], tensor)
        assert torch.equal(copied[:, 5:], tensor[:, :3])
    cache.clear(1)
    assert not any(bool(tensor.any()) for tensor in held(1, 8))
    assert all(bool(tensor.all()) for tensor in held(2, 5))


def test_a_row_sees_the_trunk_up_to_its_base_and_its_own_path():
    rows = [
        Segment(4, 3, 1, 3, (5,)),
        Segment(1, 0, 2, 2),  # a prompt of two tokens
        Segment(4, 3, 2, 2, (7, 9, 3)),  # leaves the trunk one token earlier; two rows
    ]
    grid, slots, cells = grid_of(rows, torch.device("cpu"))
    assert slots == [4, 1]
    assert cells == [[5, 9, 3], [0, 1, 1]]  # the second slot repeats its last row
    assert grid.positions.tolist() == [[3, 3, 4], [0, 1, 1]]
    assert grid.places == [0, 3, 4, 1, 2]
    assert grid.distances.shape == (2, 3, 10)

    def seen(row: int, column: int) -> dict[int, int]:
        distances = grid.distances[row, column].tolist()
        return {cell: distance for cell, distance in enumerate(distances) if distance >= 0}

    assert seen(0, 0) == {0: 3, 1: 2, 2: 1, 5: 0}
    assert seen(0, 1) == {0: 3, 1: 2, 7: 1, 9: 0}
    assert seen(0, 2) == {0: 4, 1: 3, 7: 2, 9: 1, 3: 0}
    assert seen(1, 0) == {0: 0}
    assert seen(1, 1) == seen(1, 2) == {0: 1, 1: 0}
