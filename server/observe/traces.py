"""Traces: one OpenTelemetry span per HTTP request, with the fields of its log line. No attribute holds prompt text.

A span is made from a fixed list of values when its request has ended. FastAPI's own spans and those of OpenTelemetry's
instrumentation also hold paths, queries and host names, which are the client's text.
"""

import threading
import time
from http import HTTPStatus
from importlib.metadata import version
from typing import Self

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from superdraft.server.observe.metrics import OTHER_ROUTE
from superdraft.server.observe.request_record import RequestRecord

_PREFIX = "superdraft."
_OTHER_METHOD = "_OTHER"  # OpenTelemetry's word for it
_LAST_EXPORT_S = 2.0


class Traces:
    """The spans of one app. They are exported by a thread of their own, and dropped if that cannot keep up.

    OpenTelemetry's environment variables set the service's name, the sampling, and the size of batches.

    Args:
        exporter: where the spans go.
    """

    def __init__(self, exporter: SpanExporter) -> None:
        defaults = {SERVICE_NAME: "superdraft", SERVICE_VERSION: version("superdraft")}
        resource = Resource.create(defaults).merge(OTELResourceDetector().detect())
        # Not the global provider: other libraries' spans, which may hold anything, have no place here.
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("superdraft", version("superdraft"))
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def over_otlp(cls) -> Self:
        """Traces that go to an OpenTelemetry collector over HTTP; its address is in the environment variables."""
        return cls(OTLPSpanExporter())

    def add(
        self,
        record: RequestRecord,
        *,
        method: str,
        route: str,
        status: int,
        seconds: float,
        request_id: str,
        traceparent: str | None,
    ) -> None:
        """Add the span of a request that has just ended.

        Args:
            record: the engine's work for it.
            method: the HTTP method, or "other".
            route: the route's template, or OTHER_ROUTE; never a path.
            status: the HTTP status.
            seconds: duration.
            request_id: its id.
            traceparent: the header of this name, which says what the span belongs to and whether it is recorded. The
                header `tracestate` may hold any text, so it is not passed on.
        """
        end_ns = time.time_ns()
        attributes = {f"{_PREFIX}{name}": value for name, value in record.fields().items()}
        attributes |= {
            f"{_PREFIX}request_id": request_id,
            "http.request.method": _OTHER_METHOD if method == "other" else method,
            "http.response.status_code": status,
        }
        name = "HTTP" if method == "other" else method
        if route != OTHER_ROUTE:
            attributes["http.route"] = route
            name = f"{name} {route}"
        failed = (record.error_status or status) >= HTTPStatus.INTERNAL_SERVER_ERROR
        if failed:
            attributes["error.type"] = record.error_code or str(status)
        span = self._tracer.start_span(
            name,
            self._propagator.extract({} if traceparent is None else {"traceparent": traceparent}),
            SpanKind.SERVER,
            attributes,
            start_time=end_ns - round(seconds * 1e9),
        )
        if failed:
            span.set_status(StatusCode.ERROR)
        span.end(end_ns)

    def close(self) -> None:
        """Export what is left, for at most two seconds; a collector that does not answer would take ten or more."""
        closing = threading.Thread(target=self._provider.shutdown, name="superdraft-traces", daemon=True)
        closing.start()
        closing.join(_LAST_EXPORT_S)
