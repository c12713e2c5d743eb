"""The runner that a model gets, and the engine with it: for the server and for programs."""

import dataclasses
import logging
import sys

import pytest
import torch
from support.gguf_files import write_gguf
from support.models import tiny_model_folder

from superdraft.decoding import EngineConfig, build, load_engine, runner_choice
from superdraft.decoding.build import open_engine
from superdraft.decoding.errors import (
    ModelLoadError,
    NotEnoughMemoryError,
    UnknownModelError,
    UnsupportedModelError,
)
from superdraft.decoding.loading.loader import LoadedGguf, LoadedModel, ModelOptions
from superdraft.decoding.model.threads import recall, threads_file
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.runner_choice import gguf_for_llama_cpp, load
from superdraft.server.loading import load_service, model_options
from superdraft.server.settings import Settings

LEN = 64
CONFIG = EngineConfig(max_model_len=64)


@pytest.fixture
def options(tmp_path):
    folder = str(tiny_model_folder(tmp_path, "llama"))
    return ModelOptions(model=folder, home=tmp_path, device="cpu", dtype="int4", num_threads=1)


@pytest.fixture
def told(caplog):
    """What is logged, level and message."""
    caplog.set_level(logging.INFO, logger="superdraft.decoding")
    return lambda: [(record.levelname, record.getMessage()) for record in caplog.records]


@pytest.fixture(autouse=True)
def _torch_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def changed(options: ModelOptions, **changes) -> ModelOptions:
    return dataclasses.replace(options, **changes)


@pytest.mark.parametrize(
    ("problem", "dtype", "is_told"),
    [("no C++ compiler", "int4", True), (None, "int4", False), ("none", "float32", False)],
)
def test_missing_kernels_are_told_where_they_would_serve(options, monkeypatch, told, problem, dtype, is_told):
    monkeypatch.setattr(build, "why_unavailable", lambda: problem)
    open_engine(changed(options, dtype=dtype), CONFIG)
    expected = [("WARNING", f"torch's own kernels are used, which are slower: {problem}")] if is_told else []
    assert [line for line in told() if "kernels" in line[1]] == expected


def test_threads_are_measured_unless_the_options_say_how_many(options, tmp_path, monkeypatch):
    monkeypatch.setattr("superdraft.decoding.model.threads.is_busy", lambda: False)
    open_engine(options, CONFIG)
    assert torch.get_num_threads() == 1
    assert recall(threads_file(tmp_path)) == {}
    open_engine(changed(options, num_threads=None), CONFIG)
    assert list(recall(threads_file(tmp_path)).values()) == [torch.get_num_threads()]


def test_a_program_gets_the_engine_that_the_server_has(options, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(build, "load", lambda options, num: (asked.append(options), load(options, num))[1])
    monkeypatch.setenv("SUPERDRAFT_HOME", str(tmp_path))
    ours = load_engine(options.model, device="cpu", num_threads=1)
    settings = Settings(model=options.model, device="cpu", num_threads=1, ngram_model="none")
    served = load_service(settings).engine
    assert changed(asked[0], home=tmp_path) == asked[1]  # without a home, the environment's
    assert ours._runner.forward_name == served._runner.forward_name
    params = GenerationParams(max_tokens=4)
    assert ours.generate("Thank you", params).drafts == served.generate("Thank you", params).drafts


def test_every_setting_of_a_model_is_passed_on(tmp_path):
    given = {"home": tmp_path, "runner": "torch", "device": "cpu", "dtype": "float32", "num_threads": 3}
    given |= {"gpu_layers": 2, "trust_remote_code": True}
    found = model_options(Settings(model="x", memory_check=False, **given))
    assert found == ModelOptions(model="x", checks_memory=False, **given)


@pytest.fixture
def gguf_options(options, tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf")
    return changed(options, runner="llamacpp", model=str(path), dtype="auto", device="auto")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "int4"}, "dtype must be auto, got 'int4'"),
        ({"device": "cuda"}, "device must be auto or cpu, got 'cuda'"),
        ({"runner": "torch", "gpu_layers": 3}, "gpu_layers is for --runner llamacpp"),
    ],
)
def test_options_that_a_runner_would_ignore_are_refused(gguf_options, changes, message):
    with pytest.raises(ModelLoadError, match=message):
        load(changed(gguf_options, **changes), LEN)


