"""An engine over llama.cpp: greedy drafts are transformers' own, and warm trees give the drafts of cold ones.

llama.cpp adds up a row's attention in the order in which its entries lie in memory, so roundings depend on what ran
before. Long superposed drafts of a random model multiply them; rows of real tokens do not. Superposed drafts over the
same cells are compared without roundings in `tests/unit/decoding/engine/test_engine_over_sequences.py`.
"""

import random

import pytest
import torch
from support.gguf_files import write_gguf
from support.requests import run_together

from superdraft.decoding.build import build_engine
from superdraft.decoding.config import EngineConfig
from superdraft.decoding.engine.engine import Engine
from superdraft.decoding.loading.loader import ModelOptions, load_gguf, load_model
from superdraft.decoding.params import GenerationParams

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

CONFIG = EngineConfig(max_model_len=128, num_slots=3, kv_memory_bytes=100_000_000, document_start=False)
DISTINCT = {"selection": "distinct", "max_branches": 3}
TEXTS = ["Thank you for", "Thank you for the re", "Please find the", "def add(a, b):\n    return", "the dog", "t"]


def make_engine(path, num_sequences: int | None = None) -> Engine:
    if num_sequences is None:
        return build_engine(load_gguf(ModelOptions(model=str(path), num_threads=1)), CONFIG)
    from superdraft.decoding.model.llamacpp.runner import LlamaRunner
    from superdraft.decoding.text.tokenizer import Tokenizer

    runner = LlamaRunner(path, 128, 100_000_000, 3, num_threads=1, num_sequences=num_sequences)
    return Engine(runner, Tokenizer(load_gguf(ModelOptions(model=str(path))).tokenizer, runner.vocab_size), CONFIG)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf", quantised=False)


def test_greedy_drafts_are_those_of_transformers(path):
    engine, model = make_engine(path), load_model(ModelOptions(model=str(path), device="cpu", dtype="float32")).model
    seen = set()
    for text in TEXTS:
        ids = engine.tokenizer.encode(text)
        draft = engine.generate(ids, GenerationParams(strategy="greedy", num_drafts=1, max_tokens=12)).drafts[0]
        expected = model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=False,
            max_new_tokens=12,
            suppress_tokens=list(engine.tokenizer.suppressed_token_ids) or None,
            eos_token_id=sorted(engine.tokenizer.eos_token_ids),
            pad_token_id=0,
        )[0, len(ids) :].tolist()
        while expected and expected[-1] in engine.tokenizer.eos_token_ids:
            expected.pop()
        assert list(draft.token_ids) == expected
        seen.update(expected)
    assert len(seen) > 8


@pytest.mark.parametrize("num_sequences", [None, 8])
def test_a_typist_gets_the_drafts_of_a_cold_run(path, num_sequences):
    warm, cold = make_engine(path, num_sequences), make_engine(path)
    params = GenerationParams(num_drafts=3, max_tokens=5, tau=1.0, alpha=0.0, token_healing=True, **DISTINCT)
    rng, text = random.Random(5), "Thank"
    for _ in range(25):
        cold.forget_prompts()
        expected, answer = cold.generate(text, params), warm.generate(text, params)
        assert [draft.token_ids for draft in answer.drafts] == [draft.token_ids for draft in expected.drafts], text
        action = rng.random()
        if action < 0.4 and answer.drafts:
            text += rng.choice(answer.drafts).text.replace("\ufffd", "")
        elif action < 0.7:
            text += rng.choice([" you", " for", "the", " re", "po"])
        else:
            text = text[: -rng.randint(1, 6)] or "a"
        text = text[-100:]
    assert warm.num_prefilled_tokens < cold.num_prefilled_tokens


def test_requests_that_run_together_get_the_drafts_that_each_gets_alone(path):
    params = {
        "distinct": GenerationParams(num_drafts=3, max_tokens=6, alpha=0.0, **DISTINCT),
        "healed": GenerationParams(num_drafts=3, max_tokens=6, alpha=0.0, token_healing=True, **DISTINCT),
        "verified": GenerationParams(strategy="greedy", num_drafts=1, max_tokens=4, alpha=0.0, verify_top=1),
    }
    requests = {f"{name}, {text}": (text, one) for text in TEXTS for name, one in params.items()}
    together = run_together(make_engine(path), requests, random.Random(1))
    engine = make_engine(path)
    for name, (text, one) in requests.items():
        alone = engine.generate(text, one)
        assert [draft.token_ids for draft in together[name].drafts] == [draft.token_ids for draft in alone.drafts], name
        if one.verify_top is not None:
            (draft,) = together[name].drafts
            exact = [token.logprob for token in draft.exact_logprobs]
            assert exact == pytest.approx(list(draft.token_logprobs), abs=0.1)
