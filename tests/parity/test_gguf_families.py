"""Families of models, from GGUF files and from safetensors: the logits and the greedy text of transformers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support.gguf_export import export_gguf
from support.models import tiny_model, tiny_tokenizer
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from superdraft.decoding.build import build_engine
from superdraft.decoding.config import EngineConfig
from superdraft.decoding.errors import BrokenModelError, UnsupportedModelError
from superdraft.decoding.loading.loader import ModelOptions, load_model
from superdraft.decoding.model.native.library import has_kernels
from superdraft.decoding.model.segments import Segment
from superdraft.decoding.model.torch_runner import TorchRunner
from superdraft.decoding.runner_choice import load

MAX_LEN = 200
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
# Wide enough for blocks of 32 weights and for the kernels.
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "bos_token_id": 0,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "smollm2": ("llama", {"head_dim": 32, "tie_word_embeddings": True, "num_key_value_heads": 2}),
    "qwen2.5": (
        "qwen2",
        {"tie_word_embeddings": False, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    ),
    "qwen3": ("qwen3", {"head_dim": 64, "tie_word_embeddings": True}),
    "llama3.2": ("llama", {"head_dim": 32, "tie_word_embeddings": True, "rope_parameters": LLAMA3}),
    "gemma3": (
        "gemma3_text",
        {
            "head_dim": 32,
            "num_hidden_layers": 7,  # the sixth sees the whole text
            "query_pre_attn_scalar": 32,
            "sliding_window": 8,
            "layer_types": None,
            "tie_word_embeddings": True,
        },
    ),
    "smollm3": ("smollm3", {"num_hidden_layers": 4, "no_rope_layer_interval": 4, "tie_word_embeddings": True}),
    "granite": (
        "granite",
        {
            "embedding_multiplier": 4.0,
            "residual_multiplier": 0.4,
            "attention_multiplier": 0.1,
            "logits_scaling": 2.0,
            "tie_word_embeddings": True,
        },
    ),
    "phi3": ("phi3", {"sliding_window": 8, "tie_word_embeddings": False, "pad_token_id": None}),
}
EXACT = 2e-3  # of log-probabilities
ROUNDED = 0.06  # of probabilities; Q8_0 rounds weights by up to 0.4 % of the largest in 32
PROMPT = [5, 17, 100, 33, 208, 64, 9, 150, 21, 87, 140, 41, 7, 7, 250, 99]

needs_kernels = pytest.mark.skipif(not has_kernels(), reason="there are no kernels for this machine")


@dataclass(frozen=True)
class Family:
    """A family's tiny model, and the files that were written of it."""

    name: str
    model: transformers.PreTrainedModel
    gguf: Path
    q8: Path
    folder: Path


def llama3_factors() -> torch.Tensor:
    """By what a file says that frequencies are divided."""
    config = tiny_model("llama", **(SIZES | FAMILIES["llama3.2"][1])).config
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    return LLAMA3["rope_theta"] ** (-torch.arange(0, 32, 2) / 32) / scaled


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory) -> Family:
    architecture, options = FAMILIES[request.param]
    model = tiny_model(architecture, **(SIZES | options))
    with torch.no_grad():  # random, as trained norms are not the ones and zeros that they begin as
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
                parameter.add_(0.2 * noise)
    tokenizer = tiny_tokenizer()
    folder = tmp_path_factory.mktemp(request.param)
    factors = llama3_factors().numpy() if request.param == "llama3.2" else None
    files = [
        export_gguf(folder / f"{name}.gguf", model, tokenizer, quantised=name == "q8", rope_factors=factors)
        for name in ("plain", "q8")
    ]
    model.save_pretrained(folder / "safetensors")
    tokenizer.save_pretrained(folder / "safetensors")
    return Family(request.param, model, *files, folder / "safetensors")


def logprobs(runner: Any) -> torch.Tensor:
    """After each token of the prompt, the second half of which is run on its own."""
    half = len(PROMPT) // 2
    parts = []
    for start in (0, half):
        ids = PROMPT[start : start + half]
        parts.append(runner.forward([Segment.plain(0, start, half)], runner.embed(ids), range(half)))
    return torch.log_softmax(torch.cat(parts).float(), -1)


def wanted(model: transformers.PreTrainedModel) -> torch.Tensor:
    with torch.inference_mode():
        return torch.log_softmax(model(torch.tensor([PROMPT])).logits[0], -1)


