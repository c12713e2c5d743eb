"""`superdraft lab bench forward`."""

import json

import pytest
import torch
from support.models import tiny_model_folder

from superdraft.benchmarks.in_process import forward
from superdraft.decoding import EngineConfig, load_engine
from superdraft.decoding.model.linear_int4 import has_kernels

WIDE = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 32, "num_attention_heads": 2, "num_key_value_heads": 1}


@pytest.fixture
def folder(tmp_path):
    return str(tiny_model_folder(tmp_path, "llama", **WIDE))


@pytest.fixture(autouse=True)
def _torch_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def report(capsys):
    out = capsys.readouterr().out
    return json.loads(out[out.index("{\n") :])


def test_steps_and_prompts_are_timed_with_each_number_of_threads(folder, monkeypatch, capsys):
    monkeypatch.setattr(forward, "candidates", lambda _: [1, 2])
    monkeypatch.setattr(forward, "_MAX_LEN", 100)
    forward.main(folder, "int4", rows=[1, 5], lengths=[9], prompts=[40], runs=2, as_json=True)
    found = report(capsys)
    shapes = [(row["threads"], row["what"], row["rows"], row["length"]) for row in found["rows"]]
    assert shapes == [(n, *shape) for n in (1, 2) for shape in (("step", 1, 9), ("step", 5, 9), ("prompt", 40, 0))]
    parts = ("norms_ms", "products_ms", "rotary_ms", "attention_ms", "head_ms")
    for row in found["rows"]:
        if has_kernels():
            assert all(row[part] >= 0 for part in parts)
            assert 0 < sum(row[part] for part in parts) <= row["ms"] * 3  # sums are means, `ms` is a median
        else:
            assert sum(row[part] for part in parts) == 0


def test_the_time_of_phases_is_that_of_the_runs_measured(folder):
    if not has_kernels():
        pytest.skip("this machine has no native kernels")
    engine = load_engine(folder, EngineConfig(max_model_len=64, num_slots=2), dtype="int4")
    engine._runner.prefill([0], [[5] * 20], [0])
    seconds = engine._runner.decoder.measure()
    assert float(seconds.sum()) == 0
    engine._runner.prefill([0], [[5] * 20], [0])
    assert bool((seconds > 0).all())
