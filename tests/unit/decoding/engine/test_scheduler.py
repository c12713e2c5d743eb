"""The scheduler: turns, budgets, no lost request, no more slots than there are."""

import random
from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from numpy.random import default_rng
from support.fake_runner import FakeRunner
from torch import zeros

from superdraft.decoding.engine.faults import Faults
from superdraft.decoding.engine.scheduler import Scheduler, Work
from superdraft.decoding.engine.sequence import Branch, Sequence
from superdraft.decoding.engine.trees import Trees
from superdraft.decoding.method.draft_set import Draft, DraftSet, TokenAppender
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.request import EngineRequest

MAX_LEN = 64  # 128 cells per slot, 112 of them for prompts and drafts


def sequence(name: str, num_tokens: int = 4, rows: int = 1, max_tokens: int = 8) -> Sequence:
    """A request whose prompt begins like no other one's."""
    params = GenerationParams(strategy="sample", num_drafts=rows, max_tokens=max_tokens)
    new = Sequence(
        EngineRequest(name, "", params, isolation=name),
        [1] * num_tokens,
        None,
        TokenAppender((), frozenset()),
        max_positions=MAX_LEN,
    )
    new.branches.append(branch(new))
    return new


def branch(of: Sequence) -> Branch:
    return Branch(of, DraftSet((Draft(),)), default_rng(0))


class Engine:
    """A scheduler and its trees, and what the engine does between two schedules."""

    def __init__(self, num_slots: int, max_prefill_tokens: int) -> None:
        self.trees = Trees(FakeRunner(num_slots, MAX_LEN))
        self.scheduler = Scheduler(self.trees)
        self.max_prefill_tokens = max_prefill_tokens

    def add(self, *sequences: Sequence) -> None:
        for one in sequences:
            self.scheduler.add(one)

    def step(self) -> Work | None:
        """Run prompts, and start and fork the complete ones."""
        work = self.scheduler.schedule(1.0, self.max_prefill_tokens, Faults())
        for one, num_tokens in work.prompts if work else []:
            if num_tokens:
                num_logits = int(num_tokens == one.num_unfed_tokens)
                self.trees.note_prompt(one, num_tokens, zeros(num_logits, 1))
            if one.num_unfed_tokens == 0:
                self.scheduler.start(one, 0.0)
                one.branches += [branch(one) for _ in range(one.params.num_rows - 1)]
        return work

    def end(self, one: Sequence) -> None:
        self.trees.end(one, failed=False)
        self.scheduler.remove(one)

    def trace(self, steps: int) -> list[tuple[list[str], dict[str, int]]]:
        """For each step the requests of its rows, and the tokens of each prompt."""
        found = []
        for _ in range(steps):
            work = self.step()
            assert work is not None
            rows = [one.sequence.request_id for one in work.branches]
            found.append((rows, {one.request_id: num_tokens for one, num_tokens in work.prompts}))
        return found


def test_prompts_that_fit_in_a_step_are_run_together_and_with_the_rows_of_drafts():
    engine = Engine(8, max_prefill_tokens=12)
    engine.add(*(sequence(name, num_tokens) for name, num_tokens in zip("abcde", (2, 6, 4, 1, 12), strict=True)))
    # The first three have 12 tokens.
    assert engine.trace(4) == [
        ([], {"a": 2, "b": 6, "c": 4}),
        (["a", "b", "c"], {"d": 1}),
        (["a", "b", "c", "d"], {"e": 12}),
        (["a", "b", "c", "d", "e"], {}),
    ]


def test_a_prompt_that_is_known_takes_part_with_no_token_and_does_not_overtake():
    engine = Engine(4, max_prefill_tokens=6)
    known = sequence("known", 5)
    engine.add(known)
    engine.step()
    engine.end(known)
    again = sequence("known", 5)
    engine.add(sequence("a", 6), sequence("b", 3), again)
    assert engine.trace(2) == [([], {"a": 6}), (["a"], {"b": 3, "known": 0})]
    assert again.num_cached_tokens == 5


def test_a_long_prompt_is_cut_into_chunks_and_stalls_neither_drafts_nor_short_prompts():
    engine = Engine(4, max_prefill_tokens=10)
    engine.add(sequence("short", 3), sequence("long", 25), sequence("other", 3))
    assert engine.trace(5) == [
        ([], {"short": 3, "other": 3}),
        (["short", "other"], {"long": 10}),
        (["short", "other"], {"long": 10}),
        (["short", "other"], {"long": 5}),
        (["short", "other", "long"], {}),
    ]


def test_short_prompts_take_turns_with_the_long_one():
    engine = Engine(8, max_prefill_tokens=10)
    engine.add(sequence("long", 35))
    kinds = [engine.trace(1)[0][1]]
    for number in range(6):
        engine.add(sequence(f"s{number}", 2))
        kinds += [prompts for _, prompts in engine.trace(1)]
    assert kinds == [
        {"long": 10},
        {"s0": 2},
        {"long": 10},
        {"s1": 2, "s2": 2},
        {"long": 10},
        {"s3": 2, "s4": 2},
        {"long": 5},
    ]


