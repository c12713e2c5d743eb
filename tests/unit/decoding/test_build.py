"""What building an engine says while it takes long."""

import pytest
from support.models import tiny_model_folder
from support.stages import Stages

from superdraft.decoding import build
from superdraft.decoding.config import EngineConfig
from superdraft.decoding.loading.loader import ModelOptions, load_model

CONFIG = EngineConfig(max_model_len=32, kv_memory_bytes=10_000_000, num_slots=1)


@pytest.fixture
def stages(monkeypatch):
    recorded = Stages()
    monkeypatch.setattr(build, "stage", recorded.record)
    return recorded


@pytest.mark.parametrize(("dtype", "first"), [("float32", "Checking llama"), ("int4", "Converting llama")])
def test_stages_are_told(tmp_path, monkeypatch, stages, dtype, first):
    monkeypatch.setattr(build, "choose_num_threads", lambda runner, file: 1)
    loaded = load_model(ModelOptions(model=str(tiny_model_folder(tmp_path, "llama")), device="cpu", dtype=dtype))
    build.build_engine(loaded, CONFIG, tmp_path / "threads.json")
    assert stages.names == [first, "Measuring how many threads are fastest for llama"]


def test_every_weight_is_counted_once_while_layers_are_converted(tmp_path, stages):
    loaded = load_model(ModelOptions(model=str(tiny_model_folder(tmp_path, "llama")), device="cpu", dtype="int4"))
    build.build_engine(loaded, CONFIG)
    (converting,) = stages.ended
    assert 0 < converting.total == converting._done
