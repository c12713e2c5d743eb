"""Load: what a step costs, which plan follows from it, and what requests get."""

import random
from collections import Counter

import pytest
from support.decoding import run_all
from support.fake_runner import ManualClock, fake_engine

from superdraft.decoding.engine.engine import Engine
from superdraft.decoding.engine.load import Load, StepCost
from superdraft.decoding.errors import InvalidRequestError
from superdraft.decoding.outputs import StepReport
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.request import EngineRequest

PROMPT = list(range(70, 80))


def params(**options: object) -> GenerationParams:
    fields = {
        "num_drafts": 3,
        "max_branches": 3,
        "selection": "distinct",
        "alpha": 0.0,
        "max_tokens": 8,
        "elastic": True,
    }
    return GenerationParams(**(fields | options))


def slow_engine(target_s: float | None, seconds_per_row: float, num_slots: int = 64) -> tuple[Engine, ManualClock]:
    """An engine whose steps take this long."""
    engine, runner, clock = fake_engine(num_slots=num_slots, target_latency_s=target_s)
    forward = runner.forward

    def timed(segments, embeddings, kept):
        clock.now_s += seconds_per_row * len(embeddings)
        return forward(segments, embeddings, kept)

    runner.forward = timed
    return engine, clock


def outputs_of(
    num_requests: int, target_s: float | None, seconds_per_row: float, gap_s: float | None = None, **options: object
) -> list:
    """The answers to requests that come at once; with a gap, each from a typist with such pauses."""
    engine, _ = slow_engine(target_s, seconds_per_row)
    for number in range(num_requests):
        prompt = [number, *PROMPT]
        engine.add_request(EngineRequest(str(number), prompt, params(**options), key_gap_s=gap_s))
    return [output.output for _, output in sorted(run_all(engine).items(), key=lambda item: int(item[0]))]


def observe(load: Load, times: int, seconds: float, num_rows: int = 0, num_begun: int = 0, **figures: int) -> None:
    kind = "prefill" if figures.get("num_prompt_tokens") else "decode"
    figures = {"num_prompt_tokens": 0, "num_completed": 0, "num_expired": 0} | figures
    step = StepReport(kind, num_rows, seconds=seconds, first_draft_s=(0.0,) * num_begun, **figures)
    for _ in range(times):
        load.observe(step, seconds)


def test_the_cost_of_a_step_is_found_from_noisy_steps():
    cost, chance = StepCost(), random.Random(0)
    for _ in range(600):
        rows, tokens = chance.randint(0, 90), chance.choice([0, 0, chance.randint(1, 250)])
        seconds = 0.003 + 0.0006 * rows + 0.0004 * tokens
        cost.observe(rows, tokens, 0, seconds * chance.choice([0.9, 1, 1.1]) + (chance.random() < 0.02) * 0.5)
    for rows, tokens in ((1, 0), (30, 0), (90, 0), (10, 200)):
        assert cost.seconds(rows, tokens) == pytest.approx(0.003 + 0.0006 * rows + 0.0004 * tokens, rel=0.35, abs=0.003)
    assert cost.per_prompt_token_s == pytest.approx(0.0004, rel=0.35)


def test_a_chunk_of_a_prompt_takes_at_most_a_tenth_of_a_second():
    load = Load(1.0)
    observe(load, 400, 128 * 0.002, num_prompt_tokens=128)
    assert load.chunk_tokens(256) == 32
    observe(load, 400, 128 * 0.0001, num_prompt_tokens=128)
    assert load.chunk_tokens(256) == 256


def test_a_step_takes_more_of_the_prompts_if_several_wait():
    """Else a busy machine runs one short prompt per step, which makes it busier. A single prompt gains nothing."""
    engine, _ = slow_engine(1.0, 0.0)
    observe(engine.load, 400, 64 * 0.001, num_prompt_tokens=64)
    nobody = engine.load.chunk_tokens(512)
    engine.add_request(EngineRequest("first", PROMPT, params()))
    assert engine.load.chunk_tokens(512) == nobody
    engine.add_request(EngineRequest("second", PROMPT, params()))
    assert engine.load.chunk_tokens(512) == 2 * nobody
    run_all(engine)
    assert not engine.load.num_waiting


