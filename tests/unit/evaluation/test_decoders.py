"""Decoders and evaluators over tiny models: batched equals alone, and exact is exact."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.cover_oracle import is_canonical
from support.decoding import HashScorer, texts, tiny_engine
from support.models import ARCHITECTURES, tiny_model, tiny_tokenizer

from superdraft.decoding.loading.loader import LoadedModel
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.text import covers
from superdraft.decoding.text.healing import plan_healing
from superdraft.decoding.text.tokenizer import Tokenizer
from superdraft.evaluation.decoders.decoders import Ask, EngineDecoder
from superdraft.evaluation.measures.evaluator import Evaluator

PROMPTS = ["Thank you for your", "The quick brown fox jumps over", "Please find", "def add(a, b):\n    return"] * 3


def loaded(architecture="llama", **options):
    return LoadedModel(tiny_model(architecture, **options), tiny_tokenizer(), architecture, Path())


def asks(prompts=PROMPTS):
    return [Ask(text, f"{i}") for i, text in enumerate(prompts)]


def test_many_at_once_give_what_each_gives_alone():
    engine, _ = tiny_engine()
    params = GenerationParams(num_drafts=3, max_tokens=6, alpha=0.3, tau=0.5)
    decoded = EngineDecoder(engine, params, HashScorer()).decode(asks())
    alone, _ = tiny_engine(num_slots=1)
    for text, found in zip(PROMPTS, decoded, strict=True):
        expected = alone.generate(text, params, HashScorer())
        assert [draft.text for draft in found.drafts] == texts(expected)
        assert found.forward_rows == expected.usage.forward_rows


def test_samples_depend_on_seed_and_key_but_not_on_the_company():
    engine, _ = tiny_engine()
    params = GenerationParams(strategy="sample", num_drafts=2, max_tokens=6)

    def sampled(which, seed=0):
        decoded = EngineDecoder(engine, params, None, seed).decode(which)
        return [[draft.text for draft in one.drafts] for one in decoded]

    everything = sampled(asks())
    assert sampled(asks()[::-1]) == everything[::-1]
    assert sampled([asks()[5]]) == [everything[5]]
    assert sampled([Ask(PROMPTS[5], "another key")]) != [everything[5]]
    assert sampled(asks(), seed=1) != everything


def test_a_word_that_was_cut_is_healed_as_the_parameters_say():
    engine, _ = tiny_engine()
    params = GenerationParams(num_drafts=3, max_tokens=4, alpha=0, token_healing=True)
    ask = Ask("Please find the rep", "a")
    (cut,) = EngineDecoder(engine, params).decode([ask])
    (plain,) = EngineDecoder(engine, replace(params, token_healing=False)).decode([ask])
    healed = engine.generate("Please find the rep", params)
    assert [draft.text for draft in cut.drafts] == texts(healed) != [draft.text for draft in plain.drafts]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_exact_logprobs_are_those_of_the_text_given_what_was_typed(architecture, monkeypatch):
    """The chain rule over texts: with every tokenisation counted, ln P(prompt + draft) - ln P(prompt)."""
    monkeypatch.setattr(covers, "MIN_CHECKED_SHARE", 0.0)
    model = loaded(architecture)
    tokenizer = Tokenizer(model.tokenizer, 300)
    prompts = ["Thank you", "The quick brown fox jumps over the laz", "We"]
    drafts = [[" for", " for your email. I", " fox"], ["y dog", "y"], ["", "'re meeting"]]
    found = Evaluator(model).logprobs(prompts, drafts)
    for prompt, own, answers in zip(prompts, drafts, found, strict=True):
        for text, answer in zip(own, answers, strict=True):
            assert sum(answer) == pytest.approx(expected_logprob(model, tokenizer, prompt, text), abs=1e-3)
            num_typed = len(tokenizer.encode(prompt))
            assert len(answer) <= max(0, len(tokenizer.encode(prompt + text)) - num_typed + 1) or not text


def expected_logprob(model, tokenizer, prompt, text):
    if not text:
        return 0.0
    start = [tokenizer.start_token_id]

    def after(ids):
        return torch.log_softmax(model.model(torch.tensor([[*start, *ids]])).logits[0, -1].double(), -1).tolist()

    ids, whole = tokenizer.encode(prompt), tokenizer.encode(prompt + text)
    plan = plan_healing(prompt, [*start, *ids], 1, tokenizer)
    shared = ids[: plan.num_shared - 1]
    typed = math.log(sum(borders(tokenizer, after, shared, plan.tail)))
    return sum(after(whole[:i])[whole[i]] for i in range(len(shared), len(whole))) - typed


def borders(tokenizer, after, shared, tail):
    """Weights of all covers whose stems lie on the prompt's own borders, from the definition."""
    rest, logprob = tokenizer.bytes_of(tail), 0.0
    for length in range(len(tail) + 1):
        row = after([*shared, *tail[:length]])
        for token_id, data in enumerate(tokenizer.token_bytes):
            is_end = not rest and token_id in tokenizer.eos_token_ids
            if not is_end and not (data.startswith(rest) and len(data) > len(rest)):
                continue
            path = [*shared, *tail[:length], token_id]
            if is_end or is_canonical(path, 0, tokenizer):
                yield math.exp(logprob + row[token_id])
        if length < len(tail):
            rest, logprob = rest[len(tokenizer.token_bytes[tail[length]]) :], logprob + row[tail[length]]


def test_each_of_many_drafts_is_judged_as_alone():
    model = loaded()
    drafts = [[f" {first}{second}" for first in "abcdefghijklm" for second in "nopqrstuvwxyz"][:159], [" x"]]
    evaluator = Evaluator(model)
    found = evaluator.logprobs(["Thank you", "We"], drafts)
    assert [len(own) for own in found] == [159, 1]
    (single,) = evaluator.logprobs(["Thank you"], [[drafts[0][150]]])
    assert found[0][150] == pytest.approx(single[0], abs=1e-5)
