"""Traces: what a span tells, what it never tells, and that nothing depends on the collector."""

import http.server
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
from starlette.testclient import TestClient
from support.decoding import FailingScorer
from support.engine import FakeEngine
from support.ngram_folders import NamedScorers
from support.secret import SECRET, talk
from support.serving import num_commands, raw_request, serving
from support.waiting import PATIENCE_S, eventually

from superdraft.decoding.errors import SequenceFailedError
from superdraft.server.app import create_app
from superdraft.server.settings import Settings

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs the extra traces")

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from superdraft.server.observe.traces import Traces

KEY = "ann-0123456789-0123456789"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
PROMPT = {"prompt": "Thank you", "max_tokens": 4}


@pytest.fixture
def spans_of(engine) -> Callable[..., tuple[ReadableSpan, ...]]:
    """Runs a scenario with a client, and gives the spans that were exported when the server had stopped."""

    def spans_of(scenario, ngram_models=None, **settings):
        exporter = InMemorySpanExporter()
        app = create_app(
            Settings(**settings), engine, model_name="tiny", ngram_models=ngram_models, traces=Traces(exporter)
        )
        with TestClient(app) as client:
            scenario(client)
        return exporter.get_finished_spans()

    return spans_of


def test_a_span_tells_what_a_request_did(spans_of):
    answers = []

    def scenario(client):
        began_ns = time.time_ns()
        answer = client.post("/v1/drafts", json=PROMPT, headers={"x-request-id": "abc-1"}).json()
        answers.append((answer, began_ns, time.time_ns()))

    (span,) = spans_of(scenario)
    ((answer, began_ns, ended_ns),) = answers
    assert (span.name, span.kind) == ("POST /v1/drafts", trace.SpanKind.SERVER)
    assert dict(span.attributes) == {
        "http.request.method": "POST",
        "http.route": "/v1/drafts",
        "http.response.status_code": 200,
        "superdraft.request_id": "abc-1",
        "superdraft.strategy": "superposed",
        "superdraft.num_drafts": 3,
        "superdraft.num_prompts": 1,
        "superdraft.prompt_tokens": answer["usage"]["prompt_tokens"],
        "superdraft.cached_tokens": answer["usage"]["cached_tokens"],
        "superdraft.completion_tokens": answer["usage"]["completion_tokens"],
        "superdraft.forward_rows": answer["usage"]["forward_rows"],
        "superdraft.queue_ms": 0.1,
        "superdraft.prefill_ms": 1.0,
        "superdraft.decode_ms": 2.0,
        "superdraft.ngram_ms": 0.5,
    }
    assert began_ns <= span.start_time < span.end_time <= ended_ns
    assert span.parent is None
    assert span.status.status_code is trace.StatusCode.UNSET
    assert (span.events, span.links) == ((), ())
    assert span.resource.attributes["service.name"] == "superdraft"


def test_a_span_belongs_to_the_callers_trace(spans_of):
    def scenario(client):
        for traceparent in (PARENT, PARENT.removesuffix("01") + "00", "nonsense", "x" * 5000):
            client.post("/v1/drafts", json=PROMPT, headers={"traceparent": traceparent, "tracestate": f"a={SECRET}"})

    called, *alone = spans_of(scenario)  # the caller of the second one does not want it recorded
    assert f"{called.context.trace_id:032x}" == PARENT.split("-")[1]
    assert f"{called.parent.span_id:016x}" == PARENT.split("-")[2]
    assert not called.context.trace_state
    assert [span.parent for span in alone] == [None, None]


def test_a_failure_of_the_server_is_an_error_and_a_wrong_request_is_none(spans_of, engine):
    def scenario(client):
        client.post("/v1/drafts", json=PROMPT | {"num_drafts": 0})
        client.request("BREW", "/nothing")
        engine.on_step = lambda: engine.fail.update(dict.fromkeys(engine.jobs, SequenceFailedError(SECRET)))
        client.post("/v1/drafts", json=PROMPT)
        client.post("/v1/drafts", json=PROMPT | {"stream": True})

    def outcome(span):
        status, attributes = span.status, span.attributes
        assert status.description is None
        names = ("http.response.status_code", "error.type", "superdraft.error_code")
        return span.name, status.status_code.name, *map(attributes.get, names)

    assert [outcome(span) for span in spans_of(scenario)] == [
        ("POST /v1/drafts", "UNSET", 400, None, "invalid_value"),
        ("HTTP", "UNSET", 404, None, "route_not_found"),
        ("POST /v1/drafts", "ERROR", 500, "sequence_failed", "sequence_failed"),
        ("POST /v1/drafts", "ERROR", 200, "sequence_failed", "sequence_failed"),
    ]


def test_a_client_that_leaves_is_no_error(engine):
    engine.gate = threading.Event()
    exporter = InMemorySpanExporter()
    app = create_app(Settings(), engine, model_name="tiny", traces=Traces(exporter))
    with serving(app) as url:
        connection = raw_request(url, "/v1/drafts", **PROMPT)
        assert eventually(lambda: engine.jobs)
        connection.close()
        assert eventually(lambda: num_commands(app) == 1)
        engine.gate.set()
    (span,) = exporter.get_finished_spans()
    assert span.attributes["superdraft.cancelled"] is True
    assert span.attributes["http.response.status_code"] == 499
    assert span.status.status_code is trace.StatusCode.UNSET


