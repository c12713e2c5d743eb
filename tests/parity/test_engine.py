"""The engine on tiny models: one row per request, the same drafts in any batch and slot, isolated faults."""

import pytest
import torch
from support.decoding import FailingScorer, HashScorer, counted_rows, run_all, texts, tiny_engine
from support.models import ARCHITECTURES

from superdraft.decoding.errors import InvalidRequestError, PromptTooLongError, SequenceFailedError
from superdraft.decoding.model.segments import Segment
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.request import EngineRequest

PROMPTS = ["Thank you for your", "The quick brown", "a", "We're meeting at noon, aren't", "def add(a, b):\n    ret"]


def params(**options: object) -> GenerationParams:
    return GenerationParams(**({"max_tokens": 8, "tau": 0.5, "alpha": 0.5} | options))


@pytest.mark.parametrize("k", [3, 8, 16])
def test_one_row_and_one_slot_whatever_k_is(k):
    engine, model = tiny_engine(num_slots=1)
    with counted_rows(model) as shapes:
        output = engine.generate(PROMPTS[0], params(num_drafts=k), HashScorer())
    prompt_tokens = output.usage.prompt_tokens
    assert shapes == [(1, prompt_tokens)] + [(1, 1)] * 7
    assert output.usage.forward_rows == 7
    assert len(output.drafts) == k
    assert len(set(texts(output))) == k


