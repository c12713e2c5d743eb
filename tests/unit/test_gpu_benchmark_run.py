"""A run of the GPU benchmark's parts, on the CPU: their order, what one that fails does to the others, the report."""

import json
import subprocess
import sys
import time

import pytest
import torch
from support.ngram import shipped_scorer

from superdraft.benchmarks import (
    gpu,
    gpu_models,
    gpu_parts,
    gpu_peers,
    gpu_run,
    gpu_timing,
)
from superdraft.benchmarks.gpu_timing import Findings
from superdraft.server import cli

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread():
    with gpu_timing.one_thread():
        yield


@pytest.fixture
def bench():
    return gpu_models.Workbench(CPU, gpu_models.TINY_SHAPES, shipped_scorer())


def parts(**found):
    """Parts by name, each the findings it has or the fault that it raises; and the names of those that ran."""
    ran = []

    def part(name, outcome):
        def run(shared):
            ran.append(name)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        return run

    return {name: part(name, outcome) for name, outcome in found.items()}, ran


def runner(given, *, begun_s=None, budget_s=None, report=None):
    written = []
    report = report or {"begun_s": begun_s or time.time(), "parts": {}}
    shared = gpu_parts.make_benchmark("cpu", "tiny", None)
    made = gpu_run.Runner(shared, given, report, lambda now: written.append(json.dumps(now)), budget_s)
    return made, report["parts"], written


def test_a_failing_check_stops_all_timing(capsys):
    given, ran = parts(correctness=Findings([{"holds": False}], passed=False), step=Findings(), load=Findings())
    made, outcomes, _ = runner(given)
    assert made.run(["step", "load"])
    assert ran == ["correctness"]
    assert [outcomes[name]["status"] for name in given] == ["failed", "not run", "not run"]
    assert "unless the check has passed" in capsys.readouterr().out


def test_a_part_that_raises_is_reported_and_the_others_go_on(capsys):
    given, ran = parts(correctness=Findings(), step=ValueError("a bad step"), load=Findings([{"requests/s": 2.5}]))
    made, outcomes, written = runner(given)
    assert made.run(list(given))
    assert ran == list(given)
    assert outcomes["step"]["reason"] == "ValueError: a bad step"
    assert outcomes["load"]["rows"] == [{"requests/s": 2.5}]
    assert len(written) == 3  # after each part
    assert [json.loads(text)["parts"].keys() for text in written][1] == {"correctness", "step"}
    printed = capsys.readouterr().out
    assert "a bad step" in printed
    assert "2.5" in printed


def test_parts_that_come_too_late_are_told(capsys):
    given, ran = parts(machine=Findings(), correctness=Findings(), step=Findings())
    made, outcomes, _ = runner(given, begun_s=time.time() - 90, budget_s=60)
    assert made.run(["machine", "step"])
    assert ran == []
    assert "over after 1.5 minutes" in outcomes["machine"]["reason"]


def test_the_check_comes_first_and_what_was_run_is_not_run_again():
    given, ran = parts(machine=Findings(), correctness=Findings(), step=Findings(), load=Findings())
    made, _, _ = runner(given, report={"begun_s": time.time(), "parts": {"step": {"status": "done"}}})
    assert made.run(["step", "load"])
    assert ran == ["correctness", "load"]
    given, ran = parts(machine=Findings(), correctness=Findings())
    assert runner(given)[0].run(["machine"])
    assert ran == ["machine"]


@pytest.mark.parametrize("fault", [gpu_peers.HungError("it hung"), RuntimeError("illegal address")])
def test_a_process_that_is_spoilt_leaves_the_rest_to_a_new_one(monkeypatch, fault):
    given, ran = parts(correctness=Findings(), step=fault, load=Findings())
    made, outcomes, _ = runner(given)

    def broken():
        raise RuntimeError("CUDA error")

    monkeypatch.setattr(made._shared.bench, "release", broken)
    assert not made.run(list(given))
    assert ran == ["correctness", "step"]
    assert set(outcomes) == {"correctness", "step"}


OPTIONS = {"device": "cpu", "shapes": "tiny", "minutes": None, "ngram_model": "none"}


