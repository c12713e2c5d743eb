"""The scheduler, with plain lists: order, slots without holes, nothing lost."""

from hypothesis import given
from hypothesis import strategies as st

from superdraft.decoding.draft_text import TokenAppender
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.scheduler import Scheduler, SlotMove
from superdraft.decoding.sequence import Sequence


def sequence(name: str) -> Sequence:
    extend = TokenAppender((), frozenset())
    return Sequence(name, [1], GenerationParams(), None, extend, arrival_s=0.0, num_computed=5)


def test_prompts_go_first_while_a_slot_is_free_then_all_decode_together():
    scheduler = Scheduler(2)
    for name in "abc":
        scheduler.add(sequence(name))
    names = []
    for _ in range(4):
        batch = scheduler.schedule()
        assert batch is not None
        names.append(("prefill" if batch.is_prefill else "decode", [s.request_id for s in batch.sequences]))
    assert names == [("prefill", ["a"]), ("prefill", ["b"]), ("decode", ["a", "b"]), ("decode", ["a", "b"])]
    assert (scheduler.num_waiting, scheduler.num_running) == (1, 2)


def test_the_last_running_one_moves_into_the_hole():
    scheduler = Scheduler(3)
    a, b, c = (sequence(name) for name in "abc")
    for s in (a, b, c):
        scheduler.add(s)
        scheduler.schedule()
    c.num_computed = 9
    assert scheduler.remove(a) == SlotMove(source=2, target=0, length=9)
    assert (a.slot, c.slot, b.slot) == (None, 0, 1)
    assert scheduler.remove(b) is None
    assert scheduler.remove(c) is None
    assert scheduler.schedule() is None


def test_a_waiting_one_can_be_removed():
    scheduler = Scheduler(1)
    a, b = sequence("a"), sequence("b")
    scheduler.add(a)
    scheduler.add(b)
    assert scheduler.remove(a) is None
    batch = scheduler.schedule()
    assert batch is not None
    assert batch.sequences == [b]


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(1, 4))
def test_slots_stay_compact_and_every_sequence_is_somewhere(actions, num_slots):
    scheduler = Scheduler(num_slots)
    here: list[Sequence] = []
    for number, action in enumerate(actions):
        if action < 5 or not here:
            here.append(sequence(str(number)))
            scheduler.add(here[-1])
        elif action < 8:
            scheduler.schedule()
        else:
            scheduler.remove(here.pop(number % len(here)))
        running = [s for s in here if s.slot is not None]
        assert sorted(s.slot for s in running) == list(range(scheduler.num_running))
        assert scheduler.num_running <= num_slots
        assert scheduler.num_running + scheduler.num_waiting == len(here)
