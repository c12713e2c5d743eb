"""Loading of the engine that the settings ask for."""

import sys

import pytest
import torch
from structlog.testing import capture_logs
from support.gguf_files import write_gguf
from support.models import tiny_model_folder

from superdraft.decoding.errors import (
    ModelLoadError,
    NotEnoughMemoryError,
    UnknownModelError,
    UnsupportedModelError,
)
from superdraft.decoding.loading.loader import LoadedGguf, LoadedModel
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


@pytest.fixture
def _no_kernels(monkeypatch):
    monkeypatch.setattr(loading, "has_kernels", lambda: False)


class FakeLlamaCpp:
    """llama-cpp-python, as far as the choice of the runner asks it."""

    def __init__(self, *, has_gpu: bool = False):
        self.has_gpu = has_gpu

    def llama_supports_gpu_offload(self) -> bool:
        return self.has_gpu


def chosen(settings: Settings) -> tuple[type, list[dict]]:
    with capture_logs() as logs:
        loaded = loading.load_language_model(settings)
    return type(loaded), [entry for entry in logs if "runs the model" in entry["event"]]


def test_the_runner_is_chosen_by_default():
    assert Settings().runner == "auto"


@pytest.mark.usefixtures("_no_kernels")
def test_auto_gives_a_gguf_file_to_llama_cpp(gguf_settings, monkeypatch):
    monkeypatch.setattr(loading, "library", FakeLlamaCpp)
    kind, (told,) = chosen(gguf_settings.model_copy(update={"runner": "auto"}))
    assert kind is LoadedGguf
    assert (told["event"], told["model"]) == ("llama.cpp runs the model", gguf_settings.model)


@pytest.mark.usefixtures("_no_kernels")
def test_auto_without_llama_cpp_takes_torch_and_says_what_to_install(gguf_settings, monkeypatch):
    def missing():
        raise ModelLoadError("llama.cpp needs llama-cpp-python")

    monkeypatch.setattr(loading, "library", missing)
    kind, (told,) = chosen(gguf_settings.model_copy(update={"runner": "auto"}))
    assert kind is LoadedModel
    assert told["log_level"] == "warning"
    assert "pip install '.[llamacpp]'" in told["remedy"]


def test_auto_takes_torch_where_there_are_faster_kernels(gguf_settings, monkeypatch):
    monkeypatch.setattr(loading, "has_kernels", lambda: True)
    monkeypatch.setattr(loading, "library", FakeLlamaCpp)
    kind, (told,) = chosen(gguf_settings.model_copy(update={"runner": "auto"}))
    assert kind is LoadedModel
    assert told["reason"] == "there are faster kernels for this processor"
    on_gpu = gguf_settings.model_copy(update={"runner": "auto", "gpu_layers": 2})
    assert loading.gguf_for_llama_cpp(on_gpu) is not None


@pytest.mark.parametrize("is_installed", [True, False])
def test_auto_takes_llama_cpp_for_what_torch_has_no_memory_for(gguf_settings, monkeypatch, is_installed):
    def too_large(*args, **options):
        raise NotEnoughMemoryError("it needs 30 GB, and 8 are free")

    def missing():
        raise ModelLoadError("llama.cpp needs llama-cpp-python")

    monkeypatch.setattr(loading, "has_kernels", lambda: True)
    monkeypatch.setattr(loading, "load_model", too_large)
    monkeypatch.setattr(loading, "library", FakeLlamaCpp if is_installed else missing)
    settings = gguf_settings.model_copy(update={"runner": "auto"})
    if is_installed:
        with capture_logs() as logs:
            assert isinstance(loading.load_language_model(settings), LoadedGguf)
        assert "it needs 30 GB" in str(logs)
    else:
        with pytest.raises(NotEnoughMemoryError, match="30 GB"):
            loading.load_language_model(settings)
    with pytest.raises(NotEnoughMemoryError, match="30 GB"):
        loading.load_language_model(gguf_settings.model_copy(update={"runner": "torch"}))