def test_a_new_process_goes_on_with_the_report(monkeypatch, tmp_path):
    output = tmp_path / "gpu.json"
    given, _ = parts(correctness=Findings(), batching=gpu_peers.HungError("it hung"), load=Findings())
    monkeypatch.setattr(gpu_parts, "PARTS", given)
    started = []
    options = OPTIONS | {"minutes": 5.0}
    assert not gpu.main(**options, parts=["batching", "load"], output=output, start_anew=started.append)
    (arguments,) = started
    parsed = gpu.parse(arguments)
    assert parsed == options | {"parts": ["batching", "load"], "output": output, "resumes": True}
    assert not gpu.main(**parsed, start_anew=started.append)  # since a part has failed
    report = json.loads(output.read_text())
    assert [part["status"] for part in report["parts"].values()] == ["done", "failed", "done"]
    assert len(started) == 1


def test_all_runs_on_the_cpu_with_tiny_shapes(tmp_path, capsys):
    output = tmp_path / "gpu.json"
    # Not those that other packages have to be asked for, and not the check's many cases again.
    names = ["machine", "roofline", "step", "typing", "load", "profile-load", "profile-step"]
    assert gpu.main(**OPTIONS, parts=names, output=output)
    report = json.loads(output.read_text())
    assert list(report["parts"]) == ["machine", "correctness", *names[1:]]
    assert {part["status"] for part in report["parts"].values()} == {"done"}
    assert all(part["rows"] for part in report["parts"].values())
    assert report["note"] == gpu.CPU_NOTE
    assert capsys.readouterr().out.startswith("On a CPU: shapes and code only, no figures to quote.")


def test_the_names_of_the_parts_are_those_of_the_parts():
    assert tuple(gpu_parts.PARTS) == gpu.PART_NAMES


def test_the_shipped_ngram_model_is_taken_whatever_the_vocabulary():
    scorer = gpu._load_scorer(gpu.DEFAULT_NGRAM_MODEL)
    state = scorer.initial_state([5, 128_255])
    known, unknown = scorer.score([state], [[28, 128_000]])[0]
    assert known > unknown == scorer.score([state], [[49_152]])[0][0]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "torch sees no GPU here"),
        (["--device", "cpu"], "only the tiny shapes"),
        (["--device", "cpu", "--shapes", "tiny", "--parts", "step,speed"], "There is no part 'speed'"),
    ],
)
def test_options_that_there_are_not(monkeypatch, capsys, arguments, told):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["superdraft", "bench", "gpu", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    assert told in capsys.readouterr().err


def test_without_kenlm_the_remedy_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "kenlm", None)
    monkeypatch.delitem(sys.modules, "superdraft.ngram_models.registry", raising=False)
    monkeypatch.delitem(sys.modules, "superdraft.ngram_models.scorer", raising=False)
    with pytest.raises(gpu.OptionError, match=r"kenlm.* ufal-kenlm"):
        gpu._load_scorer("smollm2-135m")


@pytest.mark.parametrize(("is_sound", "code"), [(True, 0), (False, 1)])
def test_the_command_tells_whether_all_is_well(monkeypatch, is_sound, code):
    asked = []
    monkeypatch.setattr(gpu, "main", lambda **options: asked.append(options) or is_sound)
    monkeypatch.setattr(sys, "argv", ["superdraft", "bench", "gpu", "--minutes", "3", "--parts", "step,load"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert (caught.value.code or 0) == code
    assert (asked[0]["minutes"], asked[0]["parts"], asked[0]["device"]) == (3.0, ["step", "load"], "cuda")


def test_the_script_needs_nothing_of_the_servers(tmp_path):
    script = """
import sys
for name in "typer fastapi starlette uvicorn pydantic structlog zstandard gguf limits".split():
    sys.modules[name] = None
sys.argv = ["gpu", "--device", "cpu", "--shapes", "tiny", "--parts", "machine", "--output", sys.argv[1]]
import runpy
runpy.run_module("superdraft.benchmarks.gpu", run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "gpu.json")], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
