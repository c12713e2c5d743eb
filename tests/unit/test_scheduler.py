"""The scheduler, with plain lists: turns, budgets, slots without holes, nothing lost."""

import random

from hypothesis import given
from hypothesis import strategies as st
from numpy.random import default_rng

from superdraft.decoding.draft_set import DraftSet
from superdraft.decoding.draft_text import TokenAppender
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.scheduler import Decode, Prefill, Scheduler, SlotMove
from superdraft.decoding.sequence import Branch, Sequence


def sequence(name: str, num_tokens: int = 4, rows: int = 1) -> Sequence:
    params = GenerationParams(strategy="sample", num_drafts=rows)
    new = Sequence(name, [1] * num_tokens, params, None, TokenAppender((), frozenset()), max_positions=100)
    new.branches.append(Branch(new, DraftSet(), default_rng(0)))
    return new


def prefill(scheduler: Scheduler, work: Prefill) -> list[SlotMove]:
    """What the engine does with a prefill: run a chunk; at the end start the first branch and fork the others."""
    (branch,) = work.sequence.branches
    num_tokens = min(work.max_tokens, work.sequence.num_unfed_tokens)
    branch.num_computed += num_tokens
    scheduler.charge(num_tokens)
    if work.sequence.num_unfed_tokens:
        return []
    moves = [scheduler.start()]
    for _ in range(work.sequence.params.num_rows - 1):
        twin = Branch(work.sequence, DraftSet(), default_rng(0), num_computed=branch.num_computed)
        moves.append(scheduler.fork(branch, twin))
        work.sequence.branches.append(twin)
    return [move for move in moves if move is not None]


def trace(scheduler: Scheduler, steps: int) -> list[tuple]:
    events: list[tuple] = []
    for _ in range(steps):
        work = scheduler.schedule()
        if isinstance(work, Prefill):
            before = work.sequence.branches[0].num_computed
            prefill(scheduler, work)
            events.append(("prefill", work.sequence.request_id, work.sequence.branches[0].num_computed - before))
        elif isinstance(work, Decode):
            events.append(("decode", [branch.sequence.request_id for branch in work.branches]))
    return events


def test_several_short_prompts_go_between_two_decode_steps():
    scheduler = Scheduler(8, max_prefill_tokens=10)
    for name in "abcd":
        scheduler.add(sequence(name, 4))
    assert trace(scheduler, 6) == [
        ("prefill", "a", 4),
        ("prefill", "b", 4),
        ("prefill", "c", 2),
        ("decode", ["a", "b"]),
        ("prefill", "c", 2),
        ("prefill", "d", 4),
    ]


def test_a_long_prompt_is_cut_into_chunks_and_drafts_go_on_in_between():
    scheduler = Scheduler(4, max_prefill_tokens=10)
    scheduler.add(sequence("short", 3))
    scheduler.add(sequence("long", 25))
    assert trace(scheduler, 7) == [
        ("prefill", "short", 3),
        ("prefill", "long", 7),
        ("decode", ["short"]),
        ("prefill", "long", 10),
        ("decode", ["short"]),
        ("prefill", "long", 8),
        ("decode", ["short", "long"]),
    ]


def test_a_request_with_many_branches_waits_for_its_slots_and_is_not_overtaken():
    scheduler = Scheduler(4, max_prefill_tokens=100)
    first, wide, last = sequence("first", 4, rows=2), sequence("wide", 4, rows=3), sequence("last", 4)
    for one in (first, wide, last):
        scheduler.add(one)
    assert trace(scheduler, 3) == [("prefill", "first", 4), ("decode", ["first"] * 2), ("decode", ["first"] * 2)]
    scheduler.end(first.branches[0])
    everybody = ["first", "wide", "wide", "wide"]
    assert trace(scheduler, 3) == [("prefill", "wide", 4), ("decode", everybody), ("decode", everybody)]
    assert scheduler.num_waiting == 1


def test_the_last_running_branch_moves_into_the_hole():
    scheduler = Scheduler(3, max_prefill_tokens=100)
    a, b, c = (sequence(name) for name in "abc")
    for one in (a, b, c):
        scheduler.add(one)
    trace(scheduler, 3)
    c.branches[0].num_computed = 9
    assert scheduler.remove(a) == [SlotMove(source=2, target=0, length=9)]
    assert (a.branches[0].slot, b.branches[0].slot, c.branches[0].slot) == (None, 1, 0)
    assert scheduler.remove(b) == []
    assert scheduler.remove(c) == []
    assert scheduler.schedule() is None


def test_a_prompt_whose_neighbours_ended_moves_up_when_it_starts():
    scheduler = Scheduler(4, max_prefill_tokens=5)
    a, b = sequence("a", 2), sequence("b", 8)
    scheduler.add(a)
    scheduler.add(b)
    trace(scheduler, 2)  # a runs in slot 0, b is half through in slot 1
    assert scheduler.remove(a) == []
    work = scheduler.schedule()
    assert isinstance(work, Prefill)
    assert prefill(scheduler, work) == [SlotMove(source=1, target=0, length=8)]
    assert b.branches[0].slot == 0


@given(st.lists(st.integers(0, 9), max_size=80), st.integers(1, 5), st.integers(1, 12), st.randoms())
def test_slots_stay_compact_and_hold_what_belongs_there(actions, num_slots, budget, rng: random.Random):
    """`memory[slot]` is whose keys and values a slot holds, kept up to date by the moves alone."""
    scheduler = Scheduler(num_slots, budget)
    here: list[Sequence] = []
    memory: dict[int, Sequence] = {}
    for number, action in enumerate(actions):
        if action < 3 or not here:
            here.append(sequence(str(number), rng.randint(1, 20), rng.randint(1, num_slots)))
            scheduler.add(here[-1])
            moves = []
        elif action < 8:
            work = scheduler.schedule()
            moves = []
            if isinstance(work, Prefill):
                memory[work.sequence.branches[0].slot] = work.sequence
                moves = prefill(scheduler, work)
        elif action == 8:
            moves = scheduler.remove(here.pop(rng.randrange(len(here))))
        else:
            running = [b for s in here for b in s.branches if b.slot is not None and not s.num_unfed_tokens]
            move = scheduler.end(rng.choice(running)) if running else None
            moves = [move] if move else []
        for move in moves:
            memory[move.target] = memory[move.source]
        running = [b for s in here for b in s.branches if b.slot is not None and not s.num_unfed_tokens]
        assert sorted(b.slot for b in running) == list(range(len(running)))
        assert all(memory[b.slot] is b.sequence for b in running)
        assert scheduler.num_used_slots <= num_slots
