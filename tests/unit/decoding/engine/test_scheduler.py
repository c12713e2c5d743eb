"""The scheduler: turns, budgets, slots without holes, no lost request."""

import random

from hypothesis import given
from hypothesis import strategies as st
from numpy.random import default_rng

from superdraft.decoding.engine.scheduler import Decode, Prefill, Scheduler, SlotMove
from superdraft.decoding.engine.sequence import Branch, Sequence
from superdraft.decoding.method.draft_set import DraftSet, TokenAppender
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.request import EngineRequest


def sequence(name: str, num_tokens: int = 4, rows: int = 1) -> Sequence:
    params = GenerationParams(strategy="sample", num_drafts=rows)
    new = Sequence(
        EngineRequest(name, "", params), [1] * num_tokens, None, TokenAppender((), frozenset()), max_positions=100
    )
    new.branches.append(Branch(new, DraftSet(), default_rng(0)))
    return new


def new_scheduler(num_slots: int, max_prefill_tokens: int) -> Scheduler:
    return Scheduler(num_slots, max_prefill_tokens, lambda waiting: waiting.num_unfed_tokens)


def prefill(scheduler: Scheduler, work: Prefill) -> list[SlotMove]:
    """A prefill as the engine does it: run the tokens, start complete prompts and fork their branches."""
    moves: list[SlotMove | None] = []
    for one in work.sequences:
        one.branches[0].num_computed += min(work.max_tokens, one.num_unfed_tokens)
    for one in work.sequences:
        if one.num_unfed_tokens:
            continue
        moves.append(scheduler.start(one))
        moves += fork(scheduler, one)
    return [move for move in moves if move is not None]


def fork(scheduler: Scheduler, one: Sequence) -> list[SlotMove]:
    (branch,), moves = one.branches, []
    for _ in range(one.params.num_rows - 1):
        twin = Branch(one, DraftSet(), default_rng(0), num_computed=branch.num_computed)
        moves.append(scheduler.fork(branch, twin))
        one.branches.append(twin)
    return moves


def decode(scheduler: Scheduler, work: Decode) -> list[SlotMove]:
    """A decode step as the engine does it, with the requests that join."""
    for one in work.joining:
        one.branches[0].num_computed += 1
    return [move for one in work.joining for move in fork(scheduler, one)]


def trace(scheduler: Scheduler, steps: int) -> list[tuple]:
    events: list[tuple] = []
    for _ in range(steps):
        work = scheduler.schedule()
        if isinstance(work, Prefill):
            before = [one.branches[0].num_computed for one in work.sequences]
            prefill(scheduler, work)
            after = [one.branches[0].num_computed for one in work.sequences]
            run = {one.request_id: y - x for one, x, y in zip(work.sequences, before, after, strict=True)}
            events.append(("prefill", run))
        elif isinstance(work, Decode):
            events.append(("decode", [branch.sequence.request_id for branch in work.branches]))
            decode(scheduler, work)
    return events


def test_short_prompts_that_fit_with_their_padding_are_run_together():
    scheduler = new_scheduler(8, max_prefill_tokens=12)
    for name, num_tokens in zip("abcd", (2, 4, 3, 2), strict=True):
        scheduler.add(sequence(name, num_tokens))
    # 3 rows padded to 4 tokens are 12; a fourth would be 16
    assert trace(scheduler, 4) == [
        ("prefill", {"a": 2, "b": 4, "c": 3}),
        ("decode", ["a", "b", "c"]),
        ("prefill", {"d": 2}),
        ("decode", ["a", "b", "c", "d"]),
    ]


def test_a_prompt_that_lacks_one_token_joins_a_decode_step_without_overtaking():
    scheduler = new_scheduler(4, max_prefill_tokens=12)
    for name, num_tokens in zip("abcd", (1, 3, 1, 1), strict=True):
        scheduler.add(sequence(name, num_tokens))
    assert trace(scheduler, 2) == [("decode", ["a"]), ("prefill", {"b": 3})]
    work = scheduler.schedule()
    assert isinstance(work, Decode)
    assert [one.request_id for one in work.joining] == ["c", "d"]
    assert [branch.slot for branch in work.branches] == [0, 1, 2, 3]
    scheduler.add(sequence("e", 1))  # there is no slot for it
    assert trace(scheduler, 1) == [("decode", ["a", "b", "c", "d"])]
    scheduler.remove(work.joining[0])
    assert trace(scheduler, 1) == [("decode", ["a", "b", "d", "e"])]