def test_few_rows_say_little_about_many_and_a_crowd_is_soon_known():
    """Where each request has a step of its own, a crowd must not look as if it could not be answered."""
    load, chance = Load(), random.Random(0)

    def true_s(rows):
        return 0.01 + 0.001 * rows

    for _ in range(1000):  # always with prompts, whose part in the cost could be that of the rows
        rows = chance.randint(1, 3)
        observe(load, 1, true_s(rows) + 0.002, num_rows=rows, num_prompt_tokens=4, num_begun=1, num_completed=1)
    assert true_s(1) == pytest.approx(load.seconds(1), rel=0.3)
    assert load.seconds(60) <= 1.5 * true_s(60)
    for _ in range(30):
        rows = chance.randint(40, 60)
        observe(load, 1, true_s(rows), num_rows=rows)
    assert load.seconds(50) == pytest.approx(true_s(50), rel=0.1)


def test_a_cost_that_was_once_high_does_not_stay():
    load = Load()
    observe(load, 200, 1.0, num_rows=40)
    observe(load, 100, 0.02, num_rows=4)
    assert load.seconds(4) == pytest.approx(0.02, rel=0.3)  # so more are let in, and their steps are measured
    for rows in (8, 16, 32, 40):
        assert load.seconds(rows) <= rows * 0.025  # what few rows cost each is the most that many do
        observe(load, 50, 0.018 + 0.0005 * rows, num_rows=rows)
    assert load.seconds(40) == pytest.approx(0.038, rel=0.1)


def test_the_cost_follows_a_change_at_once():
    load = Load()
    observe(load, 200, 0.02, num_rows=8)
    observe(load, 50, 0.08, num_rows=8)
    assert load.seconds(8) == pytest.approx(0.08, rel=0.25)


def test_a_step_that_took_all_who_waited_does_not_make_a_crowd_look_late():
    load = Load()
    observe(load, 500, 0.05, num_prompt_tokens=4, num_completed=1)  # each request came alone
    assert load.steps_per_prompt <= 0.5
    observe(load, 1, 0.2, num_prompt_tokens=160, num_completed=40)
    assert load.steps_per_prompt <= 0.05
    observe(load, 500, 0.05, num_prompt_tokens=4, num_completed=1)
    assert load.steps_per_prompt <= 0.05


def test_steps_that_left_some_waiting_show_how_many_a_step_takes():
    load = Load()
    observe(load, 100, 0.2, num_prompt_tokens=40, num_completed=10, num_waiting=1)
    assert load.steps_per_prompt == pytest.approx(0.1, rel=0.01)
    assert load.num_waiting == 1
    for _ in range(100):  # long prompts, of which each takes three steps
        for num_completed in (0, 0, 1):
            observe(load, 1, 0.2, num_prompt_tokens=128, num_completed=num_completed, num_waiting=1)
    assert load.steps_per_prompt == pytest.approx(3, rel=0.2)


def test_steps_with_prompts_and_steps_as_they_are_on_average():
    load = Load()
    for _ in range(300):  # a prompt step in every other one
        observe(load, 1, 0.02 + 0.05, num_rows=4, num_prompt_tokens=50, num_completed=1)
        observe(load, 1, 0.02, num_rows=4)
    assert load.prompt_round_s(4) == pytest.approx(0.07, rel=0.1)
    assert load.usual_s(4) == pytest.approx(0.045, rel=0.1)
    assert load.seconds(4) == pytest.approx(0.02, rel=0.1)


def test_what_happens_between_steps_counts_and_idle_time_does_not():
    """Else a server that spends its time on taking requests would promise answers that it cannot give."""
    engine, clock = slow_engine(None, 0.001)
    for number in range(100):
        clock.now_s += 5.0  # idle
        engine.add_request(EngineRequest(str(number), [number % 50, *PROMPT], params(max_tokens=4)))
        while engine.has_unfinished:
            engine.step()
            clock.now_s += 0.05 * engine.has_unfinished  # handing over, taking requests
    assert 0.02 <= engine.load.usual_round_s(3) <= 0.06


def test_who_is_alone_gets_everything_however_slow_the_machine_is():
    (output,) = outputs_of(1, 0.1, seconds_per_row=1.0)
    assert not output.usage.limited_by_load
    assert output.usage.rows_by_depth == (3,) * 7


