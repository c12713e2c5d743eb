"""Token trees on a fake model: what a request finds in a warm slot, what is copied, run and kept, and what is not."""

import importlib.util
import random
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from support.decoding import FailingScorer, HashScorer, run_all
from support.fake_runner import FakeRunner, fake_engine
from support.requests import some_request

import superdraft.decoding.engine.tree as tree_module
from superdraft.decoding.engine.decode import KEPT_DEPTH
from superdraft.decoding.engine.engine import Engine
from superdraft.decoding.engine.kept_logits import KeptLogits
from superdraft.decoding.engine.tree import Node, Tree, num_common, text_keys
from superdraft.decoding.errors import SequenceFailedError
from superdraft.decoding.method.scoring import Candidates
from superdraft.decoding.outputs import GenerationOutput
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.request import EngineRequest

PROMPT = list(range(70, 90))
ONE = GenerationParams(num_drafts=1, max_tokens=6, alpha=0.0)
GREEDY = GenerationParams(strategy="greedy", num_drafts=1, max_tokens=6)


def cold(prompt: object, params: GenerationParams = GREEDY, **options: object) -> GenerationOutput:
    """The answer of a new engine."""
    return fake_engine(**options)[0].generate(prompt, params)


def cached(engine: Engine, prompt: object, params: GenerationParams = GREEDY, isolation: str = "") -> int:
    """Answer a request, which must be what a new engine answers; how many of its tokens were not run."""
    num_before = engine.num_prefilled_tokens
    engine.add_request(EngineRequest("cached", prompt, params, isolation=isolation))
    output = run_all(engine)["cached"].output
    assert drafts(output) == drafts(cold(prompt, params))
    assert engine.num_prefilled_tokens - num_before == output.usage.prompt_tokens - output.usage.cached_tokens
    return output.usage.cached_tokens


def drafts(output: GenerationOutput) -> list[tuple[tuple[int, ...], str]]:
    return [(draft.token_ids, draft.finish_reason) for draft in output.drafts]


def test_a_warm_slot_is_continued_without_a_copy():
    engine, runner, _ = fake_engine(num_slots=1)
    assert cached(engine, PROMPT) == 0
    assert cached(engine, [*PROMPT, 5, 6, 7]) == 20
    assert runner.prefilled[-6:][0] == [3]
    assert cached(engine, [*PROMPT, 5, 6, 7]) == 23  # the same once more: no token
    assert cached(engine, [*PROMPT, 5]) == 20  # the 21st token's keys and values are there, its logits were not needed
    assert cached(engine, PROMPT[:12]) == 11
    assert engine.num_copied_bytes == 0


def test_an_accepted_draft_is_put_behind_the_prompt_and_not_run_again():
    engine, _, _ = fake_engine(num_slots=1)
    (draft,) = engine.generate(PROMPT, GREEDY).drafts
    accepted = [*PROMPT, *draft.token_ids[:4]]
    assert cached(engine, accepted) == len(accepted) - 1  # the logits so far down a draft are not kept
    assert engine.num_copied_bytes == 3  # three cells of a byte
    (draft,) = cold(accepted).drafts
    assert cached(engine, [*accepted, *draft.token_ids, 9]) == len(accepted) + 5  # the last token was never fed


@pytest.mark.parametrize("index", range(3))
def test_any_draft_on_a_row_of_its_own_can_be_accepted(index):
    distinct = GenerationParams(num_drafts=3, max_branches=3, selection="distinct", alpha=0.0, tau=1.0, max_tokens=6)
    engine, _, _ = fake_engine(num_slots=1)
    draft = engine.generate(PROMPT, distinct).drafts[index]
    accepted = [*PROMPT, *draft.token_ids, 9]
    assert cached(engine, accepted, distinct) == len(PROMPT) + 5


def test_superposed_cells_are_never_found():
    superposed = GenerationParams(num_drafts=3, max_tokens=6, alpha=0.0, tau=1.0)
    for index in range(3):
        engine, _, _ = fake_engine(num_slots=1)
        draft = engine.generate(PROMPT, superposed).drafts[index]
        assert cached(engine, [*PROMPT, *draft.token_ids], superposed) == len(PROMPT)


def distinct(num_drafts: int = 3, max_tokens: int = 6, **options: object) -> GenerationParams:
    return GenerationParams(
        num_drafts=num_drafts, max_branches=8, selection="distinct", alpha=0.0, max_tokens=max_tokens, **options
    )


