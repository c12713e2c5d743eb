"""The selection "distinct" on tiny models: different first tokens, and exact drafts on rows of their own."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from support.decoding import counted_rows, run_all, tiny_engine
from support.models import ARCHITECTURES

from superdraft.decoding.errors import InvalidRequestError
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.request import EngineRequest

PROMPT = "Thank you for your email. I will get"


def params(**options: object) -> GenerationParams:
    defaults = {"max_tokens": 8, "selection": "distinct", "alpha": 0.0, "tau": 1.0}
    return GenerationParams(**(defaults | options))


def logprobs_after(engine, model, ids: list[int]) -> torch.Tensor:
    """The language model's log-probabilities, with the bias of `forbid_ends` and without special tokens."""
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1].float()
    ends = torch.tensor(sorted(engine.tokenizer.eos_token_ids))
    logprobs = torch.log_softmax(logits.index_add(0, ends, torch.full((len(ends),), -100.0)), dim=-1)
    return logprobs.index_fill(0, torch.tensor(engine.tokenizer.suppressed_token_ids, dtype=torch.long), -math.inf)


def greedy_from(engine, model, ids: list[int], num_tokens: int) -> list[int]:
    ids = list(ids)
    for _ in range(num_tokens):
        ids.append(int(logprobs_after(engine, model, ids).argmax()))
    return ids


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_drafts_on_rows_of_their_own_are_greedy_from_the_most_probable_first_tokens(architecture):
    engine, model = tiny_engine(architecture)
    with counted_rows(model) as shapes:
        output = engine.generate(PROMPT, params(num_drafts=3, max_branches=3, logit_bias=forbid_ends(engine)))
    assert shapes[1:] == [(1, 3)] * 7  # three rows in one slot
    assert output.usage.forward_rows == 21
    ids = list(output.prompt_token_ids)
    firsts = logprobs_after(engine, model, ids).topk(3).indices.tolist()
    expected = [tuple(greedy_from(engine, model, [*ids, first], 7)[len(ids) :]) for first in firsts]
    assert sorted(draft.token_ids for draft in output.drafts) == sorted(expected)
    for draft in output.drafts:
        prefixes = ([*ids, *draft.token_ids[:i]] for i in range(8))
        exact = [float(logprobs_after(engine, model, p)[t]) for p, t in zip(prefixes, draft.token_ids, strict=True)]
        assert list(draft.token_logprobs) == pytest.approx(exact, abs=2e-3)


def forbid_ends(engine) -> tuple[tuple[int, float], ...]:
    return tuple((token_id, -100.0) for token_id in engine.tokenizer.eos_token_ids)


def test_drafts_with_different_first_tokens_share_one_row():
    engine, model = tiny_engine(num_slots=1)
    with counted_rows(model) as shapes:
        output = engine.generate(PROMPT, params(num_drafts=3, logit_bias=forbid_ends(engine)))
    assert shapes[1:] == [(1, 1)] * 7
    assert len({draft.token_ids[0] for draft in output.drafts}) == 3
    # They share the distribution of every later step, and each takes its best token.
    assert len({draft.token_ids[1:] for draft in output.drafts}) == 1


def test_with_two_rows_the_best_draft_has_one_and_the_others_share():
    engine, model = tiny_engine()
    wanted = {"num_drafts": 3, "logit_bias": forbid_ends(engine)}
    with counted_rows(model) as shapes:
        two = engine.generate(PROMPT, params(max_branches=2, **wanted))
    assert shapes[1:] == [(1, 2)] * 7
    three = tiny_engine()[0].generate(PROMPT, params(max_branches=3, **wanted))
    best = max(three.drafts, key=lambda draft: draft.token_logprobs[0])
    assert best.token_ids in {draft.token_ids for draft in two.drafts}
    others = [draft.token_ids for draft in two.drafts if draft.token_ids != best.token_ids]
    assert len({ids[0] for ids in others}) == 2
    assert len({ids[1:] for ids in others}) == 1


@pytest.mark.parametrize("prompt", [PROMPT, "The quick brown", "a", "Thank you for", "one two three"])
def test_a_long_text_streams_as_it_grows_and_is_the_first_draft(prompt):
    engine, _ = tiny_engine()
    wanted = params(num_drafts=3, max_branches=3, max_tokens=40, min_probability=0.5, whole_best=True, snapshots=True)
    for token_healing in (False, True):
        engine.forget_prompts()
        engine.add_request(EngineRequest("long", prompt, replace(wanted, token_healing=token_healing)))
        stable, output = [""], None
        while output is None:
            for step in engine.step():
                if step.snapshot is not None:
                    stable.append(step.snapshot.stable_text)
                output = step.output
        (first, *_) = output.drafts
        assert all(after.startswith(before) for before, after in itertools.pairwise(stable))
        assert first.text.startswith(stable[-1])
        assert len(first.token_ids) >= max(len(draft.token_ids) for draft in output.drafts)
        if len(first.token_ids) > 12:
            assert len(set(stable)) > 3