def test_the_cache_is_allocated_once_and_has_one_slot_per_request():
    engine, _ = tiny_engine(num_slots=3)
    cache = engine._runner.cache
    addresses = [(layer.keys.data_ptr(), layer.values.data_ptr()) for layer in cache.layers]
    # 2 layers, keys and values, 2 heads, 8 numbers of 4 bytes; 3 slots of 96 positions and as many for drafts
    assert cache.plan.bytes_per_position == 2 * 2 * 2 * 8 * 4
    assert cache.num_bytes == 256 * 3 * (96 + 96)
    for number in range(7):
        engine.add_request(EngineRequest(str(number), PROMPTS[number % 5], params(num_drafts=4), HashScorer()))
    engine.step()
    assert (engine.num_used_slots, engine.num_waiting) == (3, 4)
    run_all(engine)
    assert [(layer.keys.data_ptr(), layer.values.data_ptr()) for layer in cache.layers] == addresses


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_alone_equals_in_a_batch_equals_in_a_used_slot(architecture):
    engine, _ = tiny_engine(architecture)
    variants = [
        params(num_drafts=1 + number % 4, max_tokens=4 + 3 * number, alpha=0.25 * (number % 3)) for number in range(5)
    ]
    alone = [tiny_engine(architecture)[0].generate(p, v, HashScorer()) for p, v in zip(PROMPTS, variants, strict=True)]
    for _ in range(2):  # in the second round, the slots have been used by others
        for number, (prompt, variant) in enumerate(zip(PROMPTS, variants, strict=True)):
            engine.add_request(EngineRequest(str(number), prompt, variant, HashScorer()))
        together = run_all(engine)
        for number, expected in enumerate(alone):
            got = together[str(number)].output
            assert [d.token_ids for d in got.drafts] == [d.token_ids for d in expected.drafts]
            assert [d.score for d in got.drafts] == pytest.approx([d.score for d in expected.drafts], abs=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_prompts_of_different_lengths_share_a_forward(architecture):
    engine, model = tiny_engine(architecture, max_model_len=24)
    runner = engine._runner
    prompts = [[5, 6, 7], [9] * 10, [11], [8, 30, 40, 50, 60]]
    with counted_rows(model) as shapes:
        got = runner.prefill([3, 1, 0, 2], prompts, [0] * 4)
        # Second chunks of different lengths.
        more = runner.prefill([3, 1, 0], [[70], [71, 72], [73] * 15], [3, 10, 1])
        # One of more than 16 tokens is not padded to.
        long = runner.prefill([2, 0], [[70], [74] * 17], [5, 1])
    assert shapes == [(4, 10), (3, 15), (1, 1), (1, 17)]
    later = [
        (more[0], [5, 6, 7, 70]),
        (more[1], [*[9] * 10, 71, 72]),
        (more[2], [11, *[73] * 15]),
        (long[0], [8, 30, 40, 50, 60, 70]),
        (long[1], [11, *[74] * 17]),
    ]
    for logits, ids in [*zip(got, prompts, strict=True), *later]:
        with torch.inference_mode():
            assert torch.allclose(logits, model(input_ids=torch.tensor([ids])).logits[0, -1], atol=2e-3)


def test_a_one_hot_superposition_equals_an_ordinary_token(tmp_path):
    """Gemma's embedding module scales its output; OPT projects it."""
    for architecture in ARCHITECTURES:
        engine, model = tiny_engine(architecture)
        ids = engine.tokenizer.encode(PROMPTS[0])
        runner = engine._runner
        runner.prefill([0], [ids[:-1]], [0])
        got = runner.decode(runner.embed([ids[-1]]), [len(ids) - 1])
        with torch.inference_mode():
            expected = model(input_ids=torch.tensor([ids])).logits[0, -1]
        assert torch.allclose(got[0], expected, atol=1e-4), architecture


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_verified_logprobs_are_the_models_own(architecture):
    engine, model = tiny_engine(architecture)
    output = engine.generate(PROMPTS[1], params(verify_top=2, echo_logprobs=True), HashScorer())
    prompt = list(output.prompt_token_ids)
    for draft in output.drafts:
        ids = torch.tensor([[*prompt, *draft.token_ids]])
        with torch.inference_mode():
            logprobs = torch.log_softmax(model(input_ids=ids).logits[0], dim=-1)
        for position, entry in enumerate(draft.exact_logprobs):
            row = logprobs[len(prompt) - 1 + position]
            assert entry.token_id == draft.token_ids[position]
            assert entry.logprob == pytest.approx(float(row[entry.token_id]), abs=1e-3)
            assert [i for i, _, _ in entry.top] == torch.topk(row, 2).indices.tolist()
        # The first step is exact; the superposed ones are approximate.
        assert draft.token_logprobs[0] == pytest.approx(draft.exact_logprobs[0].logprob, abs=1e-3)
    assert output.prompt_logprobs[0].logprob is None
    assert [entry.token_id for entry in output.prompt_logprobs] == prompt
    expected = [float(logprobs[i, prompt[i + 1]]) for i in range(len(prompt) - 1)]
    assert [entry.logprob for entry in output.prompt_logprobs[1:]] == pytest.approx(expected, abs=1e-3)
    assert output.usage.forward_rows == 7 + sum(len(draft.token_ids) for draft in output.drafts)


def test_drafts_are_verified_only_on_request():
    engine, _ = tiny_engine()
    assert engine.generate("a", params()).drafts[0].exact_logprobs is None


def test_special_tokens_never_appear_in_drafts():
    engine, _ = tiny_engine()
    output = engine.generate(PROMPTS[0], params(num_drafts=16, candidates_per_draft=300, tau=100.0))
    assert len(output.drafts) == 16
    eos = engine.tokenizer.eos_token_ids
    assert not any(set(draft.token_ids) & (eos | set(engine.tokenizer.suppressed_token_ids)) for draft in output.drafts)


def test_k_and_m_larger_than_the_vocabulary():
    engine, _ = tiny_engine(max_num_drafts=1000, max_candidates_per_draft=10_000)
    output = engine.generate("a", params(num_drafts=400, max_tokens=2, candidates_per_draft=5000))
    # Random bytes: many of the 400 drafts end in a broken character, have the same text and count once.
    assert 200 < len(output.drafts) <= 400
    assert len(set(texts(output))) == len(output.drafts)


def test_an_empty_prompt_starts_a_text():
    engine, _ = tiny_engine()
    output = engine.generate("", params())
    same = engine.generate([engine.tokenizer.start_token_id], params())
    assert [draft.token_ids for draft in output.drafts] == [draft.token_ids for draft in same.drafts]
    assert output.prompt_token_ids == ()  # the start token is not part of the prompt
    engine.tokenizer.eos_token_ids = frozenset()
    engine.tokenizer.vocabulary.pop("<|endoftext|>")
    with pytest.raises(InvalidRequestError, match="prompt is empty"):
        engine.generate([], params())


def test_max_tokens_zero_runs_the_prompt_alone():
    engine, model = tiny_engine()
    with counted_rows(model) as shapes:
        output = engine.generate("abc", params(max_tokens=0, verify_top=0, echo_logprobs=True))
    assert [draft.text for draft in output.drafts] == [""]
    assert output.usage.forward_rows == 0
    assert len(shapes) == 2
    assert len(output.prompt_logprobs) == output.usage.prompt_tokens


def test_a_prompt_longer_than_the_context_is_refused_or_cut():
    engine, _ = tiny_engine(max_model_len=24)
    long = [5 + i % 200 for i in range(40)]
    with pytest.raises(PromptTooLongError, match=r"has 40 tokens and max_tokens is 8.*at most 24.*by 24 tokens"):
        engine.generate(long, params())
    cutting, _ = tiny_engine(max_model_len=24, prompt_too_long="truncate_left")
    output = cutting.generate(long, params())
    assert output.prompt_token_ids == tuple(long[24:])
    assert "first 24 tokens" in output.warnings[0]
    assert [d.token_ids for d in output.drafts] == [d.token_ids for d in engine.generate(long[24:], params()).drafts]
    assert len(cutting.generate([5] * 24, params(max_tokens=0)).prompt_token_ids) == 24


def test_the_models_own_context_limits_the_engine():
    engine, _ = tiny_engine(max_model_len=5000)
    assert engine.max_model_len == 128


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"num_drafts": 33}, "num_drafts"),
        ({"max_tokens": 600}, "max_tokens"),
        ({"num_drafts": 32, "candidates_per_draft": 2000}, "candidates_per_draft"),
    ],
)
def test_limits_are_named(options, param):
    engine, _ = tiny_engine()
    with pytest.raises(InvalidRequestError, match=f"{param} is") as caught:
        engine.generate("a", params(**options))
    assert caught.value.param == param


