"""`superdraft lab bench runners`."""

import importlib.util
import json

import pytest
from support.gguf_files import write_gguf

from superdraft.benchmarks.in_process import runners
from superdraft.server.errors import CommandError

HAS_LLAMA_CPP = importlib.util.find_spec("llama_cpp") is not None


@pytest.fixture
def gguf(tmp_path):
    return str(write_gguf(tmp_path / "tiny.gguf"))


@pytest.mark.parametrize("name", runners.RUNNERS)
def test_steps_prompts_and_loading_are_measured(gguf, name):
    if name != runners.TORCH and not HAS_LLAMA_CPP:
        pytest.skip("llama-cpp-python is not installed")
    found = runners.measure(name, gguf, [1, 3], [9, 40], 2, 1, 2)
    shapes = [(row["kept"], row["length"], row["rows"]) for row in found["steps"]]
    assert shapes == [(kept, length, rows) for kept in (0, 2) for length in (9, 40) for rows in (1, 3)]
    assert all(0 < row["p25"] <= row["ms"] <= row["p75"] for row in found["steps"])
    load = found["load"]
    assert load["prompt_tokens_per_s"] > 0
    assert load["load_s"] >= 0
    assert load["peak_mb"] >= load["mb_after"] > 0


def test_each_runner_has_a_process_of_its_own(gguf, capsys):
    runners.main(gguf, [runners.TORCH] * 2, rows=[1], lengths=[9], kept=0, num_threads=1, runs=1, as_json=True)
    out = capsys.readouterr().out
    found = json.loads(out[out.index("{\n") :])
    assert (
        [row["runner"] for row in found["load"]] == [step["runner"] for step in found["steps"]] == [runners.TORCH] * 2
    )
    assert all(row["imports_mb"] < row["mb_after"] for row in found["load"])


def test_an_unknown_runner_is_refused(gguf):
    with pytest.raises(CommandError, match=r"^--runner must be one of torch, llamacpp, llama\.cpp alone, got 'vllm'"):
        runners.main(gguf, ["vllm"])
    with pytest.raises(CommandError, match="reads GGUF files"):
        runners.gguf_file("some/folder")