def test_the_slots_that_a_joining_request_will_fork_into_are_kept():
    scheduler = new_scheduler(4, max_prefill_tokens=12)
    scheduler.add(sequence("wide", 1, rows=3))
    scheduler.add(sequence("other", 1, rows=2))
    work = scheduler.schedule()
    assert isinstance(work, Decode)
    assert [one.request_id for one in work.joining] == ["wide"]
    assert scheduler.num_kept_slots(work.joining[0]) == 2


def test_a_long_prompt_is_cut_into_chunks_and_stalls_neither_drafts_nor_short_prompts():
    scheduler = new_scheduler(4, max_prefill_tokens=10)
    scheduler.add(sequence("short", 3))
    scheduler.add(sequence("long", 25))
    scheduler.add(sequence("other", 3))
    assert trace(scheduler, 8) == [
        ("prefill", {"short": 3, "other": 3}),
        ("decode", ["short", "other"]),
        ("prefill", {"long": 10}),
        ("decode", ["short", "other"]),
        ("prefill", {"long": 10}),
        ("decode", ["short", "other"]),
        ("prefill", {"long": 5}),
        ("decode", ["short", "other", "long"]),
    ]


def test_short_prompts_take_turns_with_the_long_one():
    scheduler = new_scheduler(8, max_prefill_tokens=10)
    scheduler.add(sequence("long", 25))
    trace(scheduler, 1)
    kinds = []
    for number in range(4):
        scheduler.add(sequence(f"s{number}", 2))
        kinds += [list(run) for kind, run in trace(scheduler, 2) if kind == "prefill"]
    assert kinds[:4] == [["s0"], ["long"], ["s1", "s2"], ["long"]]


def test_a_request_with_many_branches_waits_for_its_slots_and_is_not_overtaken():
    scheduler = new_scheduler(4, max_prefill_tokens=100)
    first, wide, last = sequence("first", 4, rows=2), sequence("wide", 4, rows=3), sequence("last", 4)
    for one in (first, wide, last):
        scheduler.add(one)
    both = ("decode", ["first"] * 2)
    assert trace(scheduler, 3) == [("prefill", {"first": 4}), both, both]
    scheduler.end(first.branches[0])
    all_rows = ["first", "wide", "wide", "wide"]
    assert trace(scheduler, 3) == [("prefill", {"wide": 4}), ("decode", all_rows), ("decode", all_rows)]
    assert scheduler.num_waiting == 1


def test_the_last_running_branch_moves_into_the_hole():
    scheduler = new_scheduler(3, max_prefill_tokens=100)
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


def test_a_long_prompt_waits_in_the_last_slot_and_moves_up_when_it_starts():
    scheduler = new_scheduler(4, max_prefill_tokens=5)
    a, long = sequence("a", 2), sequence("long", 8)
    scheduler.add(a)
    scheduler.add(long)
    trace(scheduler, 3)  # a runs in slot 0, the long one is being prefilled in slot 3
    assert (a.branches[0].slot, long.branches[0].slot) == (0, 3)
    assert not scheduler.remove(a)
    work = scheduler.schedule()
    assert isinstance(work, Prefill)
    assert prefill(scheduler, work) == [SlotMove(source=3, target=0, length=8)]
    assert long.branches[0].slot == 0


def test_the_next_of_a_batch_moves_up_if_the_one_before_ended_at_once():
    scheduler = new_scheduler(4, max_prefill_tokens=50)
    a, b = sequence("a", 2), sequence("b", 3)
    scheduler.add(a)
    scheduler.add(b)
    scheduler.schedule()
    a.branches[0].num_computed, b.branches[0].num_computed = 2, 3
    assert scheduler.start(a) is None
    assert scheduler.remove(a) == []
    assert scheduler.start(b) == SlotMove(source=1, target=0, length=3)


@given(st.lists(st.integers(0, 9), max_size=80), st.integers(1, 5), st.integers(1, 12), st.randoms())
def test_slots_stay_compact_and_hold_the_right_sequence(actions, num_slots, budget, rng: random.Random):
    """`memory[slot]` is the sequence whose keys and values a slot holds; only the moves update it."""
    scheduler = new_scheduler(num_slots, budget)
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
                memory.update({one.branches[0].slot: one for one in work.sequences})
                assert len({one.branches[0].slot for one in work.sequences}) == len(work.sequences)
                moves = prefill(scheduler, work)
            elif isinstance(work, Decode):
                memory.update({one.branches[0].slot: one for one in work.joining})
                moves = decode(scheduler, work)
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