@pytest.mark.parametrize("prompt", [[1, 300], [-1], "a\ud800"])
def test_bad_prompts_are_refused_without_being_quoted(prompt):
    engine, _ = tiny_engine()
    with pytest.raises(InvalidRequestError) as caught:
        engine.generate(prompt, params())
    assert caught.value.param == "prompt"
    assert not engine.has_unfinished


def test_stop_strings_end_drafts_but_not_their_siblings():
    engine, _ = tiny_engine()
    free = engine.generate(PROMPTS[0], params(num_drafts=3))
    stop = next(text for draft in free.drafts for text in draft.tokens[1:] if text.isascii())
    output = engine.generate(PROMPTS[0], params(num_drafts=3, stop=(stop,)))
    assert all(stop not in draft.text for draft in output.drafts)
    assert "stop" in {draft.finish_reason for draft in output.drafts}


def test_a_scorer_that_raises_ends_its_own_request_only():
    engine, _ = tiny_engine()
    expected = {name: engine.generate(PROMPTS[i], params(), HashScorer()) for i, name in enumerate("abc")}
    for i, name in enumerate("abc"):
        engine.add_request(EngineRequest(name, PROMPTS[i], params(), HashScorer()))
    engine.add_request(EngineRequest("broken", PROMPTS[3], params(), FailingScorer(calls=3)))
    outputs = run_all(engine)
    error = outputs.pop("broken").error
    assert isinstance(error, SequenceFailedError)
    assert "RuntimeError" in str(error)
    assert "secret" not in str(error)
    for name, answer in outputs.items():
        assert [d.token_ids for d in answer.output.drafts] == [d.token_ids for d in expected[name].drafts]


def test_logits_that_are_not_numbers_end_their_own_request_only(monkeypatch):
    engine, _ = tiny_engine()
    expected = engine.generate(PROMPTS[1], params())
    engine.forget_prompts()
    forward = engine._runner.forward
    calls = []

    def poisoned(segments: list[Segment], *args: object) -> torch.Tensor:
        logits = forward(segments, *args)
        calls.append(len(logits))
        if len(calls) == 3:
            with torch.inference_mode():
                logits[0] = float("nan")
                engine._runner.cache.layers[0].values[segments[0].slot] = float("nan")
        return logits

    monkeypatch.setattr(engine._runner, "forward", poisoned)
    engine.add_request(EngineRequest("poisoned", PROMPTS[0], params()))
    engine.add_request(EngineRequest("healthy", PROMPTS[1], params()))
    outputs = run_all(engine)
    assert calls[:3] == [2, 2, 2]
    assert "not numbers" in str(outputs["poisoned"].error)
    assert [d.token_ids for d in outputs["healthy"].output.drafts] == [d.token_ids for d in expected.drafts]
    # The next requests must find no NaN in any slot.
    for _ in range(engine.num_slots):
        engine.forget_prompts()
        again = engine.generate(PROMPTS[1], params())
        assert [d.token_ids for d in again.drafts] == [d.token_ids for d in expected.drafts]
    assert all(torch.isfinite(layer.values).all() for layer in engine._runner.cache.layers)


