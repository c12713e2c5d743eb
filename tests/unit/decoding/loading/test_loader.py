import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import ARCHITECTURES, tiny_model, tiny_model_folder, tiny_tokenizer

from superdraft.decoding.errors import BrokenModelError, ModelLoadError, UnknownModelError, UnsupportedModelError
from superdraft.decoding.loading.loader import load_model, load_tokenizer
from superdraft.decoding.model import weight_formats
from superdraft.decoding.model.linear_int4 import convert_int4


@pytest.fixture
def llama(tmp_path) -> Path:
    return tiny_model_folder(tmp_path, "llama")


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def error_of(kind: type[ModelLoadError], spec: object, **options) -> str:
    with pytest.raises(kind) as info:
        load_model(str(spec), **options)
    assert type(info.value) is kind
    message = str(info.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_folder_loads_ready_to_decode(tmp_path, architecture, capfd):
    folder = tiny_model_folder(tmp_path, architecture)
    capfd.readouterr()
    loaded = load_model(str(folder), device="cpu", dtype="float32")
    assert capfd.readouterr() == ("", "")
    assert (loaded.name, loaded.path) == (architecture, folder)
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.model.dtype == torch.float32
    assert loaded.model.config._attn_implementation == "sdpa"
    assert loaded.tokenizer.decode(loaded.tokenizer.encode(" naïve , it 's\n\n x")) == " naïve , it 's\n\n x"
    token_ids = torch.tensor([loaded.tokenizer.encode("Thank you")])
    with torch.inference_mode():
        assert torch.equal(loaded.model(token_ids).logits, tiny_model(architecture)(token_ids).logits)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tiny_models_vary_their_greedy_output(architecture):
    model, tokenizer = tiny_model(architecture), tiny_tokenizer()
    tokens: list[int] = []
    for prompt in ("Thank you", "def f(x):", "2024"):
        token_ids = torch.tensor([tokenizer.encode(prompt)])
        tokens += model.generate(token_ids, max_new_tokens=8, do_sample=False)[0, token_ids.shape[1] :].tolist()
    assert len(set(tokens)) >= 10


def test_dtype_is_taken_from_the_option(llama):
    assert load_model(str(llama), device="cpu", dtype="bfloat16").model.dtype == torch.bfloat16
    limit = "dtype must be auto, float32, bfloat16, float16 or int4, got 'int8'."
    assert limit in error_of(ModelLoadError, llama, device="cpu", dtype="int8")


@pytest.mark.parametrize(
    ("has_kernels", "is_fast", "dtype", "convert"),
    [
        (True, False, torch.bfloat16, convert_int4),
        (False, True, torch.bfloat16, convert_int4),
        (False, False, torch.float32, None),
    ],
)
def test_a_cpu_gets_four_bits_if_it_is_quick_at_them(llama, monkeypatch, has_kernels, is_fast, dtype, convert):
    monkeypatch.setattr(weight_formats, "has_kernels", lambda: has_kernels)
    monkeypatch.setattr(weight_formats, "_has_fast_bfloat16", lambda: is_fast)
    loaded = load_model(str(llama), device="cpu")
    assert (loaded.model.dtype, loaded.convert) == (dtype, convert)
    loaded = load_model(str(llama), device="cpu", dtype="int4")
    assert (loaded.model.dtype, loaded.convert) == (torch.bfloat16, convert_int4)


@pytest.mark.parametrize("device", ["tpu", "cuda:99", "meta"])
def test_a_device_that_is_not_there_is_refused(llama, device):
    assert repr(device) in error_of(ModelLoadError, llama, device=device)


def test_load_tokenizer_needs_no_weights(llama):
    (llama / "model.safetensors").unlink()
    assert load_tokenizer(str(llama)).encode("Thank you") == tiny_tokenizer().encode("Thank you")


@pytest.mark.parametrize("spec", ["./missing", "/no/such/model", "missing.gguf", "a/b/c", "", "no-such-model"])
def test_nothing_under_that_name(spec):
    assert repr(spec) in error_of(UnknownModelError, spec)
    with pytest.raises(UnknownModelError):
        load_tokenizer(spec)


def truncate_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def drop_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def pickle_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def remove(name: str):
    return lambda folder: (folder / name).unlink()


def remove_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate_weights, "cannot load the weights .* SafetensorError"),
        (drop_weight, "lacks 1 of its weights, for example lm_head.weight"),
        (pickle_weights, r"only pickled weights \(pytorch_model.bin\).* refused"),
        (remove("model.safetensors"), "has no safetensors weights"),
        (remove("config.json"), "config.json is missing"),
        (remove_tokenizer, "contains no tokenizer"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": '), "cannot read the config"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "cannot read the tokenizer"),
        (lambda folder: edit_config(folder, vocab_size=299), "cannot load the weights"),
        (lambda folder: edit_config(folder, num_attention_heads="many"), "cannot read the config"),
    ],
)
def test_a_damaged_folder_is_one_clear_line(llama, damage, message):
    damage(llama)
    found = error_of(BrokenModelError, llama)
    assert re.search(message, found), found
    assert str(llama) in found


