"""KV cache: division of the memory, copies of slots and prefixes, views."""

import sys
from pathlib import Path

import pytest
import torch

from superdraft.decoding.errors import ModelLoadError
from superdraft.decoding.model.kv_cache import CachePlan, LayerShape, SlotKVCache, plan_cache

# 2 layers, 3 heads, keys of 4 and values of 6 numbers of 2 bytes: 2 * 3 * 10 * 2 = 120 bytes per position
SHAPES = [LayerShape(3, 4, 6)] * 2


def test_three_quarters_are_slots_and_the_rest_keeps_prompts():
    plan = plan_cache(SHAPES, 2, memory_bytes=120 * 1000, max_len=100, num_slots=None)
    assert (plan.bytes_per_position, plan.num_slots, plan.num_prefix_positions) == (120, 7, 300)


def test_a_given_number_of_slots_may_take_it_all():
    plan = plan_cache(SHAPES, 2, memory_bytes=120 * 1000, max_len=100, num_slots=10)
    assert (plan.num_slots, plan.num_prefix_positions) == (10, 0)


def test_there_are_at_most_64_slots_unless_more_are_requested():
    assert plan_cache(SHAPES, 2, memory_bytes=120 * 100_000, max_len=10, num_slots=None).num_slots == 64
    assert plan_cache(SHAPES, 2, memory_bytes=120 * 100_000, max_len=10, num_slots=200).num_slots == 200


@pytest.mark.parametrize(("num_slots", "wanted"), [(None, 1), (11, 11)])
def test_slots_that_do_not_fit_are_refused_with_the_remedy(num_slots, wanted):
    memory = 120 * 100 * wanted - 1
    with pytest.raises(ModelLoadError, match=rf"{wanted} slots of max_model_len 100 need .* MB\. Raise kv_memory"):
        plan_cache(SHAPES, 2, memory_bytes=memory, max_len=100, num_slots=num_slots)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_slots_are_zero_and_use_memory_only_where_written():
    before = resident_bytes()
    plan = CachePlan(num_slots=16, max_len=1024, num_prefix_positions=4096, bytes_per_position=8192)
    cache = SlotKVCache([LayerShape(2, 64, 64)] * 8, plan, torch.zeros(1, dtype=torch.bfloat16))
    assert cache.num_bytes == (16 * 1024 + 4096) * 8 * 2 * 128 * 2
    positions = cache.select([3, 5], [0, 2], 2)
    keys = torch.full((2, 2, 2, 64), 3.0, dtype=torch.bfloat16)
    for index in range(8):
        read, _ = cache.layers[index].update(keys, 2 * keys)
    assert positions.tolist() == [[0, 1], [2, 3]]
    assert read.flatten(2)[:, 0].view(2, 4, 64)[:, :, 0].tolist() == [[3, 3, 0, 0], [0, 0, 3, 3]]
    assert resident_bytes() - before < cache.num_bytes // 4


@pytest.mark.parametrize("shape", [LayerShape(2, 4, 4), LayerShape(2, 4, 6)], ids=["one block", "many"])
def test_prefixes_moves_and_clearing_reach_every_layer(shape):
    plan = CachePlan(num_slots=3, max_len=8, num_prefix_positions=10, bytes_per_position=0)
    cache = SlotKVCache([shape] * 2, plan, torch.zeros(1))
    written = []
    cache.select([1], [0], 5)
    for index in range(2):
        keys, values = torch.rand(1, 2, 5, shape.key_dim), torch.rand(1, 2, 5, shape.value_dim)
        cache.layers[index].update(keys, values)
        written += [keys[0], values[0]]

    def held(slot: int, length: int) -> list[torch.Tensor]:
        pairs = [(layer.keys, layer.values) for layer in cache.layers]
        return [tensor[slot, :, :length] for pair in pairs for tensor in pair]

    cache.save_prefix(1, 1, [7, 2, 9])
    cache.load_prefix(0, [2, 9])
    cache.move(1, 2, 5)
    for loaded, moved, tensor in zip(held(0, 2), held(2, 5), written, strict=True):
        assert torch.equal(loaded, tensor[:, 2:4])
        assert torch.equal(moved, tensor)
    cache.clear(1)
    assert not any(bool(tensor.any()) for tensor in held(1, 8))
    assert all(bool(tensor.all()) for tensor in held(2, 5))


def test_views_of_a_row_equal_the_parts_that_update_writes_and_reads():
    plan = CachePlan(num_slots=3, max_len=8, num_prefix_positions=0, bytes_per_position=0)
    cache = SlotKVCache([LayerShape(2, 4, 4)] * 2, plan, torch.zeros(1))
    cache.select([2], [3], 2)
    read, written = cache.row_views()
    for index in range(2):
        keys, values = torch.rand(1, 2, 2, 4), torch.rand(1, 2, 2, 4)
        updated = cache.layers[index].update(keys, values)
        assert torch.equal(written[2 * index], keys)
        assert torch.equal(written[2 * index + 1], values)
        assert torch.equal(read[2 * index], updated[0])
        assert torch.equal(read[2 * index + 1], updated[1])
    cache.select([0, 1], [3, 4], 1)
    assert cache.row_views() is None
    uneven = SlotKVCache([LayerShape(2, 4, 6)], plan, torch.zeros(1))
    uneven.select([0], [0], 1)
    assert uneven.row_views() is None
