"""What is found in files and models of the kernels' families, and what is refused. Parity: `test_gguf_families`."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from support.gguf_export import export_gguf
from support.models import tiny_model, tiny_tokenizer
from support.native_models import MODELS, make_model, spec_of
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from superdraft.decoding.errors import BrokenModelError, ModelLoadError, UnsupportedModelError
from superdraft.decoding.families import FAMILIES, gguf_family, is_family, spec_of_config, spec_of_gguf
from superdraft.decoding.gguf.file import GgufFile
from superdraft.decoding.model.decoder_spec import rotation_of
from superdraft.decoding.model.native.decoder import problem_of

SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
    "num_hidden_layers": 2, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    model = tiny_model("qwen2", **SIZES)
    return export_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", model, tiny_tokenizer())


def test_a_file_and_its_model_are_the_same_decoder(path):
    file = GgufFile(path)
    spec = spec_of_gguf(file, 64)
    assert gguf_family(file) is next(family for family in FAMILIES if family.name == "qwen2")
    other = spec_of(tiny_model("qwen2", **SIZES))
    assert problem_of(spec) is None
    assert (spec.num_heads, spec.num_kv_heads, spec.head_dim, spec.family) == (2, 1, 32, "qwen2")
    assert spec.head is spec.embedding
    for mine, theirs in zip(spec.layers, other.layers, strict=True):
        assert torch.equal(mine.input_norm, theirs.input_norm)
        assert torch.equal(mine.qkv_bias, theirs.qkv_bias)
        for one, two in zip(
            (*mine.qkv, *mine.gate_up, mine.down), (*theirs.qkv, *theirs.gate_up, theirs.down), strict=True
        ):
            assert torch.equal(one.numbers(), two.numbers())
    torch.testing.assert_close(spec.rotations[0].frequencies, other.rotations[0].frequencies)


def changed(path: Path, change: Callable[[GgufFile], None]) -> GgufFile:
    file = GgufFile(path)
    file.metadata = dict(file.metadata)
    change(file)
    return file


def rename(old: str, new: str) -> Callable[[GgufFile], None]:
    return lambda file: file.tensors.__setitem__(new, file.tensors.pop(old))


def put(key: str, value: object) -> Callable[[GgufFile], None]:
    return lambda file: file.metadata.__setitem__(key, value)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        (put("general.architecture", "mamba"), UnsupportedModelError, r"'mamba'; the kernels run llama, qwen2, .*phi3"),
        (put("qwen2.expert_count", 4), UnsupportedModelError, r"qwen2\.expert_count, which .* --runner llamacpp"),
        (rename("blk.1.attn_q.weight", "blk.1.attn_rel_b.weight"), BrokenModelError, r"lacks .* blk\.1\.attn_q"),
        (lambda file: file.tensors.pop("blk.0.ffn_up.weight"), BrokenModelError, r"lacks the tensor blk\.0\.ffn_up"),
        (lambda file: file.tensors.pop("blk.0.attn_q.bias"), UnsupportedModelError, "only some of queries, keys"),
        (lambda file: file.tensors.__setitem__("extra.weight", file.tensors["output_norm.weight"]),
         UnsupportedModelError, r"tensor extra\.weight, which the kernels do not use in qwen2 models"),
        (lambda file: file.tensors.__setitem__("output_norm.weight", file.tensors["blk.0.attn_k.bias"]),
         BrokenModelError, "the last norm has 32 numbers, expected 64"),
        (lambda file: file.tensors.__setitem__("blk.1.attn_norm.weight", file.tensors["blk.0.attn_k.bias"]),
         BrokenModelError, "the norm before attention in layer 1 has 32 numbers, expected 64"),
        (lambda file: file.metadata.pop("qwen2.block_count"), BrokenModelError, "'block_count'"),
        (put("qwen2.block_count", 2**32 - 1), BrokenModelError, "4294967295 layers in"),
        (put("qwen2.block_count", 1), UnsupportedModelError, r"tensor blk\.1\."),
        (put("qwen2.attention.head_count", 0), BrokenModelError, "ZeroDivisionError"),
        (put("qwen2.attention.head_count", "two"), BrokenModelError, "ValueError"),
        (put("qwen2.attention.value_length", 16), BrokenModelError, "keys and values differ"),
        (put("qwen2.rope.dimension_count", 128), BrokenModelError, "of 32 numbers, 128 of which are rotated"),
        (put("qwen2.rope.scaling.type", "su"), BrokenModelError, "'su'"),
    ],
)  # fmt: skip
def test_what_would_be_another_model_is_refused(path, change, kind, said):
    with pytest.raises(kind, match=said) as info:
        spec_of_gguf(changed(path, change), 64)
    assert "\n" not in str(info.value)


def test_any_numbers_are_refused_or_have_a_problem_or_fit(path):
    """Parameters at random: nothing but our own errors, and what passes has the shapes that the kernels expect."""
    chance = random.Random(0)
    names = [name for name in GgufFile(path).metadata if name.startswith("qwen2.")]
    num_fitting = 0
    for _ in range(300):
        values = (0, 1, 2, 3, 32, 64, 96, 2**31, 2**32 - 1, -1, 0.5, float("nan"), "x")
        file = changed(path, put(chance.choice(names), chance.choice(values)))
        try:
            spec = spec_of_gguf(file, 64)
        except ModelLoadError:
            continue
        num_fitting += problem_of(spec) is None
    assert 0 < num_fitting < 300


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_every_family_has_no_problem(name):
    model = make_model(name)
    assert is_family(model.config)
    assert problem_of(spec_of(model)) is None


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "opt"])
def test_other_families_are_transformers_own(architecture):
    model = tiny_model(architecture)
    assert not is_family(model.config)
    assert spec_of_config(model.config, model.state_dict(), 64, "it") is None


def test_a_model_with_something_else_is_transformers_own():
    model = tiny_model("llama", **SIZES)
    tensors = model.state_dict() | {"model.layers.0.mlp.extra.weight": torch.zeros(2, 2)}
    assert spec_of_config(model.config, tensors, 64, "it") is None
    model.config.hidden_act = "relu"
    assert spec_of_config(model.config, model.state_dict(), 64, "it") is None


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 64},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 16.0,
         "beta_slow": 2.0, "attention_factor": 1.3},
        {"rope_type": "longrope", "short_factor": [1.0 + i / 9 for i in range(16)], "long_factor": [2.0] * 16,
         "original_max_position_embeddings": 64},
    ],
)  # fmt: skip
@pytest.mark.parametrize("num_positions", [32, 200])
def test_rotations_are_those_of_transformers(rope, num_positions):
    rope = {"rope_theta": 10_000.0, **rope}
    config = transformers.LlamaConfig(
        hidden_size=64, num_attention_heads=2, max_position_embeddings=256, rope_parameters=dict(rope)
    )
    config.original_max_position_embeddings = 64
    found = rotation_of(rope, 32, 256, num_positions)
    if rope["rope_type"] == "default":
        expected, scale = 10_000.0 ** (-np.arange(0, 32, 2) / 32), 1.0
    else:
        init = ROPE_INIT_FUNCTIONS[rope["rope_type"]]
        expected, scale = init(config, torch.device("cpu"), seq_len=num_positions)
    torch.testing.assert_close(found.frequencies, torch.as_tensor(expected, dtype=torch.float32))
    assert found.scale == pytest.approx(scale)
    cosines, sines = found.tables(50)
    angles = np.outer(np.arange(50), np.asarray(expected))
    np.testing.assert_allclose(cosines[:, :16].numpy(), np.cos(angles) * scale, atol=1e-4)
    np.testing.assert_allclose(sines[:, 16:].numpy(), np.sin(angles) * scale, atol=1e-4)
    assert torch.equal(sines[:, :16], -sines[:, 16:])