def test_another_models_tokenizer_is_refused(tmp_path):
    folder = tiny_model_folder(tmp_path, "llama", vocab_size=200)
    assert "300 tokens and the model 200 embeddings" in error_of(BrokenModelError, folder)


def test_pickles_are_never_read(llama):
    weights = load_file(llama / "model.safetensors")
    (llama / "model.safetensors").unlink()
    torch.save(weights, llama / "pytorch_model.bin")
    assert "refused" in error_of(BrokenModelError, llama)


def test_a_folder_with_only_a_gguf_file_says_how_to_load_it(llama):
    (llama / "model.safetensors").rename(llama / "tiny.gguf")
    assert f"pass its path: {llama / 'tiny.gguf'}" in error_of(BrokenModelError, llama)


def test_a_damaged_gguf_file_is_one_clear_line(tmp_path):
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF\x03\x00\x00\x00not much more")
    assert "tiny.gguf" in error_of(BrokenModelError, tmp_path / "tiny.gguf")


def test_an_unknown_architecture_is_refused_by_name(llama):
    edit_config(llama, model_type="quantum")
    assert "unknown architecture 'quantum'" in error_of(UnsupportedModelError, llama)


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
from pathlib import Path
Path(__file__).with_name("RAN").touch()
Path({ran!r}).touch()
class MineConfig(LlamaConfig):
    model_type = "mine"
class MineForCausalLM(LlamaForCausalLM):
    config_class = MineConfig
"""


def test_code_of_a_model_runs_only_if_allowed(llama, tmp_path, monkeypatch):
    ran = tmp_path / "ran"
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    (llama / "mine.py").write_text(CODE.format(ran=str(ran)))
    auto_map = {"AutoConfig": "mine.MineConfig", "AutoModelForCausalLM": "mine.MineForCausalLM"}
    edit_config(llama, model_type="mine", auto_map=auto_map, architectures=["MineForCausalLM"])
    assert "allow it with trust_remote_code" in error_of(UnsupportedModelError, llama)
    assert not ran.exists()
    loaded = load_model(str(llama), trust_remote_code=True)
    assert type(loaded.model).__name__ == "MineForCausalLM"
    assert ran.exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "mamba"}, "mamba.*linear_attention|state-space"),
        ({"model_type": "rwkv"}, "rwkv.*state-space"),
        ({"model_type": "jamba"}, "jamba.*(linear_attention|mamba|state-space)"),
        ({"model_type": "recurrent_gemma"}, "recurrent_gemma.*(linear_attention|state-space)"),
        ({"model_type": "falcon_h1"}, "falcon_h1.*(hybrid|state-space)"),
        ({"model_type": "zamba"}, "zamba.*(hybrid|state-space)"),
        (
            {"model_type": "lfm2", "layer_types": ["conv", "full_attention"], "num_hidden_layers": 2},
            "lfm2.*conv layers",
        ),
        ({"model_type": "minimax"}, "minimax.*linear_attention layers"),
        ({"model_type": "bloom"}, "bloom.*ALiBi"),
        ({"model_type": "mpt"}, "mpt.*ALiBi"),
        ({"model_type": "falcon", "alibi": True}, "falcon.*ALiBi"),
        ({"model_type": "bart"}, "bart.*encoder-decoder"),
        ({"model_type": "t5"}, "t5.*encoder-decoder"),
        ({"model_type": "bert"}, "bert.*both directions"),
        ({"model_type": "cpmant"}, "cpmant.*only token ids"),
        ({"model_type": "xlnet"}, "xlnet.*key-value cache"),
        ({"model_type": "gemma3n_text"}, "gemma3n_text.*in addition to the input embeddings"),
        ({"model_type": "vit"}, "vit.*not a causal language model"),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "",
)
def test_architectures_it_cannot_run_on_are_refused_before_weights_are_read(tmp_path, config, message):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"never read")
    found = error_of(UnsupportedModelError, folder)
    assert re.search(message, found), found


def test_the_default_model_by_name(default_model):
    loaded = load_model("smollm2-135m", device="cpu")
    assert (loaded.name, loaded.path) == ("smollm2-135m", default_model)
    assert loaded.model.generation_config.eos_token_id == [2, 0]
    tokenizer = loaded.tokenizer
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    # SmolLM's tokenizer splits each digit off, so that the two spaces before the 3 stay one token.
    assert tokenizer.tokenize("  3 12") == ["ĠĠ", "3", "Ġ", "1", "2"]
    for text in ("Thank you for your email. I will", "a  b\n\nc , d ' s don't .", "é漢🙂\r\n\t"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    with torch.inference_mode():
        logits = loaded.model(torch.tensor([tokenizer.encode("The capital of France is")])).logits
    assert tokenizer.decode(logits[0, -1].argmax()) == " Paris"
