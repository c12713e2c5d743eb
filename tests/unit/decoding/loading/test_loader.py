import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.gguf_files import write_gguf
from support.models import ARCHITECTURES, tiny_model, tiny_model_folder, tiny_tokenizer
from support.stages import Stages

from superdraft.decoding.errors import (
    BrokenModelError,
    ModelLoadError,
    NotEnoughMemoryError,
    UnknownModelError,
    UnsupportedModelError,
)
from superdraft.decoding.loading import loader, reading
from superdraft.decoding.loading.catalogue import CATALOGUE
from superdraft.decoding.loading.hub import cached_folder, fetch_weights
from superdraft.decoding.loading.hugging_face import size_of
from superdraft.decoding.loading.loader import ModelOptions, load_gguf, load_model, load_tokenizer
from superdraft.decoding.loading.model_size import loading_bytes
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
        load_model(ModelOptions(model=str(spec), **options))
    assert type(info.value) is kind
    message = str(info.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_folder_loads_ready_to_decode(tmp_path, architecture, capfd):
    folder = tiny_model_folder(tmp_path, architecture)
    capfd.readouterr()
    loaded = load_model(ModelOptions(model=str(folder), device="cpu", dtype="float32"))
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
    assert load_model(ModelOptions(model=str(llama), device="cpu", dtype="bfloat16")).model.dtype == torch.bfloat16
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
    loaded = load_model(ModelOptions(model=str(llama), device="cpu"))
    assert (loaded.model.dtype, loaded.convert) == (dtype, convert)
    loaded = load_model(ModelOptions(model=str(llama), device="cpu", dtype="int4"))
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


@pytest.fixture
def little_memory(monkeypatch):
    monkeypatch.setattr("superdraft.decoding.memory.free_bytes", lambda: 1000)


def test_too_little_memory_is_told_before_weights_are_read(llama, little_memory):
    (llama / "model.safetensors").write_bytes(b"never read")
    found = error_of(NotEnoughMemoryError, llama, device="cpu", dtype="float32")
    assert found.startswith("loading 'llama' as float32 needs about 0 MB of memory, and 0 MB are free. --dtype int4 ")
    assert "superdraft models list" in found
    found = error_of(NotEnoughMemoryError, llama, device="cpu", dtype="int4")
    assert "--dtype int4" not in found


def test_a_gguf_file_that_does_not_fit_is_told_too(tmp_path, little_memory):
    path = write_gguf(tmp_path / "tiny.gguf")
    assert "superdraft models list" in error_of(NotEnoughMemoryError, path, device="cpu", dtype="bfloat16")
    load_gguf(ModelOptions(model=str(path)))  # the runner looks at the memory


def test_the_check_can_be_left_out_and_refuses_nothing_that_fits(llama, monkeypatch):
    size = size_of(tiny_model("llama").config)
    free = [loading_bytes(size, "bfloat16")]
    monkeypatch.setattr("superdraft.decoding.memory.free_bytes", lambda: free[0])
    load_model(ModelOptions(model=str(llama), device="cpu", dtype="bfloat16"))
    free[0] -= 1
    error_of(NotEnoughMemoryError, llama, device="cpu", dtype="bfloat16")
    load_model(ModelOptions(model=str(llama), device="cpu", dtype="bfloat16", checks_memory=False))


def test_a_long_start_says_what_it_does(llama, tmp_path, monkeypatch):
    stages = Stages()
    monkeypatch.setattr(reading, "stage", stages.record)
    load_model(ModelOptions(model=str(llama), device="cpu", dtype="float32"))
    assert stages.names == ["Reading the tokenizer of llama", "Reading llama"]
    assert stages.ended[1].total == 4 * size_of(tiny_model("llama").config).num_weights
    load_model(ModelOptions(model=str(write_gguf(tmp_path / "tiny.gguf")), device="cpu", dtype="float32"))
    assert stages.names[2:] == ["Reading the tokenizer of tiny", "Reading tiny"]


@pytest.fixture
def hub_cache(llama, tmp_path, monkeypatch):
    """The hub's cache, which has `smollm2-360m` (the folder `llama`); there is no network. Its snapshot's folder."""
    cache, revision = tmp_path / "hub", "0" * 40
    repository = cache / "models--HuggingFaceTB--SmolLM2-360M"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(revision)
    shutil.copytree(llama, repository / "snapshots" / revision)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(cache))
    return repository / "snapshots" / revision


