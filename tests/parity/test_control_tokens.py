"""Control tokens: none is drafted, sampled or healed to, however probable it is; with every forward and strategy."""

from pathlib import Path

import pytest
import torch
from support.decoding import DEFAULTS
from support.models import tiny_model, tiny_tokenizer
from tokenizers import AddedToken

from superdraft.decoding.build import build_engine
from superdraft.decoding.config import EngineConfig
from superdraft.decoding.loading.loader import LoadedModel
from superdraft.decoding.params import GenerationParams

NAMES = ["<start_of_image>", "<|im_start|>", "<unused3>", "[INST]", "<tool_call>", "<table>"]
CONTROL = {300, 301, 302, 303, 304}
TABLE = 305
PARAMS = [
    {"selection": "distinct", "max_branches": 3},
    {"selection": "paper"},
    {"strategy": "sample", "temperature": 2.0, "seed": 1},
    {"strategy": "greedy", "num_drafts": 1},
    {"strategy": "sample+superposed", "num_branches": 2, "seed": 1},
]


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def engine(request):
    """Of plain transformers, and of the forward for smaller types."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in NAMES])
    model = tiny_model("llama", vocab_size=320).to(getattr(torch, request.param))
    return build_engine(LoadedModel(model, tokenizer, "tiny", Path()), EngineConfig(**DEFAULTS))


@pytest.mark.parametrize("params", PARAMS, ids=str)
@pytest.mark.parametrize("prompt", ["Thank you for", "Thank you for the re", "a <", [65, 300, 301], [300], ""], ids=str)
def test_no_control_token_is_ever_drafted(engine, prompt, params):
    bias = tuple((token_id, 100.0) for token_id in range(300, 320) if token_id != TABLE)
    output = engine.generate(prompt, GenerationParams(max_tokens=6, logit_bias=bias, **{"num_drafts": 3} | params))
    assert output.drafts
    for draft in output.drafts:
        assert max(draft.token_ids) < 300
        assert not any(name in draft.text for name in NAMES)


def test_an_added_token_of_text_is_drafted(engine):
    draft = engine.generate("a", GenerationParams(max_tokens=3, num_drafts=1, logit_bias=((TABLE, 100.0),))).drafts[0]
    assert draft.text == "<table><table><table>"
