"""`POST /v1/drafts` with `stream`: strict server-sent events, slow readers, readers that leave."""

import itertools
import json
import threading
import time

import httpx
import pytest
from starlette.testclient import TestClient
from support.decoding import tiny_engine
from support.serving import num_commands, raw_request, serving
from support.sse import parsed
from support.waiting import PATIENCE_S, eventually

from superdraft.decoding.errors import SequenceFailedError
from superdraft.server.app import create_app
from superdraft.server.settings import Settings
from superdraft.server.wires import streaming

PATH = "/v1/drafts"


def ask(client, **body):
    response = client.post(PATH, json={"prompt": "hi", "max_tokens": 3, "num_drafts": 2, "stream": True, **body})
    streams = response.status_code == 200 and body.get("stream", True)
    assert response.headers["content-type"].partition(";")[0] == (
        "text/event-stream" if streams else "application/json"
    )
    return response


def send(url, **body):
    return raw_request(url, PATH, **{"prompt": "hi", "max_tokens": 50, "stream": True, **body})


@pytest.mark.usefixtures("kept_up_with")
def test_snapshots_then_the_unary_answer(client):
    first, second, answer = parsed(ask(client).content)
    assert first == {
        "object": "drafts.snapshot",
        "id": answer["id"],
        "step": 1,
        "stable_text": " ",
        "drafts": [
            {"index": 0, "text": " red0", "replaces": None, "score": -0.5},
            {"index": 1, "text": " green0", "replaces": None, "score": -9999.0},
        ],
        "rows_by_depth": [],
    }
    assert (second["step"], second["drafts"][0]["text"]) == (2, " red0 red1")
    unary = ask(client, stream=False).json()
    assert answer | {"id": ""} == unary | {"id": ""}


def test_warnings_are_in_the_last_event(client):
    assert parsed(ask(client, seed=1).content)[-1]["warnings"] == ["seed has no effect with strategy superposed."]


def test_only_streams_ask_the_engine_for_snapshots(client, engine):
    ask(client)
    ask(client, stream=False)
    assert [job.params.snapshots for job in engine.seen] == [True, False]


def test_events_come_while_the_engine_works(url, stepwise):
    stepwise.release()
    with httpx.stream("POST", url + PATH, json={"prompt": "hi", "max_tokens": 3, "stream": True}) as response:
        lines = response.iter_lines()
        assert json.loads(next(lines).removeprefix("data: "))["step"] == 1
        next(lines)
        stepwise.release()
        assert json.loads(next(lines).removeprefix("data: "))["step"] == 2
        stepwise.release()
        assert list(lines)[-2:] == ["data: [DONE]", ""]


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"num_drafts": 0}, 400, "num_drafts"),
        ({"prompt": "x" * 100}, 400, "prompt"),
        ({"model": "other"}, 404, "model"),
    ],
)
def test_refusals_are_ordinary_errors(client, body, status, param):
    response = ask(client, **body)
    assert response.status_code == status
    assert response.json()["error"]["param"] == param


@pytest.mark.usefixtures("kept_up_with")
def test_error_in_mid_stream_is_an_event(client, engine):
    keep_up = engine.on_step

    def fail_after_two_steps():
        keep_up()
        for job in engine.jobs.values():
            if job.num_steps == 2:
                engine.fail[job.request_id] = SequenceFailedError("No numbers.")

    engine.on_step = fail_after_two_steps
    *snapshots, last = parsed(ask(client, max_tokens=9).content)
    assert [event["step"] for event in snapshots] == [1, 2]
    assert last == {
        "error": {"message": "No numbers.", "type": "server_error", "param": None, "code": "sequence_failed"}
    }


def test_bug_while_rendering_is_an_event_that_tells_nothing(client, monkeypatch):
    def broken(*args):
        raise KeyError("the secret prompt")

    monkeypatch.setattr("superdraft.server.wires.native.routes.drafts_response", broken)
    (*_, last) = parsed(ask(client).content)
    assert last["error"]["code"] == "internal_error"
    assert "secret" not in str(last)


