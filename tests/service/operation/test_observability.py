"""Metrics, the log line and request ids, over the real engine without a model."""

import asyncio
import io
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import structlog
from starlette.testclient import TestClient
from support.decoding import FailingScorer
from support.engine import FakeEngine
from support.fake_runner import FakeRunner
from support.models import VOCAB_SIZE, tiny_tokenizer
from support.ngram_folders import NamedScorers
from support.secret import SECRET, talk
from support.serving import num_commands, raw_request, serving
from support.waiting import PATIENCE_S, eventually

from superdraft.decoding.config import EngineConfig
from superdraft.decoding.engine.engine import Engine
from superdraft.decoding.text.tokenizer import Tokenizer
from superdraft.server.app import create_app
from superdraft.server.observe.log_config import configure_logging
from superdraft.server.settings import Settings


class HeldRunner(FakeRunner):
    """Sleeps in each decode step, and waits until it may go on."""

    delay_s = 0.0

    def __init__(self, num_slots):
        super().__init__(num_slots=num_slots)
        self.go_on = threading.Event()
        self.go_on.set()
        self.is_held = False

    def forward(self, segments, embeddings, kept):
        time.sleep(self.delay_s)
        self.is_held = not self.go_on.is_set()
        assert self.go_on.wait(PATIENCE_S)
        self.is_held = False
        return super().forward(segments, embeddings, kept)


@pytest.fixture
def engine() -> Engine:
    return Engine(HeldRunner(num_slots=4), Tokenizer(tiny_tokenizer(), VOCAB_SIZE), EngineConfig())


@pytest.fixture
def log(monkeypatch) -> Iterator[Callable[[], list[dict]]]:
    """The JSON log, as a function that gives the lines since its last call."""
    root, config = logging.getLogger(), structlog.get_config()
    handlers, level = root.handlers, root.level
    configure_logging("debug", "json")
    monkeypatch.setattr(logging.getLogger("httpx2"), "propagate", False)  # the test client's, not the server's
    stream = io.StringIO()
    root.handlers[0].setStream(stream)

    def lines():
        written = stream.getvalue().splitlines()
        stream.seek(0)
        stream.truncate()
        return [json.loads(line) for line in written]

    yield lines
    root.handlers, root.level = handlers, level
    structlog.configure(**config)


def request_lines(lines):
    return [line for line in lines if line["event"] == "request"]


def samples(client, name):
    """{(label values): value} of a sample."""
    values = {}
    for family in client.app.state.service.metrics.registry.collect():
        for sample in family.samples:
            if sample.name == name:
                values[tuple(sample.labels.values())] = sample.value
    return values


def drafts(client, **fields):
    return client.post("/v1/drafts", json={"prompt": "Thank you for", "max_tokens": 4, **fields})


# Metrics


def test_requests_are_counted_by_template_status_and_strategy(client):
    drafts(client)
    drafts(client, strategy="greedy")
    drafts(client, num_drafts=0)
    client.get("/v1/drafts")
    client.get("/v1/models/tiny")
    client.get("/v1/models/no/such/model")
    client.get("/v1/nothing/of/the/kind")
    client.request("BREW", "/v1/drafts")
    assert samples(client, "superdraft_requests_total") == {
        ("/v1/drafts", "200", "superposed"): 1,
        ("/v1/drafts", "200", "greedy"): 1,
        ("/v1/drafts", "400", "none"): 1,
        ("/v1/drafts", "405", "none"): 2,
        ("/v1/models/{model_id:path}", "200", "none"): 1,
        ("/v1/models/{model_id:path}", "404", "none"): 1,
        ("other", "404", "none"): 1,
    }


