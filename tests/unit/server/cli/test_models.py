"""`superdraft models`, and what this machine would give."""

import json

import pytest
import torch

from superdraft.decoding.config import EngineConfig
from superdraft.decoding.loading import hub, loader
from superdraft.decoding.loading.catalogue import CATALOGUE
from superdraft.decoding.loading.model_size import ModelSize, needed_bytes, step_bytes
from superdraft.decoding.loading.store import KNOWN_MODELS
from superdraft.decoding.model.native.library import has_kernels
from superdraft.decoding.model.native.rate import weight_rate
from superdraft.server.cli import machine, models
from superdraft.server.errors import CommandError
from superdraft.server.settings import Settings

SIZE = ModelSize(800_000, 100_000, 100_000, 0, is_tied=True, kv_numbers=6, vocab_size=10)


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    """A home folder without models, and a hub's cache that has one."""
    monkeypatch.setenv("SUPERDRAFT_HOME", str(tmp_path))
    (tmp_path / "cached").mkdir()
    has = "Qwen/Qwen2.5-1.5B"
    monkeypatch.setattr(hub, "cached_bytes", lambda hub_id: 3_100_000_000 if hub_id == has else None)
    monkeypatch.setattr(hub, "cached_folder", lambda hub_id: tmp_path / "cached" if hub_id == has else None)
    monkeypatch.setattr(machine, "look_at_machine", lambda settings: machine.Machine(8 * 10**9, "int4", 16e9))


def rows(capsys) -> dict[str, dict]:
    models.list_models(as_json=True)
    return {row["name"]: row for row in json.loads(capsys.readouterr().out)}


def test_the_list_has_models_for_both_tasks_and_says_what_is_pinned(capsys):
    found = rows(capsys)
    assert list(found) == list(CATALOGUE)
    assert {row["task"] for row in found.values()} == {"prose", "code"}
    assert {name for name, row in found.items() if row["is_pinned"]} == set(KNOWN_MODELS)
    assert found["smollm2-135m"]["source"] == KNOWN_MODELS["smollm2-135m"].source
    assert found["starcoder2-3b"]["licence"] == "BigCode OpenRAIL-M"
    assert found["starcoder2-3b"]["sees_suffix"]
    assert found["gemma-3-1b"]["needs_accepted_licence"]


def test_sizes_and_times_are_estimates_from_the_stated_formulas(capsys):
    row = rows(capsys)["qwen2.5-1.5b"]
    size = CATALOGUE["qwen2.5-1.5b"].size
    assert row["parameters"] == 1_543_714_304
    assert row["estimated_disk_bytes"] == 2 * 1_543_714_304
    assert row["estimated_memory_bytes"] == needed_bytes(size, "int4", Settings().engine_config())
    assert row["estimated_step_ms"] == round(1000 * (1_310_195_712 * 5 / 8 + 233_373_696) / 16e9, 1)


def test_a_model_that_the_kernels_do_not_run_has_no_estimate_of_time(capsys):
    found = rows(capsys)
    assert {name for name, row in found.items() if row["estimated_step_ms"] is None} == {
        "gemma-3-270m",
        "gemma-3-1b",
        "codegemma-2b",
        "starcoder2-3b",
    }


def test_what_is_cached_is_found_in_both_places(capsys, tmp_path):
    found = rows(capsys)
    assert [name for name, row in found.items() if row["cached"]] == ["qwen2.5-1.5b"]
    assert found["qwen2.5-1.5b"]["size_bytes"] == 3_100_000_000
    assert found["qwen2.5-1.5b"]["path"] == str(tmp_path / "cached")
    assert found["smollm2-135m"]["size_bytes"] is None


def test_the_table_marks_estimates(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    models.list_models()
    out = capsys.readouterr().out
    (line,) = (line for line in out.splitlines() if "qwen2.5-coder-1.5b" in line)
    assert all(text in line for text in ("base", "1544 M", "~3.1 GB", "~66 ms", "Apache-2.0"))
    assert "(an estimate)" in out
    assert out.index("Prose") < out.index("smollm2-135m") < out.index("Code") < out.index("qwen2.5-coder-0.5b")


def test_a_model_of_the_hub_is_pulled_and_found(capsys, monkeypatch, tmp_path):
    fetched = []
    monkeypatch.setattr(loader, "fetch", fetched.append)
    models.pull("qwen2.5-1.5b")
    assert (fetched, capsys.readouterr().out) == (["qwen2.5-1.5b"], f"{tmp_path / 'cached'}\n")
    with pytest.raises(CommandError, match="smollm2-360m' is not cached"):
        models.path("smollm2-360m")


def test_a_class_says_in_which_formats_it_fits():
    config = EngineConfig(num_slots=1, max_model_len=1)
    needs = {dtype: needed_bytes(SIZE, dtype, config) for dtype in ("int4", "bfloat16", "float32")}
    line = machine.class_line(machine.Machine(needs["bfloat16"], "int4", 1e9), SIZE, config)
    fits, misses, estimate = line.split("; ")
    assert fits.startswith("fits as bfloat16")
    assert misses.startswith("does not fit as int4")
    assert "float32" in misses
    assert estimate == "estimate with int4: 0.6 ms per step"
    assert "does not fit" not in machine.class_line(machine.Machine(None, "int4", None), SIZE, config)


@pytest.mark.parametrize(
    ("changes", "is_busy", "is_measured"),
    [({}, False, True), ({}, True, False), ({"dtype": "float32"}, False, False)],
)
def test_there_is_no_estimate_where_it_would_not_be_honest(monkeypatch, changes, is_busy, is_measured):
    monkeypatch.undo()
    monkeypatch.setattr(machine, "is_busy", lambda: is_busy)
    monkeypatch.setattr(machine, "has_kernels", lambda: True)
    monkeypatch.setattr(machine, "weight_rate", lambda num_threads: 5e9)
    found = machine.look_at_machine(Settings(**{"dtype": "int4", "device": "cpu"} | changes))
    assert found.rate == (5e9 if is_measured else None)


def test_the_rate_is_that_of_the_weights_read(monkeypatch):
    if not has_kernels():
        pytest.skip("there are no kernels for this processor")
    before = torch.get_num_threads()
    clock = iter(range(100))
    monkeypatch.setattr("superdraft.decoding.model.native.rate.time.perf_counter", lambda: float(next(clock)))
    assert weight_rate(1) == step_bytes(ModelSize(24 * 4096 * 2048, 0, 0, 0, is_tied=False, kv_numbers=1, vocab_size=0))
    assert torch.get_num_threads() == before
