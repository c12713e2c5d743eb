"""How the memory for keys and values is divided."""

import pytest

from superdraft.decoding.errors import ModelLoadError
from superdraft.decoding.kv_cache import LayerShape, plan_cache

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
