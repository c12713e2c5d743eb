"""Decoders and evaluators over tiny models: batched equals alone, and exact is exact."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.decoding import HashScorer, texts, tiny_engine
from support.models import ARCHITECTURES, tiny_model, tiny_tokenizer

from superdraft.decoding.model_loader import LoadedModel
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.tokenizer import Tokenizer
from superdraft.evaluation.decoders import Ask, BeamDecoder, EngineDecoder
from superdraft.evaluation.evaluator import DraftText, Evaluator, exact_runner
from superdraft.evaluation.linearity import LinearityProbe

PROMPTS = ["Thank you for your", "The quick brown fox jumps over", "Please find", "def add(a, b):\n    return"] * 3


def loaded(architecture="llama", **options):
    return LoadedModel(tiny_model(architecture, **options), tiny_tokenizer(), architecture, Path())


def asks(prompts=PROMPTS):
    return [Ask(text, f"{i}", domain="even" if i % 2 == 0 else "odd") for i, text in enumerate(prompts)]


def test_many_at_once_give_what_each_gives_alone():
    engine, _ = tiny_engine()
    params = GenerationParams(num_drafts=3, max_tokens=6, alpha=0.3, tau=0.5)
    decoded = EngineDecoder(engine, params, lambda domain: HashScorer() if domain == "odd" else None).decode(asks())
    alone, _ = tiny_engine(num_slots=1)
    for index, (text, found) in enumerate(zip(PROMPTS, decoded, strict=True)):
        expected = alone.generate(text, params, HashScorer() if index % 2 else None)
        assert [draft.text for draft in found.drafts] == texts(expected)
        assert found.forward_rows == expected.usage.forward_rows


def test_samples_depend_on_seed_and_key_but_not_on_the_company():
    engine, _ = tiny_engine()
    params = GenerationParams(strategy="sample", num_drafts=2, max_tokens=6)

    def sampled(which, seed=0):
        decoded = EngineDecoder(engine, params, lambda _: None, seed).decode(which)
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
    (cut,) = EngineDecoder(engine, params, lambda _: None).decode([ask])
    (plain,) = EngineDecoder(engine, replace(params, token_healing=False), lambda _: None).decode([ask])
    healed = engine.generate("Please find the rep", params)
    assert [draft.text for draft in cut.drafts] == texts(healed) != [draft.text for draft in plain.drafts]


@torch.inference_mode()
def test_beams_are_those_of_an_exhaustive_search():
    model = loaded()
    tokenizer = Tokenizer(model.tokenizer, model.model.config.vocab_size)
    # With more beams than tokens, two steps of beam search leave nothing out.
    (found,) = BeamDecoder(model, tokenizer, GenerationParams(num_drafts=300, max_tokens=2)).decode([Ask("We", "0")])
    best = found.drafts[0]
    prompt = torch.tensor([tokenizer.encode("We")])
    first = torch.log_softmax(model.model(prompt).logits[0, -1], -1)
    both = torch.full((300, 300), -math.inf)
    for token in range(1, 300):
        row = model.model(torch.cat([prompt, torch.tensor([[token]])], 1)).logits[0, -1]
        both[token] = first[token] + torch.log_softmax(row, -1)
    both[:, 0] = -math.inf  # the end of text
    top = int(both.argmax())
    assert best.token_ids == (top // 300, top % 300)
    assert best.score == pytest.approx(float(both.max()) / 2, abs=1e-4)
    assert found.forward_rows == 300


def test_beams_do_not_depend_on_padding():
    model = loaded()
    decoder = BeamDecoder(model, Tokenizer(model.tokenizer, 300), GenerationParams(num_drafts=3, max_tokens=5))
    together = decoder.decode(asks())
    for ask, found in zip(asks(), together, strict=True):
        (alone,) = decoder.decode([ask])
        assert [draft.token_ids for draft in alone.drafts] == [draft.token_ids for draft in found.drafts]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_exact_logprobs_are_those_of_the_plain_model(architecture):
    model = loaded(architecture)
    tokenizer = Tokenizer(model.tokenizer, 300)
    prompts = ["Thank you", "The quick brown fox jumps over the lazy dog", "We"]
    drafts = [[(5,), (7, 8, 9, 10), (7, 8, 20)], [(30, 31)], []]
    wanted = [[DraftText("", ids) for ids in own] for own in drafts]
    wanted[2] = [DraftText("", ()), DraftText("", (4, 4, 4)), DraftText("", (4, 4, 4))]
    found = Evaluator(model, 64, same_tokenizer=True).logprobs(prompts, wanted)
    for prompt, own, answers in zip(prompts, wanted, found, strict=True):
        ids = tokenizer.encode(prompt)
        for draft, answer in zip(own, answers, strict=True):
            logits = model.model(torch.tensor([[*ids, *draft.token_ids]])).logits[0]
            expected = torch.log_softmax(logits, -1)[range(len(ids) - 1, len(ids) - 1 + len(answer)), draft.token_ids]
            assert len(answer) == len(draft.token_ids)
            assert list(answer) == pytest.approx(expected.tolist(), abs=1e-4)


def test_more_drafts_than_slots_are_judged_in_parts():
    model = loaded()
    drafts = [[DraftText("", (token, token + 1)) for token in range(1, 160)], [DraftText("", (9,))]]
    evaluator = Evaluator(model, 32, same_tokenizer=True)
    found = evaluator.logprobs(["Thank you", "We"], drafts)
    assert [len(own) for own in found] == [159, 1]
    (single,) = evaluator.logprobs(["Thank you"], [[drafts[0][150]]])
    assert found[0][150] == pytest.approx(single[0], abs=1e-5)


def test_an_independent_evaluator_reads_the_text():
    model = loaded()
    (answers,) = Evaluator(model, 64, same_tokenizer=False).logprobs(["Thank"], [[DraftText(" you for", (1, 2, 3, 4))]])
    ids = model.tokenizer.encode(" you for")
    (same,) = Evaluator(model, 64, same_tokenizer=True).logprobs(["Thank"], [[DraftText("", tuple(ids))]])
    assert answers == same


def test_linearity_of_one_draft_is_perfect_and_of_several_is_not():
    model = loaded()
    runner, tokenizer = exact_runner(model, 48, 24), Tokenizer(model.tokenizer, 300)

    def similarities(k):
        params = GenerationParams(num_drafts=k, max_tokens=8, alpha=0, tau=1.0)
        return LinearityProbe(runner, tokenizer, params).similarities("The quick brown fox")

    # A superposition of one draft is that draft: any other value shows a wrong row, position or weight.
    assert similarities(1) == pytest.approx([1.0] * 8, abs=1e-4)
    several = similarities(3)
    assert several.shape == (8,)
    assert (several < 0.9999).any()
    assert (several > -1.0001).all()
