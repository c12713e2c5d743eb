"""Around every request: its id in and out, one log line, and an answer even when a handler fails."""

import re
import time
import uuid
from typing import Any

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from superdraft.server.error_map import CLIENT_CLOSED_REQUEST, response_of
from superdraft.server.service import ClientGoneError

REQUEST_ID_HEADER = "x-request-id"
_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")

log = structlog.get_logger(__name__)


class RequestContextMiddleware:
    """ASGI middleware. A client's own `x-request-id` is kept if it is short and plain."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        request_id = given if _SANE_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}"
        started_s, status = time.perf_counter(), 0

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
                status = CLIENT_CLOSED_REQUEST
            except Exception as error:
                log.exception("unexpected_error")
                if status == 0:
                    await response_of(error)(scope, receive, send_with_id)
            _log_line(scope, status, (time.perf_counter() - started_s) * 1000)


def _log_line(scope: Scope, status: int, duration_ms: float) -> None:
    fields: dict[str, Any] = {"method": scope["method"], "path": scope["path"], "status": status}
    level = log.debug if scope["path"] in ("/health", "/ready") else log.info
    level("request", **fields, ms=round(duration_ms, 1))
