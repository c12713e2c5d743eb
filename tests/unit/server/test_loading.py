"""Loading of the engine that the settings ask for."""

import sys

import pytest
import torch
from structlog.testing import capture_logs
from support.gguf_files import write_gguf
from support.models import tiny_model_folder

from superdraft.decoding.errors import ModelLoadError, UnknownModelError
from superdraft.decoding.model.threads import recall, threads_file
from superdraft.decoding.params import GenerationParams
from superdraft.server import loading
from superdraft.server.settings import Settings


@pytest.fixture
def settings(tmp_path):
    folder = str(tiny_model_folder(tmp_path, "llama"))
    return Settings(model=folder, home=tmp_path, device="cpu", dtype="int4", max_model_len=64, num_threads=1)


@pytest.fixture(autouse=True)
def _torch_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("problem", "dtype", "told"), [("no C++ compiler", "int4", True), (None, "int4", False), ("none", "float32", False)]
)
def test_missing_kernels_are_told_where_they_would_serve(settings, monkeypatch, problem, dtype, told):
    monkeypatch.setattr(loading, "why_unavailable", lambda: problem)
    with capture_logs() as logs:
        loading.load_service(settings.model_copy(update={"dtype": dtype}))
    warnings = [entry["reason"] for entry in logs if "kernels" in entry["event"]]
    assert warnings == ([problem] if told else [])


def test_threads_are_measured_unless_the_settings_say_how_many(settings, tmp_path, monkeypatch):
    monkeypatch.setattr("superdraft.decoding.model.threads.is_busy", lambda: False)
    loading.load_service(settings)
    assert torch.get_num_threads() == 1
    assert recall(threads_file(tmp_path)) == {}
    loading.load_service(settings.model_copy(update={"num_threads": None}))
    assert list(recall(threads_file(tmp_path)).values()) == [torch.get_num_threads()]


@pytest.fixture
def gguf_settings(settings, tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf")
    return settings.model_copy(update={"runner": "llamacpp", "model": str(path), "dtype": "auto", "device": "auto"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "int4"}, "dtype must be auto, got 'int4'"),
        ({"device": "cuda"}, "device must be auto or cpu, got 'cuda'"),
        ({"runner": "torch", "gpu_layers": 3}, "gpu_layers is for --runner llamacpp"),
    ],
)
def test_settings_that_a_runner_would_ignore_are_refused(gguf_settings, changes, message):
    with pytest.raises(ModelLoadError, match=message):
        loading.load_language_model(gguf_settings.model_copy(update=changes))


def test_a_model_that_is_no_gguf_file_is_refused_for_llama_cpp(settings):
    changes = {"runner": "llamacpp", "dtype": "auto"}
    with pytest.raises(UnknownModelError, match=r"needs a \.gguf file or a known model \(smollm2-135m"):
        loading.load_language_model(settings.model_copy(update=changes))


@pytest.mark.parametrize(("device", "gpu_layers", "given"), [("cpu", 5, 0), ("auto", 5, 5), ("auto", None, None)])
def test_a_gguf_file_comes_with_its_tokenizer_and_the_settings(gguf_settings, device, gpu_layers, given):
    found = loading.load_language_model(gguf_settings.model_copy(update={"device": device, "gpu_layers": gpu_layers}))
    assert (found.name, str(found.path), len(found.tokenizer)) == ("tiny", gguf_settings.model, 301)
    assert (found.num_threads, found.gpu_layers) == (1, given)


def test_a_known_model_is_served_from_its_own_gguf_file(default_model):
    found = loading.load_language_model(Settings(runner="llamacpp"))
    assert found.path.parent == default_model
    assert found.path.suffix == ".gguf"
    assert found.name == "smollm2-135m"


def test_without_llama_cpp_the_server_says_what_to_install(gguf_settings, monkeypatch):
    from superdraft.decoding.model.llamacpp.library import library

    library.cache_clear()
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(ModelLoadError, match="needs llama-cpp-python"):
        loading.load_service(gguf_settings)
    library.cache_clear()


def test_a_gguf_file_drafts(gguf_settings):
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    service = loading.load_service(gguf_settings)
    assert service.model_name == "tiny"
    assert service.engine.num_slots == 8
    assert service.engine.generate("Thank you", GenerationParams(num_drafts=2, max_tokens=4)).drafts