def greedy(runner: Any, num_tokens: int = 24) -> list[int]:
    logits = runner.forward([Segment.plain(0, 0, len(PROMPT))], runner.embed(PROMPT), [len(PROMPT) - 1])
    found: list[int] = []
    for position in range(len(PROMPT), len(PROMPT) + num_tokens):
        found.append(int(logits[0].argmax()))
        logits = runner.forward([Segment.plain(0, position, 1)], runner.embed(found[-1:]), [0])
    return found


def transformers_greedy(model: transformers.PreTrainedModel, num_tokens: int = 24) -> list[int]:
    ids = torch.tensor([PROMPT])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=num_tokens,
        eos_token_id=None,
        pad_token_id=0,
    )
    return out[0, len(PROMPT) :].tolist()


def runner_of(path: Path, dtype: str = "float32") -> Any:
    """The runner that is served with these options."""
    loaded = load(ModelOptions(model=str(path), device="cpu", dtype=dtype), MAX_LEN)
    config = EngineConfig(max_model_len=MAX_LEN, kv_memory_bytes=10_000_000, num_slots=2)
    return build_engine(loaded, config)._runner


@pytest.mark.parametrize("source", ["gguf", "folder"])
def test_logits_and_greedy_are_those_of_transformers(family, source):
    runner = runner_of(getattr(family, source))
    assert isinstance(runner, TorchRunner)
    expected = wanted(family.model)
    assert expected.max(-1).values.exp().std() > 0.01  # not all alike
    torch.testing.assert_close(logprobs(runner), expected, atol=EXACT, rtol=0)
    assert greedy(runner) == transformers_greedy(family.model)


def test_a_quantised_file_is_close(family):
    difference = (logprobs(runner_of(family.q8)).exp() - wanted(family.model).exp()).abs().max()
    assert 1e-4 < difference < ROUNDED


@needs_kernels
def test_the_kernels_run_the_same_files(family):
    runner = runner_of(family.q8, "int4")
    assert runner.forward_name == "native"
    difference = (logprobs(runner).exp() - wanted(family.model).exp()).abs()
    assert difference.max() < 2 * ROUNDED
    assert difference.mean() < ROUNDED / 40


def test_llamacpp_runs_the_same_files(family):
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    from superdraft.decoding.model.llamacpp.runner import LlamaRunner

    def runner(path: Path) -> Any:
        return LlamaRunner(path, MAX_LEN, 10_000_000, 2, num_threads=1)

    if any(size is not None for size in (getattr(family.model.config, "sliding_window", None),)):
        pytest.skip("its runner knows no windows")
    torch.testing.assert_close(logprobs(runner(family.gguf)), wanted(family.model), atol=0.1, rtol=0)


@pytest.mark.parametrize(
    ("metadata", "rope"),
    [
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 128},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
        ),
    ],
)
def test_positions_scaled_by_metadata(tmp_path, metadata, rope):
    rope = {"rope_theta": 10_000.0, **rope}
    model = tiny_model("llama", **(SIZES | FAMILIES["smollm2"][1] | {"rope_parameters": rope}))
    path = export_gguf(tmp_path / "scaled.gguf", model, tiny_tokenizer(), metadata=metadata)
    torch.testing.assert_close(logprobs(runner_of(path)), wanted(model), atol=EXACT, rtol=0)


@pytest.mark.parametrize(
    ("metadata", "error", "said"),
    [
        ({"rope.scaling.type": "longrope", "rope.scaling.factor": 4.0}, BrokenModelError, "'longrope'"),
        ({"expert_count": 8}, UnsupportedModelError, r"llama\.expert_count, which .* --runner llamacpp"),
        ({"attn_logit_softcapping": 50.0}, UnsupportedModelError, r"llama\.attn_logit_softcapping"),
    ],
)
def test_what_is_not_known_is_refused(tmp_path, metadata, error, said):
    model = tiny_model("llama", **(SIZES | FAMILIES["smollm2"][1]))
    path = export_gguf(tmp_path / "odd.gguf", model, tiny_tokenizer(), metadata=metadata)
    for dtype in ("float32", "int4"):
        with pytest.raises(error, match=said):
            load(ModelOptions(model=str(path), device="cpu", dtype=dtype, runner="torch"), MAX_LEN)
    with pytest.raises(error, match=said):
        load_model(ModelOptions(model=str(path), device="cpu", dtype="float32"))
