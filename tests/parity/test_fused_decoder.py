"""The fused forward equals transformers' own, in double precision so that rounding hides no difference."""

import pytest
import torch
from support.models import tiny_model

from superdraft.decoding.model.fused_decoder import FusedDecoder
from superdraft.decoding.model.torch_runner import TorchRunner

OPTIONS = {
    "llama": {},
    "llama with biases": {"attention_bias": True, "mlp_bias": False},
    "mistral": {},  # a sliding window of 8
    "qwen2": {"num_key_value_heads": 1, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 48},
    "qwen3": {},
}
PROMPTS = ([5, 80, 31, 7, 7, 99, 120, 18, 44, 3, 250], [3, 4, 5], [9] * 7)


def runner_of(name: str) -> TorchRunner:
    options = OPTIONS[name] | ({"num_hidden_layers": 2, "max_position_embeddings": 128} if name == "qwen2" else {})
    model = tiny_model(name.split()[0], **options).double()
    assert FusedDecoder.supports(model)
    return TorchRunner(model, 64, 4_000_000, num_slots=4)


@pytest.mark.parametrize("name", OPTIONS)
def test_prefill_and_decode_equal_the_plain_model(name):
    runner = runner_of(name)
    expected = [logprobs[-1] for logprobs in runner.exact_logprobs(PROMPTS)]
    prefilled = runner.prefill([2, 0, 3], PROMPTS, [0, 0, 0]).log_softmax(-1).float()
    for got, wanted in zip(prefilled, expected, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)
    for slot, prompt in enumerate(PROMPTS):
        runner.prefill([slot], [prompt[:2]], [0])
    longer = [prompt[2:-1] for prompt in PROMPTS[::2]]
    runner.prefill([0, 2], longer, [2, 2])  # a second chunk after the first
    lengths = [len(prompt) - 1 for prompt in PROMPTS]
    decoded = runner.decode(runner.embed([prompt[-1] for prompt in PROMPTS]), lengths).log_softmax(-1).float()
    for got, wanted in zip(decoded, expected, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)


def test_no_weight_is_stored_twice():
    runner = runner_of("llama")
    attention = runner.model.model.layers[0].self_attn
    query, key = attention.q_proj.weight, attention.k_proj.weight
    assert query.untyped_storage().data_ptr() == key.untyped_storage().data_ptr()


@pytest.mark.parametrize("architecture", ["gpt2", "gemma3_text", "gpt_neox"])
def test_other_architectures_are_left_to_transformers(architecture):
    assert not FusedDecoder.supports(tiny_model(architecture))