def test_routes_that_are_polled_have_no_spans(spans_of):
    def scenario(client):
        for path in ("/health", "/ready", "/metrics", "/docs/swagger-ui.css"):
            assert client.get(path).status_code == 200

    assert spans_of(scenario) == ()


# What must never be seen


def test_prompts_and_keys_are_in_no_span(spans_of, engine, monkeypatch):
    def broken(*args, **kwargs):
        raise KeyError(SECRET) from ValueError(KEY)

    def scenario(client):
        client.headers["authorization"] = f"Bearer {KEY}"
        assert {200, 400, 404, 405, 413} <= talk(client)
        client.post(f"/v1/drafts?key={KEY}", json=PROMPT, headers={"authorization": f"Bearer {SECRET}"})
        client.post("/v1/drafts", json=PROMPT, headers={"tracestate": f"a={SECRET}", "baggage": f"a={SECRET}"})
        client.post("/v1/drafts", json=PROMPT, headers={"host": f"{SECRET}.example", "user-agent": SECRET})
        for target, name in (
            (engine, "add_request"),
            (engine, "step"),
            ("superdraft.server.wires.native.routes", "drafts_response"),
        ):
            with monkeypatch.context() as patch:
                patch.setattr(*((f"{target}.{name}",) if isinstance(target, str) else (target, name)), broken)
                assert client.post("/v1/drafts", json={"prompt": SECRET}).status_code == 500
                client.post("/v1/drafts", json={"prompt": SECRET, "stream": True})

    models = NamedScorers({"broken": FailingScorer(2)}, None)
    spans = spans_of(scenario, models, api_keys=f"ann={KEY}", max_body_bytes=2500)
    assert len(spans) > 100
    exported = encode_spans(spans).SerializeToString().lower()
    assert b"/v1/drafts" in exported
    for text in (SECRET, "spices", KEY):
        assert text.lower().encode() not in exported


def test_fastapis_own_telemetry_stays_off(engine, monkeypatch):
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    monkeypatch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    with TestClient(create_app(Settings(), engine, model_name="tiny")) as client:
        assert client.post(f"/v1/drafts?q={SECRET}", json=PROMPT).status_code == 200
    assert exporter.get_finished_spans() == ()


def test_without_traces_their_packages_are_not_imported():
    script = f"""
import sys
from starlette.testclient import TestClient
from support.engine import FakeEngine
from superdraft.server.app import create_app
from superdraft.server.settings import Settings
with TestClient(create_app(Settings(), FakeEngine(), model_name="tiny")) as client:
    assert client.post("/v1/drafts", json={PROMPT!r}).status_code == 200
print([name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))])
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd="tests", capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr


# The collector


class BrokenExporter(SpanExporter):
    """Raises, or waits until it is let go."""

    def __init__(self, let_go: threading.Event | None = None) -> None:
        self.calls = self.returns = 0
        self._let_go = let_go

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.calls += 1
        if self._let_go is None:
            raise OSError("no collector")
        self._let_go.wait(PATIENCE_S)
        self.returns += 1
        return SpanExportResult.SUCCESS


@pytest.mark.parametrize("hangs", [False, True])
def test_a_broken_collector_disturbs_no_request(engine, monkeypatch, hangs):
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "1")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "2")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1")
    let_go = threading.Event()
    exporter = BrokenExporter(let_go if hangs else None)
    with TestClient(create_app(Settings(), engine, model_name="tiny", traces=Traces(exporter))) as client:
        for _ in range(10):
            assert client.post("/v1/drafts", json=PROMPT).status_code == 200
        assert eventually(lambda: exporter.calls)
    assert exporter.returns == 0  # the server has ended before it
    let_go.set()


@pytest.fixture
def collector() -> Iterator[tuple[str, list[tuple[str, str, ExportTraceServiceRequest]]]]:
    """The address of a collector, and what it has got: path, header x-tenant, body."""
    received = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            received.append((self.path, self.headers["x-tenant"], ExportTraceServiceRequest.FromString(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", received
        server.shutdown()
        thread.join()


def test_the_setting_sends_spans_where_the_environment_says(collector, engine, monkeypatch):
    address, received = collector
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=us")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "drafts")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    with TestClient(create_app(Settings(traces="otlp"), engine, model_name="tiny")) as client:
        client.post("/v1/drafts", json=PROMPT)
    ((path, tenant, request),) = received
    assert (path, tenant) == ("/v1/traces", "us")
    (resource_spans,) = request.resource_spans
    resource = {item.key: item.value.string_value for item in resource_spans.resource.attributes}
    assert (resource["service.name"], resource["deployment.environment.name"]) == ("drafts", "test")
    (span,) = resource_spans.scope_spans[0].spans
    assert span.name == "POST /v1/drafts"


def test_the_environment_says_how_many_are_recorded(engine, spans_of, monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0")

    def scenario(client):
        client.post("/v1/drafts", json=PROMPT)
        client.post("/v1/drafts", json=PROMPT, headers={"traceparent": PARENT})

    assert [span.parent is not None for span in spans_of(scenario)] == [True]


def test_a_collector_that_is_not_there_disturbs_nothing(engine, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    with TestClient(create_app(Settings(traces="otlp"), FakeEngine(), model_name="tiny")) as client:
        assert client.post("/v1/drafts", json=PROMPT).status_code == 200
