"""Texts that share a slot as a tree give the logits that each of them gives alone."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.models import tiny_model
from support.token_trees import RandomTrees

from superdraft.decoding.model.torch_runner import TorchRunner

MAX_LEN = 96
# Large random weights multiply roundings. In double precision only norms are rounded, by transformers, to float32.
CASES = [
    *[(name, torch.float32, 2e-3, {}) for name in ("llama", "gpt2", "gpt_neox", "gemma3_text", "mistral")],
    *[(name, torch.float64, 5e-5, {}) for name in ("llama", "mistral", "qwen3")],
    *[(name, torch.bfloat16, 0.05, {"initializer_range": 0.05}) for name in ("llama", "mistral", "qwen3")],
]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}, {str(case[1]).split('.')[1]}")
def runner_and_tolerance(request) -> tuple[TorchRunner, float]:
    architecture, dtype, tolerance, options = request.param
    return TorchRunner(tiny_model(architecture, **options).to(dtype), MAX_LEN, 4_000_000, num_slots=4), tolerance


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**9))
def test_a_tree_equals_separate_texts(runner_and_tolerance, seed):
    runner, tolerance = runner_and_tolerance
    rng = random.Random(seed)
    prompts = [[rng.randrange(1, 300) for _ in range(rng.randint(1, 30))] for _ in range(rng.randint(1, 4))]
    trees = RandomTrees(rng, prompts, runner.num_cells)
    found: list[tuple[list[int], torch.Tensor]] = []
    for _ in range(6):
        for _ in range(rng.randint(0, 3)):
            trees.fork(max_texts=8)
        if rng.random() < 0.4:
            trees.drop()
        fed = trees.feed()
        if not fed:
            continue
        ends = [sum(len(one.token_ids) for one in fed[: i + 1]) for i in range(len(fed))]
        kept = [end - 1 for end in ends if rng.random() < 0.9]
        embeddings = runner.embed([token for one in fed for token in one.token_ids])
        logits = runner.forward([one.segment for one in fed], embeddings, kept)
        texts = {end - 1: list(one.text.token_ids) for end, one in zip(ends, fed, strict=True)}
        found += [(texts[row], own) for row, own in zip(kept, logits, strict=True)]
    expected = runner.exact_logprobs([text for text, _ in found]) if found else []
    for (text, logits), alone in zip(found, expected, strict=True):
        got = torch.log_softmax(logits.float(), -1)
        torch.testing.assert_close(got, alone[len(text) - 1], atol=tolerance, rtol=0)
