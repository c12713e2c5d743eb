"""The benchmarks of clients that behave badly, against a server with a fake engine."""

import json
import time
from contextlib import contextmanager

import pytest
import typer
from support.engine import FakeEngine
from support.serving import serving

from superdraft.benchmarks.over_http import churn, hammering, large_prompts
from superdraft.server.app import create_app
from superdraft.server.settings import Settings


@pytest.fixture
def engine():
    return FakeEngine(max_model_len=2000, on_step=lambda: time.sleep(0.001))


@pytest.fixture(autouse=True)
def fake_server(engine, monkeypatch):
    """`local_server` with a fake engine behind it."""

    @contextmanager
    def fake_local_server(options):
        settings = Settings(queue_timeout_ms=60_000) if "--queue-timeout-ms" in options else Settings()
        with serving(create_app(settings, engine, model_name="tiny")) as url:
            yield url

    for module in (churn, hammering, large_prompts):
        monkeypatch.setattr(module, "local_server", fake_local_server)


def report_of(capsys, benchmark, **options):
    """The report, and whether all promises were kept."""
    try:
        benchmark.main(**options, as_json=True)
        is_kept = True
    except typer.Exit:
        is_kept = False
    output = capsys.readouterr().out
    return json.loads(output[output.index("{\n") :]), is_kept


def test_hammering_counts_answers_and_refusals(engine, capsys):
    engine.num_slots = 4
    report, _ = report_of(capsys, hammering, clients=12, seconds=1, baseline=1)
    few, many = report["phases"]
    assert report["kept"]["every request answered"]
    assert few["phase"] == "4 clients"
    assert set(many["answers"]) == {"200", "429"}
    assert many["refused_p95_ms"] > 0


def test_large_prompts_are_refused_beside_a_small_client(capsys):
    report, _ = report_of(capsys, large_prompts, seconds=3, per_s=20)
    alone, beside, large = report["phases"]
    assert alone["answers"].keys() == beside["answers"].keys() == {"200"}
    assert large["answers"].keys() == {"400"}
    assert report["kept"]["every request answered"]


def test_churn_finds_nothing_left(engine, capsys):
    engine.on_step = lambda: time.sleep(0.02)
    report, is_kept = report_of(capsys, churn, requests=60, clients=8, cancelled=0.5)
    (row,) = report["rows"]
    assert is_kept
    assert sum(row["outcomes"].values()) == 60
    assert row["outcomes"].keys() == {"200", "given up"}


def test_churn_notices_drafts_that_have_changed(engine, capsys, monkeypatch):
    answers = iter(([[1]], [[2]]))

    async def other_drafts(http):
        return next(answers)

    monkeypatch.setattr(churn, "_greedy", other_drafts)
    report, is_kept = report_of(capsys, churn, requests=4, clients=1, cancelled=0.0)
    assert not is_kept
    assert not report["kept"]["greedy drafts as before"]