def test_a_prompt_whose_logits_are_not_numbers_is_not_kept_for_the_next_one(monkeypatch):
    engine, _ = tiny_engine()
    expected = engine.generate(PROMPTS[1], params())
    fresh, _ = tiny_engine()
    forward = fresh._runner.forward

    def poisoned(segments: list[Segment], *args: object) -> torch.Tensor:
        logits = forward(segments, *args)
        with torch.inference_mode():
            logits[0] = float("nan")
            fresh._runner.cache.layers[0].values[segments[0].slot] = float("nan")
        return logits

    with monkeypatch.context() as patch:
        patch.setattr(fresh._runner, "forward", poisoned)
        fresh.add_request(EngineRequest("poisoned", PROMPTS[1], params()))
        assert "not numbers" in str(run_all(fresh)["poisoned"].error)
    again = fresh.generate(PROMPTS[1], params())
    assert again.usage.cached_tokens == 0
    assert [d.token_ids for d in again.drafts] == [d.token_ids for d in expected.drafts]


@pytest.mark.parametrize("num_steps", [0, 1, 3], ids=["prompts", "rows and a prompt", "rows"])
def test_a_failing_forward_ends_the_requests_that_took_part_and_the_engine_goes_on(monkeypatch, num_steps):
    engine, _ = tiny_engine(num_slots=3)
    expected = tiny_engine()[0].generate("abc", params())
    for name in "abc"[: 2 + (num_steps == 3)]:
        engine.add_request(EngineRequest(name, "abc", params()))
    for _ in range(num_steps):
        engine.step()
    for name in "cde"[num_steps == 3 :]:
        engine.add_request(EngineRequest(name, PROMPTS[0], params()))  # `d` and `e` wait for slots
    with monkeypatch.context() as patch:
        patch.setattr(engine._runner, "forward", lambda *_: (_ for _ in ()).throw(MemoryError()))
        failed = engine.step()
    assert [output.request_id for output in failed] == ["a", "b", "c"]
    for output in failed:
        assert isinstance(output.error, SequenceFailedError)
        assert isinstance(output.error.__cause__, MemoryError)
    assert engine.num_used_slots == 0
    outputs = run_all(engine)
    assert sorted(outputs) == ["d", "e"]
    assert all(output.output.drafts for output in outputs.values())
    assert texts(engine.generate("abc", params())) == texts(expected)


def test_cancelled_requests_leave_no_trace_and_the_others_are_answered():
    engine, _ = tiny_engine(num_slots=2)
    expected = [engine.generate(prompt, params()) for prompt in PROMPTS]
    for number, prompt in enumerate(PROMPTS):
        engine.add_request(EngineRequest(str(number), prompt, params()))
    engine.step()
    engine.step()
    engine.step()
    assert engine.cancel("0")  # runs
    assert engine.cancel("3")  # waits
    assert not engine.cancel("0")
    outputs = run_all(engine)
    assert sorted(outputs) == ["1", "2", "4"]
    for number in (1, 2, 4):
        got = outputs[str(number)].output
        assert [d.token_ids for d in got.drafts] == [d.token_ids for d in expected[number].drafts]


def test_an_id_cannot_be_used_twice_at_once():
    engine, _ = tiny_engine()
    engine.add_request(EngineRequest("a", "abc", params()))
    with pytest.raises(InvalidRequestError, match="has not ended yet"):
        engine.add_request(EngineRequest("a", "abc", params()))
    assert list(run_all(engine)) == ["a"]


@pytest.mark.parametrize(
    "options", [{}, {"strategy": "sample", "seed": 1}, {"selection": "distinct", "max_branches": 2}]
)
def test_a_known_prompt_needs_no_pass_of_its_own(options):
    """Its first tokens are chosen from the logits that were kept with the tree."""
    cold, _ = tiny_engine(num_slots=8)
    expected = cold.generate(PROMPTS[0], params(**options))
    engine, model = tiny_engine(num_slots=8)
    engine.generate(PROMPTS[0], params(max_tokens=1))
    engine.add_request(EngineRequest("other", PROMPTS[1], params(max_tokens=20)))
    for _ in range(3):
        engine.step()
    num_tokens, num_bytes = engine.num_prefilled_tokens, engine.num_copied_bytes
    engine.add_request(EngineRequest("known", PROMPTS[0], params(**options)))
    with counted_rows(model) as shapes:
        engine.step()
    assert shapes == [(1, 1)]  # the other request's row
    assert len(engine.last_step.first_draft_s) == 1
    known = run_all(engine)["known"].output
    assert [d.token_ids for d in known.drafts] == [d.token_ids for d in expected.drafts]
    assert known.usage.cached_tokens == known.usage.prompt_tokens
    assert known.usage.forward_rows == expected.usage.forward_rows
    assert (engine.num_prefilled_tokens, engine.num_copied_bytes) == (num_tokens, num_bytes)
