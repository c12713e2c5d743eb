"""Ends of requests, on a fake model: cancelled, out of time, after snapshots, trimmed."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.decoding import HashScorer, run_all
from support.fake_runner import fake_engine

from superdraft.decoding.errors import InvalidRequestError
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.request import EngineRequest

PROMPT = "Thank you for your"


def params(**options: object) -> GenerationParams:
    return GenerationParams(**({"max_tokens": 8, "tau": 0.5, "alpha": 0.3} | options))


def test_the_id_of_a_cancelled_request_is_free():
    engine, _, _ = fake_engine()
    engine.add_request(EngineRequest("same", PROMPT, params()))
    with pytest.raises(InvalidRequestError, match="has not ended yet"):
        engine.add_request(EngineRequest("same", PROMPT, params()))
    assert engine.cancel("same")
    assert not engine.cancel("same")
    engine.add_request(EngineRequest("same", PROMPT, params()))
    assert run_all(engine)["same"].output.drafts


def test_at_the_time_limit_the_answer_has_the_drafts_so_far():
    engine, _, clock = fake_engine()
    engine.add_request(EngineRequest("a", PROMPT, params(max_tokens=20), deadline_s=clock.now_s + 1.0))
    for _ in range(4):
        engine.step()
    clock.now_s = 1.0
    output = run_all(engine)["a"].output
    assert "time limit was reached" in output.warnings[0]
    assert {len(draft.token_ids) for draft in output.drafts} == {4}
    assert output.timings.total_ms == 1000.0


def test_a_request_that_never_ran_is_answered_without_drafts_at_its_time_limit():
    engine, _, clock = fake_engine(num_slots=1)
    engine.add_request(EngineRequest("running", PROMPT, params(max_tokens=30)))
    engine.step()
    engine.add_request(EngineRequest("late", PROMPT, params(), deadline_s=clock.now_s + 0.5))
    clock.now_s = 0.6
    (ended,) = [output for output in engine.step() if output.is_terminal]
    assert ended.request_id == "late"
    assert ended.output.drafts == ()
    assert ended.output.timings.queue_ms == pytest.approx(600.0)
    run_all(engine)


@settings(max_examples=60, deadline=None)
@given(
    prompt=st.text(alphabet="abc dé日.\n", min_size=1, max_size=12),
    k=st.integers(1, 4),
    trim=st.sampled_from(["none", "word"]),
    single_line=st.booleans(),
    healing=st.booleans(),
    strategy=st.sampled_from(["superposed", "sample"]),
)
def test_stable_text_never_changes_and_begins_every_draft_of_the_answer(
    prompt, k, trim, single_line, healing, strategy
):
    engine, _, _ = fake_engine()
    wanted = params(
        num_drafts=k,
        trim=trim,
        single_line=single_line,
        token_healing=healing,
        snapshots=True,
        strategy=strategy,
        seed=1,
        logit_bias=((32, 6.0), (66, 6.0)),  # more words and spaces, less noise
    )
    engine.add_request(EngineRequest("a", prompt, wanted, HashScorer()))
    stable = [""]
    while engine.has_unfinished:
        for output in engine.step():
            if output.snapshot is not None:
                assert output.snapshot.stable_text.startswith(stable[-1])
                stable.append(output.snapshot.stable_text)
                assert len(output.snapshot.drafts) in range(0 if healing else 1, k + 1)
            else:
                final = output.output
    assert all(draft.text.startswith(stable[-1]) for draft in final.drafts if draft.text)


def test_a_snapshot_follows_every_step_except_the_last():
    engine, _, _ = fake_engine()
    engine.add_request(EngineRequest("a", PROMPT, params(max_tokens=5, snapshots=True)))
    steps: list[int | str] = []
    while engine.has_unfinished:
        steps += [output.snapshot.num_steps if output.snapshot else "end" for output in engine.step()]
    assert steps == [1, 2, 3, 4, "end"]


def test_snapshots_have_the_rows_so_far():
    engine, _, _ = fake_engine()
    wanted = params(max_tokens=4, num_drafts=3, selection="distinct", max_branches=8, snapshots=True)
    engine.add_request(EngineRequest("a", PROMPT, wanted))
    seen = []
    while engine.has_unfinished:
        seen += [(output.snapshot or output.output.usage).rows_by_depth for output in engine.step()]
    assert seen == [(), (3,), (3, 3), (3, 3, 3)]


def test_drafts_below_the_minimum_score_are_left_out():
    engine, _, _ = fake_engine()
    free = engine.generate(PROMPT, params(num_drafts=4)).drafts
    scores = [draft.score for draft in free]
    limit = (scores[1] + scores[2]) / 2
    kept = engine.generate(PROMPT, params(num_drafts=4, min_score=limit)).drafts
    assert [draft.token_ids for draft in kept] == [draft.token_ids for draft in free[:2]]
    assert engine.generate(PROMPT, params(min_score=0.0)).drafts == ()


def test_text_and_tokens_of_a_single_line_end_before_the_break():
    engine, _, _ = fake_engine()
    newline = engine.tokenizer.encode("\n")[0]
    a = engine.tokenizer.encode("a")[0]
    output = engine.generate(PROMPT, params(num_drafts=2, single_line=True, logit_bias=((newline, 40.0), (a, 40.0))))
    assert all("\n" not in draft.text for draft in output.drafts)
    assert "stop" in {draft.finish_reason for draft in output.drafts}
    for draft in output.drafts:
        assert "".join(draft.tokens).rstrip("\n") == draft.text


def test_drafts_that_are_equal_after_trimming_are_merged_and_tokens_match_the_text():
    engine, _, _ = fake_engine()
    word = engine.tokenizer.encode("a")[0]
    space = engine.tokenizer.encode(" ")[0]
    biased = {"logit_bias": ((word, 30.0), (space, 30.0)), "max_tokens": 6, "num_drafts": 4}
    untrimmed = engine.generate(PROMPT, params(**biased)).drafts
    trimmed = engine.generate(PROMPT, params(**biased, trim="word")).drafts
    assert len({draft.text for draft in trimmed}) == len(trimmed) < len(untrimmed)
    for draft in trimmed:
        assert not draft.text.endswith("a") or any(d.text.startswith(draft.text + " ") for d in untrimmed)
        assert "".join(draft.tokens).startswith(draft.text)
        assert len(draft.tokens) == len(draft.token_ids) == len(draft.token_logprobs)
