"""The catalogue against transformers' own classes and our gap prompts."""

import dataclasses

import pytest
import transformers
from support.models import tiny_model

from superdraft.decoding.loading.catalogue import CATALOGUE, KNOWN_MODELS
from superdraft.decoding.loading.hugging_face import size_of
from superdraft.decoding.loading.support import check_config, check_model_class
from superdraft.decoding.model.torch_runner import TorchRunner
from superdraft.decoding.text.fim import find_fim_tokens


def config(hidden, inner, layers, heads, kv_heads, vocab, **more):
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    } | more


QWEN_05B, QWEN_15B = config(896, 4864, 24, 14, 2, 151936), config(1536, 8960, 28, 12, 2, 151936)
# The models' published configs.
CONFIGS = {
    "smollm2-135m": ("llama", config(576, 1536, 30, 9, 3, 49152)),
    "gemma-3-270m": ("gemma3_text", config(640, 2048, 18, 4, 1, 262144, head_dim=256)),
    "smollm2-360m": ("llama", config(960, 2560, 32, 15, 5, 49152)),
    "qwen2.5-0.5b": ("qwen2", QWEN_05B),
    "gemma-3-1b": ("gemma3_text", config(1152, 6912, 26, 4, 1, 262144, head_dim=256)),
    "qwen2.5-1.5b": ("qwen2", QWEN_15B),
    "smollm2-1.7b": ("llama", config(2048, 8192, 24, 32, 32, 49152)),
    "qwen2.5-coder-0.5b": ("qwen2", QWEN_05B | {"tie_word_embeddings": False}),  # as its GGUF file says
    "deepseek-coder-1.3b": ("llama", config(2048, 5504, 24, 16, 16, 32256, tie_word_embeddings=False)),
    "qwen2.5-coder-1.5b": ("qwen2", QWEN_15B),
    "codegemma-2b": ("gemma", config(2048, 16384, 18, 8, 1, 256000, head_dim=256)),
    "starcoder2-3b": ("starcoder2", config(3072, 12288, 30, 24, 2, 49152)),
    "qwen2.5-coder-3b": ("qwen2", config(2048, 11008, 36, 16, 2, 151936)),
}
FIM_TOKENS = {
    "qwen": ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    "codegemma": ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    "starcoder2": ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    "deepseek": ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # noqa: RUF001
}


def test_the_configs_are_those_of_the_catalogue():
    assert list(CONFIGS) == list(CATALOGUE)
    assert all(name in CATALOGUE for name in KNOWN_MODELS)
    assert [model.name for model in CATALOGUE.values()] == list(CATALOGUE)


@pytest.mark.parametrize("name", CONFIGS)
def test_sizes_are_those_of_the_published_configs(name):
    kind, options = CONFIGS[name]
    made = transformers.AutoConfig.for_model(kind, **options)
    assert dataclasses.asdict(size_of(made)) == dataclasses.asdict(CATALOGUE[name].size)


def test_a_known_model_is_on_disk_as_a_gguf_file():
    assert CATALOGUE["smollm2-135m"].stored_bytes == 98_362_432
    assert CATALOGUE["smollm2-360m"].stored_bytes == 2 * 361_821_120
    assert CATALOGUE["starcoder2-3b"].stored_bytes == 4 * 3_030_371_328


@pytest.mark.parametrize("name", CONFIGS)
def test_superposed_decoding_can_run_on_it(name):
    kind, options = CONFIGS[name]
    made = transformers.AutoConfig.for_model(kind, **options)
    check_config(made, name)
    check_model_class(transformers.AutoModelForCausalLM._model_mapping[type(made)], made, name)


@pytest.mark.parametrize("kind", sorted({kind for kind, _ in CONFIGS.values()}))
def test_the_runner_accepts_the_architecture(kind):
    small = config(32, 48, 2, 4, 2, 300, head_dim=8, max_position_embeddings=128)
    if kind == "starcoder2":
        del small["head_dim"]
    model = tiny_model(kind, **{name: value for name, value in small.items() if "token_id" not in name})
    assert TorchRunner(model, 32, 10**7, 2).num_slots == 2  # it has compared itself with the plain model


def test_the_models_that_see_the_text_after_the_cursor_have_a_gap_prompt():
    for model in CATALOGUE.values():
        assert model.sees_suffix == (model.task == "code")
        if model.sees_suffix:
            tokens = next(tokens for family, tokens in FIM_TOKENS.items() if family in model.name)
            found = find_fim_tokens({token: token_id for token_id, token in enumerate(tokens)})
            assert found is not None
            assert (found.prefix, found.suffix, found.middle) == (0, 1, 2)