def test_a_model_that_is_no_gguf_file_is_refused_for_llama_cpp(options):
    changes = {"runner": "llamacpp", "dtype": "auto"}
    with pytest.raises(UnknownModelError, match=r"needs a \.gguf file or a known model \(smollm2-135m"):
        load(changed(options, **changes), LEN)


@pytest.mark.parametrize(("device", "gpu_layers", "given"), [("cpu", 5, 0), ("auto", 5, 5), ("auto", None, None)])
def test_a_gguf_file_comes_with_its_tokenizer_and_the_options(gguf_options, device, gpu_layers, given):
    found = load(changed(gguf_options, device=device, gpu_layers=gpu_layers), LEN)
    assert (found.name, str(found.path), len(found.tokenizer)) == ("tiny", gguf_options.model, 301)
    assert (found.options.num_threads, found.options.gpu_layers) == (1, given)


def test_a_known_model_is_served_from_its_own_gguf_file(default_gguf):
    found = load(ModelOptions(runner="llamacpp"), LEN)
    assert found.path == default_gguf
    assert found.name == "smollm2-135m"


def test_without_llama_cpp_the_server_says_what_to_install(gguf_options, monkeypatch):
    from superdraft.decoding.model.llamacpp.library import library

    library.cache_clear()
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(ModelLoadError, match="needs llama-cpp-python"):
        open_engine(gguf_options, CONFIG)
    library.cache_clear()


@pytest.fixture
def _no_kernels(monkeypatch):
    monkeypatch.setattr(runner_choice, "has_kernels", lambda: False)


class FakeLlamaCpp:
    """llama-cpp-python, as far as the choice of the runner asks it."""

    def __init__(self, *, has_gpu: bool = False):
        self.has_gpu = has_gpu

    def llama_supports_gpu_offload(self) -> bool:
        return self.has_gpu


def test_the_runner_is_chosen_by_default():
    assert Settings().runner == ModelOptions().runner == "auto"


@pytest.mark.usefixtures("_no_kernels")
def test_auto_gives_a_gguf_file_to_llama_cpp(gguf_options, monkeypatch, told):
    monkeypatch.setattr(runner_choice, "library", FakeLlamaCpp)
    assert isinstance(load(changed(gguf_options, runner="auto"), LEN), LoadedGguf)
    assert ("INFO", f"llama.cpp runs {gguf_options.model}") in told()


@pytest.mark.usefixtures("_no_kernels")
def test_auto_without_llama_cpp_takes_torch_and_says_what_to_install(gguf_options, monkeypatch, told):
    def missing():
        raise ModelLoadError("llama.cpp needs llama-cpp-python")

    monkeypatch.setattr(runner_choice, "library", missing)
    assert isinstance(load(changed(gguf_options, runner="auto"), LEN), LoadedModel)
    assert "pip install '.[llamacpp]'" in str(told())


def test_auto_takes_torch_where_there_are_faster_kernels(gguf_options, monkeypatch, told):
    monkeypatch.setattr(runner_choice, "has_kernels", lambda: True)
    monkeypatch.setattr(runner_choice, "library", FakeLlamaCpp)
    assert isinstance(load(changed(gguf_options, runner="auto"), LEN), LoadedModel)
    assert ("INFO", f"torch runs {gguf_options.model}: there are faster kernels for this processor") in told()
    assert gguf_for_llama_cpp(changed(gguf_options, runner="auto", gpu_layers=2)) is not None


@pytest.mark.parametrize("is_installed", [True, False])
def test_auto_takes_llama_cpp_for_what_torch_has_no_memory_for(gguf_options, monkeypatch, told, is_installed):
    def too_large(*args, **options):
        raise NotEnoughMemoryError("it needs 30 GB, and 8 are free")

    def missing():
        raise ModelLoadError("llama.cpp needs llama-cpp-python")

    monkeypatch.setattr(runner_choice, "has_kernels", lambda: True)
    monkeypatch.setattr(runner_choice, "load_model", too_large)
    monkeypatch.setattr(runner_choice, "library", FakeLlamaCpp if is_installed else missing)
    options = changed(gguf_options, runner="auto")
    if is_installed:
        assert isinstance(load(options, LEN), LoadedGguf)
        assert "it needs 30 GB" in str(told())
    else:
        with pytest.raises(NotEnoughMemoryError, match="30 GB"):
            load(options, LEN)
    with pytest.raises(NotEnoughMemoryError, match="30 GB"):
        load(changed(gguf_options, runner="torch"), LEN)