def test_under_load_drafts_end_sooner_then_fewer_grow_and_the_answer_says_so():
    rows = []
    for seconds_per_row in (0.0001, 0.002, 0.2):
        found = outputs_of(16, 2.0, seconds_per_row)
        rows.append(sum(output.usage.forward_rows for output in found))
        assert any(output.usage.limited_by_load for output in found) == (seconds_per_row > 0.0001)
        assert all(output.drafts for output in found)
    assert rows[0] > rows[1] > rows[2]


@pytest.mark.parametrize(("target_s", "options"), [(None, {}), (0.1, {"elastic": False})])
def test_without_a_target_and_without_elastic_work_nothing_is_limited(target_s, options):
    for output in outputs_of(8, target_s, 0.2, **options):
        assert not output.usage.limited_by_load
        assert len(output.usage.rows_by_depth) == 7  # all tokens of a draft except the first


def test_a_limited_draft_is_the_beginning_of_the_whole_one():
    whole, limited = outputs_of(8, None, 0.2), outputs_of(8, 0.5, 0.2)
    for one, other in zip(whole, limited, strict=True):
        for draft in other.drafts:
            assert any(longer.token_ids[: len(draft.token_ids)] == draft.token_ids for longer in one.drafts)


def test_only_a_selection_that_divides_rows_is_elastic():
    with pytest.raises(InvalidRequestError, match="elastic must be false"):
        GenerationParams(elastic=True)
    assert params().least_work == (1, 4)
    assert params(elastic=False).least_work == (3, 8)


def test_long_texts_do_not_keep_the_slots_from_who_waits():
    engine, clock = slow_engine(2.0, 0.03, num_slots=2)
    for number in range(2):
        long = params(max_tokens=50, whole_best=True, num_drafts=1, max_branches=1)
        engine.add_request(EngineRequest(f"long {number}", [number, *PROMPT], long))
    for _ in range(3):
        engine.step()
    begun_s = clock.now_s
    engine.add_request(EngineRequest("short", PROMPT, params(max_tokens=4)))
    outputs = {}
    while "short" not in outputs:
        outputs |= {step.request_id: step.output for step in engine.step() if step.output is not None}
    assert clock.now_s - begun_s < 1.5
    assert any(outputs[name].usage.limited_by_load for name in outputs if name != "short")


def test_drafts_of_typists_end_in_time_for_their_next_keys():
    patient, hurried = outputs_of(8, 60.0, 0.002), outputs_of(8, 60.0, 0.002, gap_s=0.2)
    assert not any(output.usage.limited_by_load for output in patient)
    assert all(output.usage.limited_by_load for output in hurried)
    rows = [sum(output.usage.forward_rows for output in outputs) for outputs in (patient, hurried)]
    assert rows[1] < rows[0] / 2
    (alone,) = outputs_of(1, 60.0, 0.002, gap_s=0.2)
    assert not alone.usage.limited_by_load


def test_who_has_waited_longest_since_the_last_drafts_goes_first():
    """Each typist's next request comes before the last one could be answered, and all have their turn."""
    engine, clock = slow_engine(60.0, 0.01)
    answered, since_s = Counter(), {}
    for key in range(60):
        for number in range(12):
            engine.cancel(f"{number} {key - 1}")
            name, prompt, since = (
                f"{number} {key}",
                [number, *PROMPT, key],
                since_s.setdefault(str(number), clock.now_s),
            )
            engine.add_request(EngineRequest(name, prompt, params(), key_gap_s=0.2, waiting_since_s=since))
        next_key_s = clock.now_s + 0.2
        while clock.now_s < next_key_s and engine.has_unfinished:
            for output in engine.step():
                if output.output is not None:
                    typist = output.request_id.split()[0]
                    answered[typist] += 1
                    since_s.pop(typist, None)
    assert len(answered) == 12
    assert min(answered.values()) >= max(answered.values()) / 2 > 0


def test_steps_that_take_no_time_on_a_coarse_clock_keep_their_cost_above_zero():
    load = Load()
    observe(load, 20_000, 0.0, num_rows=3)
    assert 0 < load.seconds(3) < 1e-4
    observe(load, 100, 0.01, num_rows=3)
    assert load.seconds(3) > 1e-6
