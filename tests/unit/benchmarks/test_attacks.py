"""The benchmark of clients that behave badly, against a server with a fake engine."""

import json
import time
from contextlib import contextmanager

import pytest
import typer
from support.engine import FakeEngine
from support.serving import serving

from superdraft.benchmarks.over_http import attack
from superdraft.server.app import create_app
from superdraft.server.errors import CommandError
from superdraft.server.settings import Settings


@pytest.fixture
def engine():
    return FakeEngine(max_model_len=2000, on_step=lambda: time.sleep(0.001))


@pytest.fixture(autouse=True)
def fake_server(engine, monkeypatch):
    """`local_server` with a fake engine behind it."""

    @contextmanager
    def fake_local_server(options):
        with serving(create_app(Settings(), engine, model_name="tiny")) as url:
            yield url

    monkeypatch.setattr(attack, "local_server", fake_local_server)
    monkeypatch.setattr(attack, "WARM_UP_S", 0.1)


def report_of(capsys, kind, **options):
    """The report, and whether all promises were kept."""
    try:
        attack.main(kind, **{"seconds": 1, "baseline": 0.5, **options}, as_json=True)
        is_kept = True
    except typer.Exit:
        is_kept = False
    output = capsys.readouterr().out
    return json.loads(output[output.index("{\n") :]), is_kept


def test_hammering_counts_answers_and_refusals(engine, capsys):
    engine.num_slots = 4
    report, _ = report_of(capsys, "hammering", clients=12)
    few, many = report["phases"]
    assert report["kept"]["every request answered"]
    assert few["phase"] == "4 clients"
    assert set(many["answers"]) == {"200", "429"}
    assert many["refused_p95_ms"] > 0


def test_large_prompts_are_refused_beside_a_small_client(capsys):
    report, _ = report_of(capsys, "large-prompts")
    alone, beside, attackers = report["phases"]
    assert alone["answers"].keys() == beside["answers"].keys() == {"200"}
    assert {"400"} <= attackers["answers"].keys() <= {"400", "given up"}  # the last one
    assert report["kept"]["every request answered"]


def test_large_requests_ask_for_all_that_one_request_may_have(engine, capsys):
    report, _ = report_of(capsys, "large-requests", clients=1)
    assert report["kept"]["every request answered"]
    assert "400" not in report["phases"][2]["answers"]
    assert attack.LARGE_TOKENS in {job.params.max_tokens for job in engine.seen}


def test_churn_gives_up_half_of_the_requests_and_finds_nothing_left(engine, capsys):
    engine.on_step = lambda: time.sleep(0.02)
    report, _ = report_of(capsys, "churn", clients=8)
    attackers = report["phases"][2]
    assert {"200", "given up"} <= attackers["answers"].keys() <= {"200", "429", "given up"}
    kept = report["kept"]
    assert kept["every request answered"]
    assert kept["no slot and no request left"]
    assert kept["greedy drafts as before"]
    gauges = ("used_slots", "running_sequences", "waiting_sequences", "waiting_requests")
    assert report["left"] == dict.fromkeys(gauges, 0)


def test_changed_drafts_are_noticed(capsys, monkeypatch):
    answers = iter(([[1]], [[2]]))

    async def other_drafts(http):
        return next(answers)

    monkeypatch.setattr(attack, "_greedy", other_drafts)
    report, is_kept = report_of(capsys, "churn", clients=1)
    assert not is_kept
    assert not report["kept"]["greedy drafts as before"]


def test_an_unknown_kind_of_attack_is_refused():
    with pytest.raises(CommandError, match="must be one of hammering, large-prompts, large-requests, churn, got 'x'"):
        attack.main("x")