def test_superseded_stream_ends_with_the_error(app, url, engine, stepwise):
    body = {"prompt": "hi", "session_id": "me"}
    with httpx.stream("POST", url + PATH, json={**body, "stream": True}) as older:
        assert eventually(lambda: stepwise.num_begun == 1)
        newer = threading.Thread(target=httpx.post, args=(url + PATH,), kwargs={"json": body})
        newer.start()
        assert eventually(lambda: num_commands(app) == 1)
        stepwise.release(100)
        events = parsed(older.read())
        newer.join(PATIENCE_S)
    assert events[-1]["error"]["code"] == "superseded"
    assert len(engine.seen) == 2


def test_time_over_ends_the_stream_with_the_drafts_so_far(client, engine):
    engine.on_step = lambda: time.sleep(0.02)
    answer = parsed(ask(client, max_tokens=50, timeout_ms=50).content)[-1]
    assert answer["object"] == "drafts"
    assert answer["warnings"] == ["The time limit was reached."]


def test_keep_alive_while_nothing_comes(url, stepwise, monkeypatch):
    monkeypatch.setattr(streaming, "KEEP_ALIVE_S", 0.02)
    with httpx.stream("POST", url + PATH, json={"prompt": "hi", "max_tokens": 2, "stream": True}) as response:
        lines = response.iter_lines()
        assert [next(lines) for _ in range(8)] == [": keep-alive", ""] * 4
        stepwise.release(100)
        events = [line for line in lines if line.startswith("data: ")]
    assert events[-1] == "data: [DONE]"


def test_reader_that_leaves_cancels_its_request(app, url, engine, stepwise):
    stepwise.release()
    with send(url) as connection:
        said = b""
        while b"data:" not in said:
            said += connection.recv(4096)
        assert eventually(lambda: stepwise.num_begun == 2)
    assert eventually(lambda: num_commands(app) == 1)
    stepwise.release(100)
    assert eventually(lambda: engine.cancelled == [engine.seen[0].request_id])
    assert engine.jobs == {}


def test_reader_that_leaves_before_the_engine_took_it(app, url, engine, stepwise):
    with send(url, stream=False):
        assert eventually(lambda: stepwise.num_begun == 1)
        with send(url):
            assert eventually(lambda: num_commands(app) == 1)  # behind the step that the engine hangs in
        assert eventually(lambda: num_commands(app) == 2)
        stepwise.release(1000)
        assert eventually(lambda: len(engine.cancelled) == 1 and not engine.jobs)
    assert engine.cancelled != [engine.seen[0].request_id]


def test_reader_that_stops_reading_holds_nobody(engine):
    """Megabytes of snapshots for one who reads none of them: the engine goes on, and others are served."""
    engine.max_model_len = engine.config.max_tokens
    engine.on_step = lambda: time.sleep(0.001)
    with (
        serving(create_app(Settings(), engine, model_name="tiny")) as url,
        send(url, max_tokens=500, num_drafts=6) as stalled,
    ):
        assert eventually(lambda: len(engine.seen) == 1)
        assert httpx.post(url + PATH, json={"prompt": "h"}).status_code == 200
        assert eventually(lambda: not engine.jobs)
        assert engine.cancelled == []
        content = b""
        while not content.endswith(b"0\r\n\r\n"):
            content += stalled.recv(1 << 16)
    events = [line for line in content.split(b"\n") if line.startswith(b"data: ")]
    assert events[-1] == b"data: [DONE]"
    assert json.loads(events[-2].removeprefix(b"data: "))["object"] == "drafts"
    assert len(events) < 480  # latest wins: what the sockets could not hold was never sent


def test_stream_of_a_real_engine_grows_into_its_answer():
    engine, _ = tiny_engine()
    with TestClient(create_app(Settings(), engine, model_name="tiny")) as client:
        body = {"prompt": "Thank you for", "max_tokens": 12, "num_drafts": 3, "min_probability": 0}
        *snapshots, answer = parsed(ask(client, **body).content)
        unary = ask(client, stream=False, **body).json()
    texts = [draft["text"] for draft in answer["drafts"]]
    assert texts == [draft["text"] for draft in unary["drafts"]]
    steps = [snapshot["step"] for snapshot in snapshots]
    assert steps
    assert steps == sorted(set(steps))
    for earlier, later in itertools.pairwise(snapshot["stable_text"] for snapshot in snapshots):
        assert later.startswith(earlier)
    assert all(text.startswith(snapshots[-1]["stable_text"]) for text in texts)