def test_a_name_of_the_catalogue_is_read_from_the_hubs_cache(hub_cache, monkeypatch):
    fetched = []
    monkeypatch.setattr(loader, "fetch_weights", lambda hub_id: (fetched.append(hub_id), fetch_weights(hub_id)))
    loaded = load_model(ModelOptions(model="smollm2-360m", device="cpu", dtype="float32"))
    assert (loaded.name, loaded.path, fetched) == ("smollm2-360m", None, ["HuggingFaceTB/SmolLM2-360M"])
    assert len(loaded.model.model.layers) == 2
    assert loader.fetch("smollm2-360m") == hub_cache
    assert fetched[1:] == ["HuggingFaceTB/SmolLM2-360M"]
    assert cached_folder("HuggingFaceTB/SmolLM2-360M") == hub_cache
    (hub_cache / "model.safetensors").unlink()
    assert cached_folder("HuggingFaceTB/SmolLM2-360M") is None
    assert "cannot load the weights" in error_of(BrokenModelError, "smollm2-360m", device="cpu")


def test_a_failed_fetch_is_one_line(hub_cache, monkeypatch):
    def fail(hub_id):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(loader, "fetch_weights", fail)
    assert "cannot fetch the weights of model 'smollm2-360m'" in error_of(ModelLoadError, "smollm2-360m", device="cpu")


@pytest.mark.parametrize(("name", "has_hint"), [("gemma-3-270m", True), ("smollm2-360m", False)])
def test_a_hub_that_cannot_be_read_is_told_with_the_licence_to_accept(name, has_hint):
    found = error_of(UnknownModelError, name)
    assert f"{name!r} ({CATALOGUE[name].hub_id}) cannot be read from the hub" in found
    assert ("licence must be accepted" in found) == has_hint


def test_sizes_come_from_the_catalogue_or_a_config(llama):
    assert loader.model_size("smollm2-360m") == CATALOGUE["smollm2-360m"].size
    assert loader.model_size(str(llama)) == size_of(tiny_model("llama").config)
    assert loader.model_size("some/model") is None


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
    loaded = load_model(ModelOptions(model=str(llama), trust_remote_code=True))
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


def test_the_default_model_by_name(default_gguf):
    loaded = load_model(ModelOptions(model="smollm2-135m", device="cpu"))
    assert (loaded.name, loaded.path) == ("smollm2-135m", default_gguf)
    tokenizer = loaded.tokenizer
    names = [tokenizer.convert_ids_to_tokens(token_id) for token_id in range(3)]
    assert names == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    # SmolLM's tokenizer splits each digit off, so that the two spaces before the 3 stay one token.
    split = [tokenizer.convert_ids_to_tokens(token_id) for token_id in tokenizer.encode("  3 12")]
    assert split == ["ĠĠ", "3", "Ġ", "1", "2"]
    for text in ("Thank you for your email. I will", "a  b\n\nc , d ' s don't .", "é漢🙂\r\n\t"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    with torch.inference_mode():
        logits = loaded.model(torch.tensor([tokenizer.encode("The capital of France is")])).logits
    assert tokenizer.decode([int(logits[0, -1].argmax())]) == " Paris"


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF" + b"\xff" * 100])
def test_a_damaged_gguf_file_is_refused_in_one_line_for_llama_cpp(tmp_path, content):
    path = tmp_path / "tiny.gguf"
    path.write_bytes(content)
    with pytest.raises((BrokenModelError, UnsupportedModelError), match=r"tiny\.gguf"):
        load_gguf(ModelOptions(model=str(path), home=tmp_path))