def test_a_repeated_request_runs_nothing_and_another_length_only_what_is_new():
    engine, runner, _ = fake_engine(num_slots=1)
    first = engine.generate(PROMPT, distinct())
    assert (first.usage.forward_rows, first.usage.reused_drafts) == (3 * 5, 0)
    num_forwards = len(runner.decoded)
    again = engine.generate(PROMPT, distinct())
    assert drafts(again) == drafts(first)
    assert (again.usage.forward_rows, again.usage.reused_drafts, len(runner.decoded)) == (0, 3, num_forwards)
    longer = engine.generate(PROMPT, distinct(max_tokens=8))
    assert drafts(longer) == drafts(cold(PROMPT, distinct(max_tokens=8)))
    assert longer.usage.forward_rows == 3 * 2


@pytest.mark.parametrize(
    "params",
    [
        distinct(logit_bias=((9, 1.0),)),
        distinct(num_drafts=5),
        distinct(frequency_penalty=1.5),
        GenerationParams(num_drafts=3, max_tokens=6, alpha=0.0),
        GenerationParams(strategy="sample", num_drafts=3, seed=1, max_tokens=6),
        GREEDY,
    ],
    ids=["logit bias", "more candidates", "penalty", "paper", "sample", "greedy"],
)
def test_what_is_known_never_changes_the_drafts_of_other_requests(params):
    engine, _, _ = fake_engine(num_slots=1)
    for one in (distinct(), params, distinct()):
        assert drafts(engine.generate(PROMPT, one)) == drafts(cold(PROMPT, one))


def test_with_a_scorer_known_rows_are_scored_anew():
    params = GenerationParams(num_drafts=3, max_branches=3, selection="distinct", alpha=0.5, max_tokens=6)
    engine, _, _ = fake_engine(num_slots=1)
    engine.generate(PROMPT, distinct())
    assert drafts(engine.generate(PROMPT, params, HashScorer())) == drafts(
        fake_engine()[0].generate(PROMPT, params, HashScorer())
    )


def test_typing_along_a_draft_runs_only_the_rows_of_new_drafts():
    engine, _, _ = fake_engine(num_slots=1)
    draft = engine.generate(PROMPT, distinct()).drafts[0]
    typed = [*PROMPT, *draft.token_ids[:2]]
    again = engine.generate(typed, distinct())
    assert drafts(again) == drafts(cold(typed, distinct()))
    assert again.usage.forward_rows < cold(typed, distinct()).usage.forward_rows


def test_the_beginning_of_a_running_request_is_copied():
    engine, _, _ = fake_engine(num_slots=3)
    engine.add_request(EngineRequest("running", PROMPT, GREEDY))
    for _ in range(3):
        engine.step()
    engine.add_request(EngineRequest("same", PROMPT, GREEDY))
    engine.add_request(EngineRequest("longer", [*PROMPT, 5], GREEDY))
    outputs = run_all(engine)
    assert engine.num_copied_bytes == 2 * len(PROMPT)
    for name, prompt in (("running", PROMPT), ("same", PROMPT), ("longer", [*PROMPT, 5])):
        assert drafts(outputs[name].output) == drafts(cold(prompt))
    assert engine.num_prefilled_tokens == len(PROMPT) + 1


def test_a_short_beginning_of_a_long_warm_text_is_copied_and_the_text_kept():
    engine, _, _ = fake_engine(num_slots=2)
    cached(engine, PROMPT)
    assert cached(engine, [*PROMPT[:8], 5]) == 8
    assert engine.num_copied_bytes == 8
    assert cached(engine, PROMPT) == 20


@pytest.mark.parametrize(("isolation", "num_cached"), [("a", 20), ("b", 0), ("", 0)])
def test_only_requests_of_the_same_isolation_find_what_is_kept(isolation, num_cached):
    engine, _, _ = fake_engine(num_slots=2)
    engine.add_request(EngineRequest("first", PROMPT, GREEDY, isolation="a"))
    run_all(engine)
    assert cached(engine, [*PROMPT, 5], isolation=isolation) == num_cached