@pytest.mark.parametrize("changes", [{"dtype": "float32"}, {"device": "cuda"}])
def test_auto_takes_torch_where_the_options_are_torchs(gguf_options, monkeypatch, changes):
    monkeypatch.setattr(runner_choice, "library", FakeLlamaCpp)
    assert gguf_for_llama_cpp(changed(gguf_options, runner="auto", **changes)) is None


@pytest.mark.usefixtures("_no_kernels")
@pytest.mark.parametrize(
    ("torch_has", "llama_cpp_has", "device", "is_llama_cpp"),
    [
        (True, False, "auto", False),
        (True, True, "auto", True),
        (True, False, "cpu", True),
        (False, False, "auto", True),
    ],
)
def test_auto_leaves_no_gpu_idle(gguf_options, monkeypatch, torch_has, llama_cpp_has, device, is_llama_cpp):
    monkeypatch.setattr(runner_choice, "library", lambda: FakeLlamaCpp(has_gpu=llama_cpp_has))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: torch_has)
    found = gguf_for_llama_cpp(changed(gguf_options, runner="auto", device=device))
    assert (found is not None) == is_llama_cpp


def test_auto_takes_torch_for_folders_and_known_names(options, monkeypatch, told):
    def never():
        raise AssertionError

    monkeypatch.setattr(runner_choice, "library", never)
    assert isinstance(load(options, LEN), LoadedModel)
    assert gguf_for_llama_cpp(ModelOptions()) is None
    assert "llama.cpp" not in str(told())


def refused(path, *args, **options):
    raise UnsupportedModelError(f"llama.cpp cannot run {path.name} (gemma3): its layers see a sliding window")


@pytest.mark.usefixtures("_no_kernels")
def test_auto_falls_back_to_torch_for_what_llama_cpp_refuses(gguf_options, monkeypatch, told):
    monkeypatch.setattr(runner_choice, "library", FakeLlamaCpp)
    monkeypatch.setattr("superdraft.decoding.model.llamacpp.runner.LlamaRunner", refused)
    name, engine = open_engine(changed(gguf_options, runner="auto"), CONFIG)
    assert (name, engine.num_slots) == ("tiny", 64)  # torch's number of slots
    (line,) = (line for level, line in told() if level == "WARNING")
    assert "because llama.cpp cannot" in line
    assert "sliding window" in line
    with pytest.raises(UnsupportedModelError, match="sliding window"):
        open_engine(gguf_options, CONFIG)


@pytest.mark.usefixtures("_no_kernels")
def test_a_gguf_file_that_nothing_can_run_gives_torchs_reason(gguf_options, monkeypatch):
    def unsupported(*args, **options):
        raise UnsupportedModelError("it is a recurrent model")

    monkeypatch.setattr(runner_choice, "library", FakeLlamaCpp)
    monkeypatch.setattr("superdraft.decoding.model.llamacpp.runner.LlamaRunner", refused)
    monkeypatch.setattr(build, "load_model", unsupported)
    with pytest.raises(UnsupportedModelError, match="recurrent"):
        open_engine(changed(gguf_options, runner="auto"), CONFIG)


@pytest.mark.parametrize(
    ("has_check", "free", "is_told"), [(True, 10**6, True), (True, 10**9, False), (False, 10**6, False)]
)
def test_a_cache_that_will_not_fit_is_told(options, monkeypatch, told, has_check, free, is_told):
    monkeypatch.setattr(build, "free_bytes", lambda: free)
    open_engine(changed(options, checks_memory=has_check, dtype="float32"), CONFIG)
    assert ("KV cache does not fit" in str(told())) == is_told


def test_the_memory_check_can_be_switched_off(options, gguf_options, monkeypatch):
    monkeypatch.setattr("superdraft.decoding.memory.free_bytes", lambda: 1)
    with pytest.raises(NotEnoughMemoryError, match="--no-memory-check"):
        load(options, LEN)
    off = {"checks_memory": False}
    assert load(changed(options, **off), LEN).name == "llama"
    assert load(changed(gguf_options, **off), LEN).options.checks_memory is False


def test_a_gguf_file_drafts(gguf_options):
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    name, engine = open_engine(gguf_options, CONFIG)
    assert (name, engine.num_slots) == ("tiny", 8)
    assert engine.generate("Thank you", GenerationParams(num_drafts=2, max_tokens=4)).drafts
