"""Measuring how many threads are fastest."""

import json

import pytest
import torch
from support.models import tiny_model, tiny_model_folder

from superdraft.decoding.build import build_engine
from superdraft.decoding.config import EngineConfig
from superdraft.decoding.loading.loader import ModelOptions, load_model
from superdraft.decoding.model import threads
from superdraft.decoding.model.threads import candidates, choose_num_threads, fastest, recall, threads_file
from superdraft.decoding.model.torch_runner import TorchRunner


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(threads, "is_busy", lambda: False)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("cores", "expected"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (16, [1, 2, 4, 8, 16])])
def test_powers_of_two_and_all_cores_are_tried(cores, expected):
    assert candidates(cores) == expected


@pytest.mark.parametrize(
    ("times", "expected", "tried"),
    [
        ({1: 8.0, 2: 4.1, 4: 2.2, 8: 1.5}, 8, 4),
        ({1: 8.0, 2: 4.1, 4: 4.0, 8: 4.2}, 2, 4),  # 4 wins by less than a twentieth
        ({1: 8.0, 2: 17.0, 4: 1.0}, 1, 2),  # threads that wait for each other: more are not tried
    ],
)
def test_the_fewest_threads_that_are_about_as_fast_as_the_best(times, expected, tried):
    asked = []

    def seconds(number: int) -> float:
        asked.append(number)
        return times[number]

    assert fastest(seconds, list(times)) == expected
    assert len(asked) == tried


def test_a_result_is_measured_once_and_remembered_beside_others(tmp_path, monkeypatch):
    runner = TorchRunner(tiny_model("llama"), 64, 1_000_000, num_slots=4)
    file = tmp_path / "home" / "threads.json"
    file.parent.mkdir()
    file.write_text('{"another processor": 7}')
    monkeypatch.setattr(threads, "num_cores", lambda: 2)
    monkeypatch.setattr(threads, "_seconds", lambda _, num: 1.0 / num)
    assert choose_num_threads(runner, file) == torch.get_num_threads() == 2
    found = json.loads(file.read_text())
    assert found.pop("another processor") == 7
    assert list(found.values()) == [2]
    (key,) = found
    assert key == f"{threads.processor_name()}, 2 cores: 2 layers of 32, transformers, float32"
    monkeypatch.setattr(threads, "_seconds", None)
    torch.set_num_threads(1)
    assert choose_num_threads(runner, file) == torch.get_num_threads() == 2


def test_what_a_busy_machine_measures_is_not_remembered(tmp_path, monkeypatch):
    runner = TorchRunner(tiny_model("llama"), 64, 1_000_000, num_slots=4)
    monkeypatch.setattr(threads, "is_busy", lambda: True)
    monkeypatch.setattr(threads, "num_cores", lambda: 2)
    monkeypatch.setattr(threads, "_seconds", lambda _, num: 1.0 / num)
    assert choose_num_threads(runner, tmp_path / "threads.json") == torch.get_num_threads() == 2
    assert not (tmp_path / "threads.json").exists()


@pytest.mark.parametrize(("load", "busy"), [(2.1, True), (1.9, False)])
def test_a_machine_is_busy_when_half_of_it_is_used(monkeypatch, load, busy):
    monkeypatch.undo()
    monkeypatch.setattr(threads, "num_cores", lambda: 4)
    monkeypatch.setattr(threads.os, "getloadavg", lambda: (load, 0.0, 0.0))
    assert threads.is_busy() is busy


@pytest.mark.parametrize("content", ["", "[1]", '{"a": true, "b": -1, "c": "2"}', "[" * 100_000])
def test_a_damaged_file_is_as_good_as_none(tmp_path, content):
    (tmp_path / "threads.json").write_text(content)
    assert recall(tmp_path / "threads.json") == {}


def test_a_folder_that_cannot_be_written_is_no_obstacle(tmp_path, monkeypatch):
    runner = TorchRunner(tiny_model("llama"), 64, 1_000_000, num_slots=4)
    (tmp_path / "file").touch()
    monkeypatch.setattr(threads, "num_cores", lambda: 1)
    assert choose_num_threads(runner, tmp_path / "file" / "threads.json") == 1


@pytest.mark.parametrize(("limit", "expected"), [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1)])
def test_a_containers_limit_counts(monkeypatch, limit, expected):
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(threads.Path, "read_text", lambda _: limit)
    assert threads.num_cores() == expected


def test_an_engine_is_built_with_the_threads_that_are_fastest(tmp_path):
    file = threads_file(tmp_path)
    loaded = load_model(ModelOptions(model=str(tiny_model_folder(tmp_path, "llama")), device="cpu", dtype="float32"))
    build_engine(loaded, EngineConfig(max_model_len=64, num_slots=2, kv_memory_bytes=1_000_000), file)
    assert recall(file).popitem()[1] == torch.get_num_threads()