def test_an_improbable_draft_ends_and_frees_its_row():
    engine, model = tiny_engine()
    wanted = {"num_drafts": 3, "max_branches": 3, "max_tokens": 12, "logit_bias": forbid_ends(engine)}
    with counted_rows(model) as shapes:
        output = engine.generate(PROMPT, params(min_probability=0.5, whole_best=True, **wanted))
    assert shapes[1:] == [(1, 3)] * 3 + [(1, 1)] * 8
    assert output.usage.forward_rows == 17
    whole = {draft.token_ids for draft in tiny_engine()[0].generate(PROMPT, params(**wanted)).drafts}
    assert [len(draft.token_ids) for draft in output.drafts] == [12, 4, 4]  # the whole one first
    for draft in output.drafts:
        assert any(ids[: len(draft.token_ids)] == draft.token_ids for ids in whole)
    with counted_rows(model) as shapes:
        engine.generate(PROMPT, params(min_probability=0.5, **wanted))
    assert shapes == [(1, 3)] * 3  # the prompt is known
    assert engine.num_used_slots == 0


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
def test_alone_equals_in_a_batch(architecture):
    prompts = [PROMPT, "The quick brown", "a", "def add(a, b):\n    ret", "We're meeting at noon, aren't"]
    variants = [
        params(num_drafts=1 + n, max_branches=1 + (2 * n) % 3, min_probability=0.1 * (n % 2), token_healing=n > 2)
        for n in range(5)
    ]
    alone = [tiny_engine(architecture)[0].generate(p, v) for p, v in zip(prompts, variants, strict=True)]
    engine, _ = tiny_engine(architecture, num_slots=4)
    for _ in range(2):
        for number, (prompt, variant) in enumerate(zip(prompts, variants, strict=True)):
            engine.add_request(EngineRequest(str(number), prompt, variant))
        together = run_all(engine)
        for number, expected in enumerate(alone):
            got = together[str(number)].output
            assert [d.token_ids for d in got.drafts] == [d.token_ids for d in expected.drafts]
            assert got.usage.forward_rows == expected.usage.forward_rows
        engine.forget_prompts()


@pytest.mark.parametrize("typed", ["meeting at noo", "on the corn", "We're meeting at noon, a", "def add(a, b):\n    "])
def test_a_half_typed_word_is_completed_exactly(typed):
    """A draft on a row of its own has the exact log-probabilities of its tokens, whichever stem it follows."""
    engine, model = tiny_engine()
    wanted = params(num_drafts=3, max_branches=3, max_tokens=6, token_healing=True, logit_bias=forbid_ends(engine))
    engine.add_request(EngineRequest("typed", typed, wanted))
    (sequence,) = engine._sequences.values()
    engine.step()
    for _ in range(4):
        engine.step()
    assert len(sequence.branches) == 3
    for branch in sequence.branches:
        (draft,) = branch.drafts.alive
        assert branch.num_exact == branch.num_steps - 1 == 4
        before = [*sequence.shared_token_ids, *branch.stem_ids]
        whole = engine.tokenizer.bytes_of([*before, *draft.token_ids])
        assert whole == typed.encode() + draft.text
        exact = [
            float(logprobs_after(engine, model, [*before, *draft.token_ids[:i]])[draft.token_ids[i]]) for i in range(5)
        ]
        assert list(draft.token_logprobs[1:]) == pytest.approx(exact[1:], abs=2e-3)
    run_all(engine)


def test_more_rows_than_allowed_and_rows_without_the_selection_are_refused():
    engine, _ = tiny_engine(num_slots=1, max_num_rows=2)
    with pytest.raises(InvalidRequestError, match="max_branches is 3, this server allows at most 2") as caught:
        engine.generate(PROMPT, params(num_drafts=3, max_branches=3))
    assert caught.value.param == "max_branches"
    assert len(engine.generate(PROMPT, params(num_drafts=2, max_branches=3)).drafts) == 2  # no more rows than drafts
    for options, name in (
        ({"selection": "paper", "max_branches": 2}, "max_branches"),
        ({"selection": "paper", "min_probability": 0.1}, "min_probability"),
        ({"reset_every": 3}, "reset_every"),
        ({"max_branches": 0}, "max_branches"),
        ({"min_probability": 1.5}, "min_probability"),
        ({"strategy": "sample", "max_branches": 2}, "max_branches"),
    ):
        with pytest.raises(InvalidRequestError) as caught:
            params(**options)
        assert caught.value.param == name