@pytest.mark.parametrize("changes", [{"dtype": "float32"}, {"device": "cuda"}])
def test_auto_takes_torch_where_the_settings_are_torchs(gguf_settings, monkeypatch, changes):
    monkeypatch.setattr(loading, "library", FakeLlamaCpp)
    assert loading.gguf_for_llama_cpp(gguf_settings.model_copy(update={"runner": "auto", **changes})) is None


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
def test_auto_leaves_no_gpu_idle(gguf_settings, monkeypatch, torch_has, llama_cpp_has, device, is_llama_cpp):
    monkeypatch.setattr(loading, "library", lambda: FakeLlamaCpp(has_gpu=llama_cpp_has))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: torch_has)
    found = loading.gguf_for_llama_cpp(gguf_settings.model_copy(update={"runner": "auto", "device": device}))
    assert (found is not None) == is_llama_cpp


def test_auto_takes_torch_for_folders_and_known_names(settings, monkeypatch):
    def never():
        raise AssertionError

    monkeypatch.setattr(loading, "library", never)
    assert chosen(settings.model_copy(update={"runner": "auto"})) == (LoadedModel, [])
    assert loading.gguf_for_llama_cpp(Settings()) is None


def refused(path, *args, **options):
    raise UnsupportedModelError(f"llama.cpp cannot run {path.name} (gemma3): its layers see a sliding window")


@pytest.mark.usefixtures("_no_kernels")
def test_auto_falls_back_to_torch_for_what_llama_cpp_refuses(gguf_settings, monkeypatch):
    monkeypatch.setattr(loading, "library", FakeLlamaCpp)
    monkeypatch.setattr("superdraft.decoding.model.llamacpp.runner.LlamaRunner", refused)
    with capture_logs() as logs:
        service = loading.load_service(gguf_settings.model_copy(update={"runner": "auto"}))
    assert service.model_name == "tiny"
    assert service.engine.num_slots == 64  # torch's number of slots
    (told,) = (entry for entry in logs if "because llama.cpp cannot" in entry["event"])
    assert "sliding window" in told["reason"]
    with pytest.raises(UnsupportedModelError, match="sliding window"):
        loading.load_service(gguf_settings)


@pytest.mark.usefixtures("_no_kernels")
def test_a_gguf_file_that_nothing_can_run_gives_torchs_reason(gguf_settings, monkeypatch):
    def unsupported(*args, **options):
        raise UnsupportedModelError("it is a recurrent model")

    monkeypatch.setattr(loading, "library", FakeLlamaCpp)
    monkeypatch.setattr("superdraft.decoding.model.llamacpp.runner.LlamaRunner", refused)
    monkeypatch.setattr(loading, "load_model", unsupported)
    with pytest.raises(UnsupportedModelError, match="recurrent"):
        loading.load_service(gguf_settings.model_copy(update={"runner": "auto"}))


@pytest.mark.parametrize(
    ("has_check", "free", "told"), [(True, 10**6, True), (True, 10**9, False), (False, 10**6, False)]
)
def test_a_cache_that_will_not_fit_is_told(settings, monkeypatch, has_check, free, told):
    monkeypatch.setattr(loading, "free_bytes", lambda: free)
    with capture_logs() as logs:
        loading.load_service(settings.model_copy(update={"memory_check": has_check, "dtype": "float32"}))
    assert any("KV cache does not fit" in entry["event"] for entry in logs) == told


def test_the_memory_check_can_be_switched_off(settings, gguf_settings, monkeypatch):
    monkeypatch.setattr("superdraft.decoding.memory.free_bytes", lambda: 1)
    with pytest.raises(NotEnoughMemoryError, match="--no-memory-check"):
        loading.load_language_model(settings)
    off = {"memory_check": False}
    assert loading.load_language_model(settings.model_copy(update=off)).name == "llama"
    assert loading.load_language_model(gguf_settings.model_copy(update=off)).checks_memory is False


def test_a_gguf_file_drafts(gguf_settings):
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    service = loading.load_service(gguf_settings)
    assert service.model_name == "tiny"
    assert service.engine.num_slots == 8
    assert service.engine.generate("Thank you", GenerationParams(num_drafts=2, max_tokens=4)).drafts