def test_a_running_request_of_another_isolation_is_not_copied():
    engine, _, _ = fake_engine(num_slots=2)
    engine.add_request(EngineRequest("first", PROMPT, GREEDY, isolation="a"))
    engine.step()
    engine.add_request(EngineRequest("second", PROMPT, GREEDY, isolation="b"))
    outputs = run_all(engine)
    assert outputs["second"].output.usage.cached_tokens == 0
    assert engine.num_copied_bytes == 0


def test_the_least_recently_used_text_makes_room():
    engine, _, _ = fake_engine(num_slots=3)
    texts = [[first, *PROMPT] for first in range(4)]
    for text in (texts[0], texts[1], texts[2], texts[0], texts[3]):
        engine.generate(text, GREEDY)
    assert cached(engine, texts[0]) == 21
    assert cached(engine, texts[2]) == 21
    assert cached(engine, texts[3]) == 21
    assert cached(engine, texts[1]) == 0


def test_forgotten_prompts_are_run_again_but_not_those_of_running_requests():
    engine, _, _ = fake_engine(num_slots=2)
    engine.generate(PROMPT, GREEDY)
    engine.add_request(EngineRequest("running", [*PROMPT[:10], 5], GREEDY))
    engine.step()
    engine.forget_prompts()
    assert drafts(run_all(engine)["running"].output) == drafts(cold([*PROMPT[:10], 5]))
    assert cached(engine, PROMPT) == 10
    engine.forget_prompts()
    assert cached(engine, PROMPT) == 0


@pytest.mark.parametrize("end", ["cancelled", "expired"])
def test_a_long_prompt_that_ends_early_keeps_what_it_has_run(end):
    engine, _, clock = fake_engine(num_slots=2, max_prefill_tokens=6)
    engine.add_request(EngineRequest("long", PROMPT, GREEDY, deadline_s=clock.now_s + 1.0))
    for _ in range(2):
        engine.step()
    if end == "cancelled":
        engine.cancel("long")
    else:
        clock.now_s = 2.0
    run_all(engine)
    assert cached(engine, PROMPT) == 12


def broken(engine: Engine, runner: FakeRunner) -> None:
    forward, calls = runner.forward, []

    def raising(*args: object) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise MemoryError
        return forward(*args)

    runner.forward = raising
    engine.add_request(EngineRequest("failing", PROMPT, GREEDY))


def scored(engine: Engine, _: FakeRunner) -> None:
    params = GenerationParams(num_drafts=2, max_tokens=6)
    engine.add_request(EngineRequest("failing", PROMPT, params, FailingScorer(calls=2)))


@pytest.mark.parametrize("fail", [broken, scored])
def test_a_failed_request_leaves_nothing(fail: Callable[[Engine, FakeRunner], None]):
    engine, runner, _ = fake_engine(num_slots=2)
    fail(engine, runner)
    assert run_all(engine)["failing"].error is not None
    assert all(cell is None for slot in runner.cache.slots for cell in slot)
    assert cached(engine, PROMPT) == 0


def test_a_failing_forward_does_not_end_a_request_whose_prompt_is_known():
    engine, runner, _ = fake_engine(num_slots=3)
    engine.generate(PROMPT, GREEDY)
    engine.add_request(EngineRequest("running", [1, 2], GREEDY))
    engine.step()
    engine.add_request(EngineRequest("known", PROMPT, GREEDY))
    forward = runner.forward
    runner.forward = lambda *_: (_ for _ in ()).throw(MemoryError())
    assert [output.request_id for output in engine.step()] == ["running"]
    runner.forward = forward
    assert drafts(run_all(engine)["known"].output) == drafts(cold(PROMPT))


WIDE = GenerationParams(strategy="sample", num_drafts=6, max_tokens=30, seed=4)


@pytest.mark.parametrize("healing", [False, True])
@pytest.mark.parametrize("strategy", ["sample", "sample+superposed"])
def test_a_wide_sampler_over_several_slots_equals_the_same_one_in_a_slot(strategy, healing):
    """A slot of 128 cells has room for three of its rows, one of 512 for all."""
    superposed = {"num_branches": 6, "num_drafts": 2} if strategy == "sample+superposed" else {}
    options = {"strategy": strategy, "num_drafts": 6, "max_tokens": 30, "seed": 4, "alpha": 0.0, "tau": 0.5}
    params = GenerationParams(**(options | superposed), token_healing=healing)
    narrow, _, _ = fake_engine(num_slots=4)
    broad, _, _ = fake_engine(num_slots=1, max_model_len=256)
    text = "Thank you for your ema"
    for engine in (narrow, broad):
        engine.add_request(EngineRequest("a", text, params))
        engine.step()
    assert (narrow.num_used_slots, broad.num_used_slots) == (2, 1)
    found, expected = (run_all(engine)["a"].output for engine in (narrow, broad))
    assert drafts(found) == drafts(expected)
    assert len(found.drafts) >= 6


