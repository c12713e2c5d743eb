"""How the memory for keys and values is divided."""

import sys
from pathlib import Path

import pytest
import torch

from superdraft.decoding.errors import ModelLoadError
from superdraft.decoding.kv_cache import CachePlan, LayerShape, SlotKVCache, plan_cache

# 2 layers, 3 heads, keys of 4 and values of 6 numbers of 2 bytes: 2 * 3 * 10 * 2 = 120 bytes a position
SHAPES = [LayerShape(3, 4, 6)] * 2


def test_three_quarters_are_slots_and_the_rest_keeps_prompts():
    plan = plan_cache(SHAPES, 2, memory_bytes=120 * 1000, max_len=100, num_slots=None)
    assert (plan.bytes_per_position, plan.num_slots, plan.num_prefix_positions) == (120, 7, 300)


def test_a_given_number_of_slots_may_take_it_all():
    plan = plan_cache(SHAPES, 2, memory_bytes=120 * 1000, max_len=100, num_slots=10)
    assert (plan.num_slots, plan.num_prefix_positions) == (10, 0)


def test_there_are_at_most_64_slots_unless_more_are_asked_for():
    assert plan_cache(SHAPES, 2, memory_bytes=120 * 100_000, max_len=10, num_slots=None).num_slots == 64
    assert plan_cache(SHAPES, 2, memory_bytes=120 * 100_000, max_len=10, num_slots=200).num_slots == 200


@pytest.mark.parametrize(("num_slots", "wanted"), [(None, 1), (11, 11)])
def test_what_does_not_fit_is_refused_with_the_remedy(num_slots, wanted):
    memory = 120 * 100 * wanted - 1
    with pytest.raises(ModelLoadError, match=rf"{wanted} slots of max_model_len 100 need .* MB\. Raise kv_memory"):
        plan_cache(SHAPES, 2, memory_bytes=memory, max_len=100, num_slots=num_slots)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_slots_are_zero_and_take_memory_only_where_something_was_written():
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
