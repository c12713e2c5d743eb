"""Context of every request: its id, one log line, its metrics, and an answer even if a handler fails."""

import asyncio
import logging
import re
import time
import uuid
from typing import TYPE_CHECKING, Any

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from superdraft.server.edge.error_map import response_of
from superdraft.server.edge.refusals import ClientGoneError
from superdraft.server.observe.metrics import OTHER_ROUTE, Metrics
from superdraft.server.observe.request_record import CLIENT_CLOSED_REQUEST, RequestRecord, start_record

if TYPE_CHECKING:
    from superdraft.server.observe.traces import Traces

REQUEST_ID_HEADER = "x-request-id"
# Polled routes, and the files of a page.
OPERATION_ROUTES = frozenset({"/health", "/ready", "/metrics", "/v1/health", "/static/{name:path}", "/docs/{name}"})
_FIRST_ERROR_STATUS = 400
_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

log = structlog.get_logger(__name__)


class RequestContextMiddleware:
    """ASGI middleware. A client's own `x-request-id` is kept if it is short and plain.

    Args:
        app: the app behind it.
        metrics: where requests are counted.
        templates: paths of the app's routes, with parameters as `{name}`. The requested path itself is neither counted
            nor logged, since it is the client's text.
        traces: where requests are traced; None: they are not.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        templates: frozenset[str],
        traces: "Traces | None" = None,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._templates = templates
        self._traces = traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        request_id = given if _SANE_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}"
        started_s, status = time.perf_counter(), 0
        record = start_record()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, send_with_id)
            except ClientGoneError:
                status, record.is_cancelled = CLIENT_CLOSED_REQUEST, True
            except asyncio.CancelledError:  # this is how Ray Serve reports that the client left
                record.is_cancelled = True
                self._finish(scope, record, CLIENT_CLOSED_REQUEST, request_id, time.perf_counter() - started_s)
                raise
            except Exception as error:
                response = response_of(error)  # also logs the error
                if status == 0:
                    await response(scope, receive, send_with_id)
            self._finish(scope, record, status, request_id, time.perf_counter() - started_s)

    def _finish(self, scope: Scope, record: RequestRecord, status: int, request_id: str, seconds: float) -> None:
        route = self._template_of(scope)
        self._metrics.observe_request(route, status, record.strategy, seconds)
        method = scope["method"] if scope["method"] in _METHODS else "other"
        fields: dict[str, Any] = {"method": method, "route": route, "status": status, "ms": round(seconds * 1000, 1)}
        if route in OPERATION_ROUTES:
            log.debug("request", **fields)
            return
        if self._traces is not None:
            self._traces.add(
                record,
                method=method,
                route=route,
                status=status,
                seconds=seconds,
                request_id=request_id,
                traceparent=Headers(scope=scope).get("traceparent"),
            )
        fields |= record.fields()
        is_ordinary = (status < _FIRST_ERROR_STATUS and record.error_code is None) or record.is_turned_away
        log.log(logging.DEBUG if is_ordinary else logging.INFO, "request", **fields)

    def _template_of(self, scope: Scope) -> str:
        """The template of the request's route, whether or not the route was reached."""
        route = getattr(scope.get("route"), "path", scope["path"])
        return route if route in self._templates else OTHER_ROUTE