def test_after_a_wide_sampler_only_the_drafts_of_its_first_slot_are_found():
    engine, runner, _ = fake_engine(num_slots=4)
    output = engine.generate(PROMPT, WIDE)
    found = []
    for draft in output.drafts:
        engine.forget_prompts()
        for slot in range(4):
            runner.cache.clear(slot)
        assert drafts(engine.generate(PROMPT, WIDE)) == drafts(output)
        found.append(cached(engine, [*PROMPT, *draft.token_ids, 9]) - len(PROMPT))
    assert sorted(found)[:3] == [0, 0, 0]
    assert min(sorted(found)[3:]) > 20


@pytest.mark.parametrize("num_drafts", [3, 8])
def test_a_row_per_draft_fits_in_one_slot(num_drafts):
    params = GenerationParams(
        num_drafts=num_drafts, max_branches=num_drafts, selection="distinct", alpha=0.0, tau=1.0, max_tokens=11
    )
    engine, runner, _ = fake_engine(num_slots=1)
    output = engine.generate(PROMPT, params)
    assert max(runner.decoded) == num_drafts
    assert len(output.drafts) == num_drafts
    for draft in output.drafts:  # each is what greedy gives from its first token
        greedy = GenerationParams(strategy="greedy", num_drafts=1, max_tokens=10)
        (own,) = cold([*PROMPT, draft.token_ids[0]], greedy).drafts
        assert own.token_ids == draft.token_ids[1:]


def test_a_reset_takes_the_cells_that_it_replaces_when_the_slot_is_full():
    """The prompt, the superposed inputs of a long draft and its real tokens together exceed the slot."""
    params = GenerationParams(num_drafts=2, max_tokens=300, reset_every=290, seed=1, alpha=0.0, tau=1.0)
    engine, runner, _ = fake_engine(num_slots=1, max_model_len=310)
    broad, large, _ = fake_engine(num_slots=1, max_model_len=600)
    assert runner.num_cells < 10 + 289 + 290 < large.num_cells
    assert drafts(engine.generate(PROMPT[:10], params)) == drafts(broad.generate(PROMPT[:10], params))


def node(cell: int) -> Node:
    return Node(cell, Candidates(np.zeros((1, 1), np.int64), np.zeros((1, 1)), np.zeros((1, 1))))


def test_cells_are_taken_in_order_behind_a_gap_then_those_that_no_path_needs():
    tree = Tree(0, 40)
    tree.extend_trunk([5, 6])
    first, second = tree.take(3), tree.take(2)
    assert (first, second) == ((4, 5, 6), (7, 8))
    tree.nodes = {1: node(5), 2: node(8)}
    tree.stems = {3: 7, 4: 6}
    assert len(tree.take(31, [first])) == 31
    assert (set(tree.nodes), set(tree.stems)) == ({1, 2}, {3, 4})
    assert tree.take(4, [first]) == (2, 3, 7, 8)  # the gap, and the second path
    assert (set(tree.nodes), set(tree.stems)) == ({1}, {4})
    with pytest.raises(AssertionError, match="fewer cells than its request was promised"):
        tree.take(36, [first])


def test_nobody_outside_a_process_knows_its_keys():
    """Else callers who share a tree could send texts whose keys collide with those of another's text."""
    processes = []
    for _ in range(2):
        spec = importlib.util.spec_from_file_location("process", tree_module.__file__)
        processes.append(importlib.util.module_from_spec(spec))
        sys.modules["process"] = processes[-1]  # dataclasses look there
        spec.loader.exec_module(processes[-1])
    del sys.modules["process"]
    one, other = (process.text_keys(PROMPT) for process in processes)
    assert not set(one) & set(other)
    assert one == [*processes[0].text_keys(PROMPT[:5]), *processes[0].text_keys(PROMPT[5:], one[4])]