def test_metrics_tell_what_the_engine_did(client):
    answers = [drafts(client).json(), drafts(client).json()]
    client.post("/v1/completions", json={"prompt": ["Thank you", "Once upon"], "max_tokens": 4})
    text = client.get("/metrics").text
    values = {key: float(value) for key, value in (line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")}
    assert values["superdraft_queue_seconds_count"] == values["superdraft_first_draft_seconds_count"] == 4
    assert values['superdraft_step_seconds_count{kind="decode"}'] >= 6
    assert 2 <= values['superdraft_step_seconds_count{kind="prefill"}'] <= 4
    cached = sum(answer["usage"]["cached_tokens"] for answer in answers)
    assert values["superdraft_cached_tokens_total"] >= cached > 0
    assert values["superdraft_superposed_rows_total"] == sum(answer["usage"]["forward_rows"] for answer in answers)
    assert values["superdraft_separate_rows_total"] == 3 * values["superdraft_superposed_rows_total"]
    assert values["superdraft_slots"] == 4
    assert values["superdraft_used_slots"] == 0
    assert values["process_resident_memory_bytes"] > 0


def test_apps_do_not_share_their_metrics(make_client):
    drafts(make_client())
    other = TestClient(create_app(Settings(), FakeEngine(), model_name="tiny"))
    assert other.get("/metrics").status_code == 200
    assert samples(other, "superdraft_queue_seconds_count") == {(): 0}


def test_cancellations_are_counted_by_reason(engine):
    runner = engine._runner
    runner.delay_s = 0.03
    app = create_app(Settings(shutdown_grace_s=0, speculate="off"), engine, model_name="tiny")

    def cancelled(reason):
        return app.state.service.metrics.registry.get_sample_value("superdraft_cancelled_total", {"reason": reason})

    with serving(app) as url, ThreadPoolExecutor() as pool:
        assert _complete(url, max_tokens=40, timeout_ms=50) == 200
        assert cancelled("deadline") == 1
        runner.delay_s = 0

        runner.go_on.clear()
        with raw_request(url, "/v1/drafts", prompt="Hi", max_tokens=50):
            assert eventually(lambda: runner.is_held)
        assert eventually(lambda: num_commands(app) == 1)
        runner.go_on.set()
        assert eventually(lambda: cancelled("client_gone") == 1)

        runner.go_on.clear()
        older = pool.submit(_complete, url, session_id="s", max_tokens=8)
        assert eventually(lambda: runner.is_held)
        newer = pool.submit(_complete, url, session_id="s", max_tokens=2)
        assert eventually(lambda: num_commands(app) == 1)
        runner.go_on.set()
        assert (older.result(), newer.result()) == (499, 200)
        assert cancelled("superseded") == 1

        runner.go_on.clear()
        late = pool.submit(_complete, url, max_tokens=50)
        assert eventually(lambda: runner.is_held)
        stopping = pool.submit(asyncio.run, app.state.service.engine.stop(grace_s=0))
        assert eventually(lambda: not app.state.service.engine.is_ready)
        runner.go_on.set()
        stopping.result()
        assert (late.result(), _complete(url)) == (503, 503)
        assert cancelled("shutdown") == 1
        assert app.state.service.metrics.registry.get_sample_value("superdraft_shed_total", {"reason": "shutdown"}) == 1


def _complete(url, **fields):
    return httpx.post(f"{url}/v1/drafts", json={"prompt": "Hi", **fields}).status_code


# The log


def test_log_line_says_what_a_request_did(client, log):
    answer = drafts(client, num_drafts=2).json()
    (line,) = request_lines(log())
    usage = {name: value for name, value in answer["usage"].items() if name in line}
    assert usage.keys() == {"prompt_tokens", "completion_tokens", "cached_tokens", "forward_rows"}
    assert {name: line[name] for name in usage} == usage
    assert (line["method"], line["route"], line["status"]) == ("POST", "/v1/drafts", 200)
    assert (line["strategy"], line["num_drafts"], line["num_prompts"]) == ("superposed", 2, 1)
    assert line["prefill_ms"] == pytest.approx(answer["timings"]["prefill_ms"], abs=0.06)
    assert line["ms"] >= line["prefill_ms"] + line["decode_ms"]
    assert line["level"] == "debug"
    assert line["timestamp"].endswith("Z")


def test_log_line_of_several_prompts_and_of_a_stream(client, log):
    prompts = ["Thank you", "Once upon", "Hi"]
    for prompt in prompts:
        client.post("/v1/completions", json={"prompt": prompt, "n": 2, "max_tokens": 4})
    alone = [line["forward_rows"] for line in request_lines(log())]
    client.post("/v1/completions", json={"prompt": prompts, "n": 2, "max_tokens": 4})
    drafts(client, stream=True)
    batch, stream = request_lines(log())
    assert (batch["num_prompts"], stream["num_prompts"]) == (3, 1)
    assert batch["forward_rows"] == sum(alone)
    assert "cancelled" not in stream


def test_log_line_of_what_failed_has_its_code(client, log):
    drafts(client, num_drafts=0)
    client.post("/v1/drafts", content=b"{")
    client.get("/nothing")
    lines = request_lines(log())
    assert [line["error_code"] for line in lines] == ["invalid_value", "invalid_json", "route_not_found"]
    assert {line["level"] for line in lines} == {"info"}


def test_machines_that_ask_all_the_time_are_not_logged(client, log):
    logging.getLogger().setLevel("INFO")
    for path in ("/health", "/ready", "/metrics", "/docs/swagger-ui.css"):
        assert client.get(path).status_code == 200
    assert log() == []


def test_server_failure_is_logged_with_its_cause_and_request_id(make_client, log):
    client = make_client(NamedScorers({"broken": FailingScorer(2)}, "broken"))
    response = drafts(client, alpha=0.5)
    assert response.status_code == 500
    failure, line = log()
    assert failure["event"] == "request_failed"
    assert "RuntimeError: (message withheld" in failure["exception"]
    assert "in score\n" in failure["exception"]
    assert "SequenceFailedError" in failure["exception"]
    assert failure["request_id"] == line["request_id"] == response.headers["x-request-id"]


# What must never be seen


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_prompts_are_in_no_log_and_no_metric(make_client, engine, monkeypatch, log, capsys, log_format):
    configure_logging("debug", log_format)
    client = make_client(max_body_bytes=2500)
    assert {200, 400, 404, 405, 413} <= talk(client)

    def broken(*args, **kwargs):
        raise KeyError(SECRET) from ValueError(SECRET)

    for target, name in (
        (engine._runner, "forward"),  # in the engine, in the middle
        (engine, "add_request"),
        (engine, "step"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, broken)
            prompt = f"{name} has not seen {SECRET}"  # of a known one nothing would be run
            assert drafts(client, prompt=prompt).status_code == 500
            drafts(client, prompt=prompt, stream=True)
    with monkeypatch.context() as patch:
        patch.setattr("superdraft.server.wires.native.routes.drafts_response", broken)
        assert drafts(client, prompt=SECRET).status_code == 500
        drafts(client, prompt=SECRET, stream=True)
    logging.getLogger("asyncio").error(f"Task exception was never retrieved\nfuture: <Task {SECRET}>")
    captured = capsys.readouterr()
    seen = captured.out + captured.err + client.get("/metrics").text
    assert "Task exception was never retrieved" in seen
    assert "message withheld" in seen
    assert SECRET.lower() not in seen.lower()
    assert "spices" not in seen


# Request ids


def test_errors_carry_the_request_id_in_body_and_header(client):
    response = client.post("/v1/drafts", json={}, headers={"x-request-id": "abc-1"})
    assert (response.headers["x-request-id"], response.json()["request_id"]) == ("abc-1", "abc-1")
    for response in (client.get("/nothing"), client.post("/v1/drafts", content=b"{")):
        assert response.json()["request_id"] == response.headers["x-request-id"]
