"""One draft without an n-gram model equals transformers' greedy decoding, token for token."""

import random

import pytest
import torch
from support.decoding import tiny_engine
from support.models import ARCHITECTURES
from transformers import PreTrainedModel

from superdraft.decoding.build import build_engine
from superdraft.decoding.config import EngineConfig
from superdraft.decoding.engine.engine import Engine
from superdraft.decoding.loading.loader import ModelOptions, load_model
from superdraft.decoding.params import GenerationParams

GREEDY = {"num_drafts": 1, "alpha": 0.0}


def transformers_greedy(model: PreTrainedModel, engine: Engine, prompt: list[int], max_tokens: int) -> list[int]:
    eos = sorted(engine.tokenizer.eos_token_ids)
    with torch.inference_mode():
        ids = torch.tensor([prompt])
        generated = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=max_tokens,
            suppress_tokens=list(engine.tokenizer.suppressed_token_ids) or None,
            eos_token_id=eos,
            pad_token_id=eos[0],
        )[0, len(prompt) :].tolist()
    return generated[:-1] if generated and generated[-1] in eos else generated


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tiny_models(architecture):
    engine, model = tiny_engine(architecture)
    rng = random.Random(1)
    different = set()
    for length in (1, 2, 5, 9, 20, 40):
        prompt = [rng.randrange(1, 300) for _ in range(length)]
        ours = engine.generate(prompt, GenerationParams(max_tokens=16, **GREEDY)).drafts[0].token_ids
        assert list(ours) == transformers_greedy(model, engine, prompt, 16)
        different.update(ours)
    assert len(different) > 8  # a model that ignores the prompt would make this test meaningless


def test_an_end_of_text_ends_the_draft_where_transformers_ends():
    """With every token an end-of-text token in turn, both stop at the same place."""
    engine, model = tiny_engine("llama")
    prompt = [7, 11, 13]
    free = engine.generate(prompt, GenerationParams(max_tokens=12, **GREEDY)).drafts[0].token_ids
    for token in set(free):
        engine.tokenizer.eos_token_ids = frozenset({token})
        draft = engine.generate(prompt, GenerationParams(max_tokens=12, **GREEDY)).drafts[0]
        assert list(draft.token_ids) == transformers_greedy(model, engine, prompt, 12)
        assert draft.finish_reason == "stop"


PROMPTS = [
    "Thank you for your email. I will",
    "The capital of France is",
    "The meeting has been moved to",
    "In the beginning of the 20th century, the",
    "def read_lines(path):\n    with open(path) as file:\n        return",
    "Once upon a time there was a",
    "Please let me know if you have any",
    "The results of the experiment show that",
    "import numpy as np\n\n\ndef mean(values):",
    "She opened the door and",
]


def test_default_model(default_gguf):
    loaded = load_model(ModelOptions(model=str(default_gguf), dtype="float32"))
    engine = build_engine(loaded, EngineConfig(max_model_len=128, num_slots=1))
    for prompt in PROMPTS:
        ids = [engine.tokenizer.start_token_id, *engine.tokenizer.encode(prompt)]
        draft = engine.generate(prompt, GenerationParams(max_tokens=8, **GREEDY)).drafts[0]
        assert list(draft.token_ids) == transformers_greedy(loaded.model, engine, ids, 8), prompt