def test_nodes_are_found_behind_any_beginning_of_the_trunk_until_the_trunk_reaches_their_cells():
    tree = Tree(0, 40)
    tree.extend_trunk([1, 2, 3, 4])
    for cell, text in enumerate(([1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6], [1, 2, 8], [1, 2, 8, 9]), 10):
        tree.nodes[text_keys(text)[-1]] = node(cell)

    def match(*text: int) -> tuple[int, tuple[int, ...]]:
        return tree.match(list(text), text_keys(text))

    assert match(1, 2, 3, 4, 5, 6, 8) == (4, (10, 11))
    assert match(1, 2, 8, 9, 5) == (2, (12, 13))
    assert match(1, 2, 3, 5, 6) == (3, ())
    assert match(2, 2) == (0, ())
    tree.truncate(2)
    assert match(1, 2, 3, 4, 5) == (2, ())  # the third token is gone
    tree.extend_trunk([8] * 10)
    assert match(1, 2, 8, 9, 5) == (3, (13,))
    tree.truncate(0)
    assert not tree.nodes


def test_a_prompt_that_ends_after_the_first_tokens_of_a_draft_needs_no_token():
    engine, _, _ = fake_engine(num_slots=1)
    (draft,) = engine.generate(PROMPT, GREEDY).drafts
    for count in range(1, KEPT_DEPTH + 1):
        accepted = [*PROMPT, *draft.token_ids[:count]]
        output = engine.generate(accepted, GREEDY)
        assert output.usage.cached_tokens == len(accepted)
        assert drafts(output) == drafts(cold(accepted))


def test_logits_are_kept_up_to_a_number_of_bytes_and_only_for_those_who_may_see_them():
    kept = KeptLogits(num_bytes=32)
    rows = torch.arange(12.0).view(3, 4)
    for key, row in enumerate(rows[:2]):
        assert kept.put("", key, row).data_ptr() != row.data_ptr()
    assert kept.get("", 0) is not None  # now the first is used more recently than the second
    kept.put("", 2, rows[2])
    assert kept.get("", 1) is None
    assert torch.equal(kept.get("", 0), rows[0])
    assert kept.get("another", 0) is None
    kept.forget()
    assert kept.get("", 0) is None


@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 200])
def test_common_beginnings(length):
    one = list(range(length))
    assert num_common(one, [*one, 7]) == num_common([*one, 7], [*one, 8]) == num_common(one, one) == length


@pytest.mark.parametrize("num_slots", [1, 2, 5])
def test_wide_and_narrow_requests_share_few_slots(num_slots):
    """Texts and their accepted drafts, with all strategies, on slots that are always too few."""
    rng = random.Random(num_slots)
    engine, _, _ = fake_engine(num_slots=num_slots, max_model_len=96, max_prefill_tokens=7)
    known: list[list[int]] = [[5, 6, 7]]
    waiting: dict[str, tuple[list[int], GenerationParams]] = {}
    for number in range(200):
        _, params = some_request(rng)
        text = rng.choice(known)[-60:]
        prompt = [*text[: rng.randint(1, len(text))], *[rng.randrange(5, 299) for _ in range(rng.randint(0, 4))]]
        waiting[str(number)] = prompt, params
        engine.add_request(EngineRequest(str(number), prompt, params, HashScorer()))
        while len(waiting) > 3 or (number == 199 and waiting):
            for output in engine.step():
                if output.is_terminal:
                    asked, wanted = waiting.pop(output.request_id)
                    alone = fake_engine(num_slots=1, max_model_len=96)[0].generate(asked, wanted, HashScorer())
                    assert drafts(output.output) == drafts(alone)
                    known += [[*asked, *draft.token_ids] for draft in output.output.drafts]
    assert engine.num_used_slots == 0


def test_a_request_run_ahead_leaves_the_typists_tree_and_is_found_by_the_one_that_follows():
    engine, _, _ = fake_engine(num_slots=3)
    (draft,) = engine.generate(PROMPT, ONE).drafts
    accepted = [*PROMPT, *draft.token_ids]
    assert engine.has_room_ahead
    engine.add_request(EngineRequest("ahead", accepted, ONE, is_ahead=True))
    run_all(engine)
    num_before = engine.num_prefilled_tokens
    typed = [*PROMPT, draft.token_ids[0]]
    output = engine.generate(typed, ONE)
    assert engine.num_prefilled_tokens == num_before  # the first tree has the draft's nodes
    assert output.usage.forward_rows == 1
    assert engine.num_foreseen == 0
    output = engine.generate(accepted, ONE)
    assert engine.num_prefilled_tokens == num_before
    assert (output.usage.forward_rows, engine.num_foreseen) == (0, 1)
    assert drafts(output) == drafts(cold(accepted, ONE))