def test_a_second_long_prompt_waits_for_the_first_and_is_not_overtaken():
    engine = Engine(8, max_prefill_tokens=10)
    first = sequence("first", 25)
    engine.add(first, sequence("second", 25), sequence("short", 2))
    assert [prompts for _, prompts in engine.trace(3)] == [{"first": 10}, {"first": 10}, {"first": 5}]
    assert engine.scheduler.num_waiting == 2
    assert [prompts for _, prompts in engine.trace(3)] == [{"short": 2}, {"second": 10}, {"second": 10}]


def test_a_request_waits_for_a_slot():
    engine = Engine(2, max_prefill_tokens=100)
    a, b, c = (sequence(name) for name in "abc")
    engine.add(a, b, c)
    assert engine.trace(2) == [([], {"a": 4, "b": 4}), (["a", "b"], {})]
    assert (engine.scheduler.num_waiting, engine.scheduler.num_rows) == (1, 2)
    engine.end(a)
    assert engine.trace(2) == [(["b"], {"c": 4}), (["b", "c"], {})]
    assert [one.trees[0].slot for one in (b, c)] == [1, 0]


def test_a_request_that_needs_several_slots_waits_for_them_and_is_not_overtaken():
    """Eight rows of 40 tokens behind 4: two rows fit in a slot."""
    engine = Engine(4, max_prefill_tokens=100)
    first, wide, last = sequence("first"), sequence("wide", rows=8, max_tokens=40), sequence("last")
    assert engine.trees.needs(wide) == 4
    engine.add(first, wide, last)
    assert engine.trace(2) == [([], {"first": 4}), (["first"], {})]
    engine.end(first)
    assert engine.trace(2) == [([], {"wide": 4}), (["wide"] * 8, {})]
    assert len({tree.slot for tree in wide.trees}) == 4
    engine.end(wide)
    assert engine.trace(1) == [([], {"last": 4})]
    assert engine.trees.num_used == 1


def test_a_branch_that_is_done_has_no_row():
    engine = Engine(2, max_prefill_tokens=100)
    one = sequence("one", rows=3)
    engine.add(one)
    engine.step()
    one.branches[1].num_steps = one.params.max_tokens
    work = engine.scheduler.schedule(2.0, engine.max_prefill_tokens, Faults())
    assert work.branches == [one.branches[0], one.branches[2]]
    assert work.sequences == [one]


@given(st.lists(st.integers(0, 9), max_size=80), st.integers(1, 5), st.integers(1, 12), st.randoms())
def test_every_request_is_run_in_the_order_of_arrival_whatever_ends_meanwhile(
    actions, num_slots, budget, rng: random.Random
):
    engine = Engine(num_slots, budget)
    here: list[Sequence] = []
    begun: list[int] = []

    def step() -> None:
        work = engine.step()
        assert engine.trees.num_used <= num_slots
        used = [tree.slot for one in here for tree in one.trees]
        assert len(set(used)) == len(used) == engine.trees.num_used
        if work is None:
            assert not here
            return
        prompted = {one for one, _ in work.prompts}
        assert 0 <= sum(num_tokens for _, num_tokens in work.prompts) <= budget
        assert Counter(one.sequence for one in work.branches) == {
            one: one.params.num_rows for one in here if not one.num_unfed_tokens and one not in prompted
        }
        begun.extend(number for one in here if one.trees and (number := int(one.request_id)) not in begun)

    for number, action in enumerate(actions):
        if action < 3 or not here:
            rows = rng.randint(1, 2 * num_slots)
            here.append(sequence(str(number), rng.randint(1, 20), rows, rng.choice([4, 40])))
            if engine.trees.needs(here[-1]) > num_slots:
                here.pop()
            else:
                engine.add(here[-1])
        elif action < 8:
            step()
        else:
            engine.end(here.pop(rng.randrange(len(here))))
    num_steps = 0
    while here:  # all are run to their ends
        step()
        for one in [one for one in here if not one.num_unfed_tokens][:1]:
            engine.end(one)
            here.remove(one)
        num_steps += 1
        assert num_steps < 1000
    assert engine.trees.num_used == 0
    assert begun == sorted(begun)


def warm_up(name: str, num_tokens: int) -> Sequence:
    new = sequence(name, num_tokens, max_tokens=0)
    new.request = replace(new.request, is_warm_up=True)
    return new


def test_a_warm_up_runs_when_nothing_else_is_to_do_and_goes_on_where_it_was():
    engine = Engine(4, max_prefill_tokens=10)
    first, second, drafts = warm_up("first", 25), warm_up("second", 5), sequence("drafts", 25)
    engine.add(first, second)
    assert [prompts for _, prompts in engine.trace(1)] == [{"first": 10}]
    engine.add(drafts)
    assert engine.scheduler.num_waiting == 1  # nobody waits for warm-ups
    assert [prompts for _, prompts in engine.trace(4)] == [{"drafts": 10}, {"drafts": 10}, {"drafts": 5}, {}]
    engine.end(drafts)
    assert [prompts for _, prompts in engine.trace(2)] == [{"first": 10}, {"first": 5}]
    engine.end(first)
    assert [prompts for _, prompts in engine.trace(1)] == [{"second": 5}]
    engine.scheduler.remove(second)
    assert engine.step() is None


def test_a_warm_up_that_is_dropped_is_forgotten():
    engine = Engine(1, max_prefill_tokens=10)
    begun, waiting = warm_up("begun", 25), warm_up("waiting", 25)
    engine.add(begun, waiting)
    engine.trace(1)
    engine.end(begun)
    engine.scheduler.remove(waiting)
    assert engine.step() is None
