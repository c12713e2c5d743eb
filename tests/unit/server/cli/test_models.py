"""`superdraft models`."""

import json

import pytest

from superdraft.decoding.loading import loader, source
from superdraft.decoding.loading.catalogue import CATALOGUE, KNOWN_MODELS
from superdraft.decoding.loading.model_size import needed_bytes
from superdraft.server.cli import models
from superdraft.server.errors import CommandError
from superdraft.server.settings import Settings


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    """A home folder without models, and a hub's cache that has one."""
    monkeypatch.setenv("SUPERDRAFT_HOME", str(tmp_path))
    (tmp_path / "cached").mkdir()
    has = "Qwen/Qwen2.5-1.5B"
    monkeypatch.setattr(source, "cached_bytes", lambda hub_id: 3_100_000_000 if hub_id == has else None)
    monkeypatch.setattr(source, "cached_folder", lambda hub_id: tmp_path / "cached" if hub_id == has else None)
    monkeypatch.setattr(models, "torch_dtype", lambda settings: "int4")


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


def test_sizes_are_estimates_from_the_stated_formulas(capsys):
    row = rows(capsys)["qwen2.5-1.5b"]
    size = CATALOGUE["qwen2.5-1.5b"].size
    assert row["parameters"] == 1_543_714_304
    assert row["estimated_disk_bytes"] == 2 * 1_543_714_304
    assert row["estimated_memory_bytes"] == needed_bytes(size, "int4", Settings().engine_config())
    known = rows(capsys)["smollm2-135m"]  # is expanded first
    needed = needed_bytes(CATALOGUE["smollm2-135m"].size, "int4", Settings().engine_config(), is_gguf=True)
    assert known["estimated_memory_bytes"] == needed


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
    assert all(text in line for text in ("base", "1544 M", "~3.1 GB", "Apache-2.0"))
    assert "(an estimate)" in out
    assert out.index("Prose") < out.index("smollm2-135m") < out.index("Code") < out.index("qwen2.5-coder-0.5b")


def test_a_model_of_the_hub_is_pulled_and_found(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(loader, "fetch", lambda name: tmp_path / name)
    models.pull("qwen2.5-1.5b")
    assert capsys.readouterr().out == f"{tmp_path / 'qwen2.5-1.5b'}\n"
    models.path("qwen2.5-1.5b")
    assert capsys.readouterr().out == f"{tmp_path / 'cached'}\n"
    with pytest.raises(CommandError, match="smollm2-360m' is not cached"):
        models.path("smollm2-360m")
    for command in (models.pull, models.path):
        with pytest.raises(CommandError, match=r"there is no known model 'gpt-9'\. Known: smollm2-135m, "):
            command("gpt-9")