def test_a_request_run_ahead_takes_no_other_requests_tree():
    engine, _, _ = fake_engine(num_slots=2)
    engine.generate(PROMPT, GREEDY)
    engine.add_request(EngineRequest("ahead", [*PROMPT[:5], 1], GREEDY, is_ahead=True))
    run_all(engine)
    assert engine.has_room_ahead  # its own tree gives way first
    engine.generate([3, 4, 5], GREEDY)
    assert not engine.has_room_ahead
    assert cached(engine, [3, 4, 5]) == 3
    assert cached(engine, PROMPT) == len(PROMPT)


def test_tokens_of_a_half_typed_word_are_not_run_if_they_hardly_count_and_the_drafts_are_those_of_a_cold_run():
    healing = GenerationParams(strategy="superposed", num_drafts=1, max_tokens=4, token_healing=True, alpha=0.0)
    engine, _, _ = fake_engine(num_slots=1)
    num_left_out = 0
    text = "the quick brown fox jumps over the lazy dog "
    for end in range(1, len(text)):
        num_before = engine.num_prefilled_tokens
        output = engine.generate(text[:end], healing)
        assert drafts(output) == drafts(cold(text[:end], healing)), text[:end]
        num_run = engine.num_prefilled_tokens - num_before
        num_left_out += num_run == 0
    assert num_left_out


def test_a_fault_while_a_request_begins_ends_that_request_alone(monkeypatch):
    engine, _, _ = fake_engine()
    begin = engine._scheduler._on_begin

    def fail(sequence):
        if sequence.request_id == "bad":
            raise RuntimeError("a tokenizer that raises")
        begin(sequence)

    monkeypatch.setattr(engine._scheduler, "_on_begin", fail)
    for name in ("bad", "good"):
        engine.add_request(EngineRequest(name, PROMPT, ONE))
    outputs = run_all(engine)
    assert isinstance(outputs["bad"].error, SequenceFailedError)
    assert drafts(outputs["good"].output) == drafts(cold(PROMPT, ONE))
    assert engine.num_used_slots == 0


def test_a_warm_up_gives_way_and_what_it_ran_is_found():
    engine, _, clock = fake_engine(num_slots=3, max_model_len=96, max_prefill_tokens=8)
    engine.add_request(EngineRequest("warm", [9] * 40, GenerationParams(max_tokens=0), is_warm_up=True))
    engine.step()
    assert engine.last_step.kind == "warm_up"
    clock.now_s = 1.0
    drafting = GenerationParams(max_tokens=3, alpha=0)
    engine.add_request(EngineRequest("other", [7] * 30, drafting))
    kinds, outputs = [], []
    while not outputs:
        outputs = engine.step()
        kinds.append(engine.last_step.kind)
    assert outputs[0].request_id == "other"
    assert "warm_up" not in kinds
    alone = fake_engine(num_slots=1, max_model_len=96)[0].generate([7] * 30, drafting)
    assert [draft.token_ids for draft in outputs[0].output.drafts] == [draft.token_ids for draft in alone.drafts]
    assert outputs[0].output.usage.limited_by_load == alone.usage.limited_by_load == 0
    (done,) = [output for _ in range(10) for output in engine.step()]
    assert (done.request_id, done.error, done.output.usage.prompt_tokens) == ("warm", None, 40)
    found = engine.generate([9] * 40, drafting)
    assert found.usage.cached_tokens >= 39


def test_a_warm_up_that_never_gets_its_turn_is_answered_in_time():
    engine, _, clock = fake_engine(num_slots=3, max_model_len=96)
    warm_up = EngineRequest(
        "warm", [9] * 40, GenerationParams(max_tokens=0), is_warm_up=True, deadline_s=clock.now_s + 10
    )
    engine.add_request(warm_up)
    engine.add_request(EngineRequest("other", [7] * 30, GenerationParams(max_tokens=60, alpha=0)))
    assert not engine.step()
    clock.now_s = 10.0
    (done,) = engine.step()
    assert (done.request_id, done.error) == ("warm", None)
    assert "time limit" in done.output.warnings[0]
