"""The benchmark of what a key press costs in a gap."""

import json

import pytest
from support.models import save_tiny_coder, tiny_model_folder

from superdraft.benchmarks.in_process.gap_keys import FIRST, FOLLOWING, KeyPress, rows_of, typed_stages
from superdraft.evaluation.cases.infill_cases import InfillCase
from superdraft.evaluation.decoders.infill_server import LAYOUTS

CASE = {"prefix": "def add(a, b):\n    ret", "suffix": "\n\nprint(1)\n", "reference": "urn a + b"}


def press(ms, run=1, prompt=20):
    return KeyPress(ms, prompt, run, ms / 2, 3)


def test_the_last_keys_before_the_cursor_are_typed_but_not_the_indentation():
    case = InfillCase("a", "mid", "if x:\n    call(", "\n", "1)")
    assert [one.prefix for one in typed_stages(case, 3)] == ["if x:\n    cal", "if x:\n    call", "if x:\n    call("]
    assert typed_stages(case, 50)[0].prefix.rpartition("\n")[2] == "    c"
    assert len(typed_stages(case, 50)) == len("call(")
    assert {(one.suffix, one.reference) for one in typed_stages(case, 50)} == {("\n", "1)")}
    assert typed_stages(InfillCase("b", "indent", "if x:\n    ", "\n", "pass"), 3) == []


def test_first_key_presses_are_counted_apart():
    rows = rows_of(
        {
            ("one", FIRST): [press(100.0, run=20)],
            ("one", FOLLOWING): [press(10.0), press(30.0, run=4), press(20.0)],
            ("two", FIRST): [press(50.0, run=20)],
        }
    )
    assert [(row["layout"], row["key_press"], row["count"]) for row in rows] == [
        ("one", FIRST, 1),
        ("two", FIRST, 1),
        ("one", FOLLOWING, 3),
    ]
    first, _, following = rows
    assert (first["median_ms"], first["p95_ms"], first["run_tokens_mean"]) == (100.0, 100.0, 20.0)
    assert (following["median_ms"], following["p95_ms"]) == (20.0, 29.0)
    assert (following["run_tokens_mean"], following["run_tokens_median"]) == (2.0, 1)
    assert (following["prefill_ms_median"], following["rows_mean"], following["prompt_tokens_mean"]) == (
        10.0,
        3.0,
        20.0,
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model with tokens to fill gaps."""
    return save_tiny_coder(tmp_path_factory.mktemp("models") / "tiny-coder")


@pytest.fixture
def run(monkeypatch, tmp_path):
    from typer.testing import CliRunner

    from superdraft.server.cli import bench as cli_bench

    cases = tmp_path / "cases.jsonl"
    cases.write_text(json.dumps(CASE))
    monkeypatch.setenv("SUPERDRAFT_KV_MEMORY", "64MiB")
    # Both would stay for all tests.
    monkeypatch.setattr("superdraft.benchmarks.in_process.gap_keys.configure_logging", lambda *_: None)
    monkeypatch.setattr("torch.set_num_threads", lambda _: None)

    def call(model, *more):
        options = ["--cases", str(cases), "--model", model, "--dtype", "float32", "-n", "3"]
        return CliRunner().invoke(cli_bench.app, ["gap-keys", *options, *more])

    return call


def test_each_layout_runs_its_first_prompt_whole_and_less_for_the_keys_after_it(run, model):
    done = run(model, "--keys", "3", "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.output[done.output.index("{\n") :])
    assert report["settings"]["lines"] == 1
    rows = {(row["layout"], row["key_press"]): row for row in report["rows"]}
    assert list(rows) == [(layout, which) for which in (FIRST, FOLLOWING) for layout in LAYOUTS]
    for layout in LAYOUTS:
        first, following = rows[layout, FIRST], rows[layout, FOLLOWING]
        assert (first["count"], following["count"]) == (1, 2)
        assert first["run_tokens_mean"] == first["prompt_tokens_mean"]
        assert following["run_tokens_mean"] < following["prompt_tokens_mean"]
        assert following["median_ms"] > 0
    # The suffix comes after the line where that ends the prefix, and is run again for every key.
    in_prefix, after = rows["line_in_prefix", FOLLOWING], rows["line_after_middle", FOLLOWING]
    assert after["run_tokens_mean"] < in_prefix["run_tokens_mean"]


def test_a_window_shortens_the_prompts(run, model):
    reports = [run(model, "--keys", "2", "--json", *more) for more in ((), ("--context-lines", "0,1"))]
    whole, window = (json.loads(done.output[done.output.index("{\n") :]) for done in reports)
    assert window["settings"]["context_lines"] == [0, 1]
    assert window["rows"][0]["prompt_tokens_mean"] < whole["rows"][0]["prompt_tokens_mean"]


def test_a_table_is_shown(run, model):
    done = run(model, "--keys", "2")
    assert done.exit_code == 0, done.output
    assert "line_after_middle" in done.output


def test_a_model_without_layouts_is_refused(run, tmp_path):
    done = run(str(tiny_model_folder(tmp_path, "llama")))
    assert "has no tokens to fill gaps" in str(done.exception) + done.output
    assert done.exit_code
