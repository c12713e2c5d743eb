"""Loading of the engine that the settings ask for."""

import pytest
import torch
from structlog.testing import capture_logs
from support.models import tiny_model_folder

from superdraft.decoding.model.threads import recall, threads_file
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
