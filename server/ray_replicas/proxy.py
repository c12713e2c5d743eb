"""Answers of Ray Serve's proxies, in the server's error shape. Independent of Ray, and fast to import.

A proxy's own answers are plain text, and `500 Internal Server Error` for a request whose replica has died.
"""

from collections.abc import Awaitable, Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from superdraft.server.edge.error_map import ErrorDetail, ErrorEvent, ErrorResponse
from superdraft.server.ray_replicas.routes import TypistRoutes

REPLICA_HEADER = "x-superdraft-replica"
"""In every answer of a replica; names the replica."""

REQUEST_ID_HEADER = "x-request-id"
_RAY_PATHS = "/-/"  # Ray's own health checks
_HEADERS = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    # Drafts have no side effects, so repeating a request does no harm, and another replica answers at once.
    "retry-after-ms": "1000",
    "retry-after": "1",
}
_LOST = ErrorDetail(
    message="The replica that worked on this request has failed; send the request again.",
    type="overloaded_error",
    code="replica_lost",
)
_NOT_DEPLOYED = ErrorDetail(
    message="The server is starting or shutting down and takes no requests; send this one again.",
    type="overloaded_error",
    code="shutting_down",
)
_NO_REPLICA = ErrorDetail(
    message="No replica takes requests at the moment; send this one again soon.",
    type="overloaded_error",
    code="overloaded",
)
_BY_STATUS = {404: _NOT_DEPLOYED, 408: _NO_REPLICA, 429: _NO_REPLICA, 503: _NO_REPLICA}


def middlewares() -> list[Middleware]:
    """Middlewares of Ray Serve's proxies, which find them by `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`."""
    return [Middleware(ProxyAnswers), Middleware(TypistRoutes)]


class ReplicaMark:
    """ASGI middleware of a replica: names it in every answer. `ProxyAnswers` recognises a replica's answers by that.

    Args:
        app: the app behind it.
        replica: the replica's name.
    """

    def __init__(self, app: ASGIApp, replica: str) -> None:
        self._app = app
        self._replica = replica

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REPLICA_HEADER] = self._replica
            await send(message)

        await self._app(scope, receive, send_marked)


class ProxyAnswers:
    """ASGI middleware of a proxy that answers 503, in the error shape, to every request that no replica answers.

    A stream that breaks off ends with an error event.

    Args:
        app: the proxy.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http" or scope["path"].startswith(_RAY_PATHS):
            await self._app(scope, receive, send)
            return
        answer = _Answer(send)
        await self._app(scope, receive, answer.send)
        await answer.finish(Headers(scope=scope).get(REQUEST_ID_HEADER))


class _Answer:
    """One answer in progress.

    Its head is held back until its body begins, so that until then another answer is possible.
    """

    def __init__(self, send: Callable[[Message], Awaitable[None]]) -> None:
        self._send = send
        self._head: Message | None = None
        self._own_status: int | None = None  # of the proxy's own answer
        self._is_stream = self._is_begun = self._is_over = False

    async def send(self, message: Message) -> None:
        """Pass on messages of a replica; hold back those of the proxy."""
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=message["headers"])
            if REPLICA_HEADER not in headers:
                self._own_status = message["status"]
                return
            if ids := headers.getlist(REQUEST_ID_HEADER):
                headers[REQUEST_ID_HEADER] = ids[0]  # the proxy has added another
            self._is_stream = headers.get("content-type", "").startswith("text/event-stream")
            self._head = {**message, "headers": headers.raw}
        elif self._head is not None:
            if not self._is_begun:
                self._is_begun = True
                await self._send(self._head)
            self._is_over = message["type"] == "http.response.body" and not message.get("more_body", False)
            await self._send(message)

    async def finish(self, request_id: str | None) -> None:
        """Complete the answer if it is not complete."""
        if self._is_over or (self._is_begun and not self._is_stream):
            return  # uvicorn closes the connection of an incomplete answer
        if self._is_begun:
            event = ErrorEvent(error=_LOST).model_dump_json().encode()
            body = b"data: " + event + b"\n\ndata: [DONE]\n\n"
        else:
            detail = _BY_STATUS.get(self._own_status or 0, _LOST)
            body = ErrorResponse(error=detail, request_id=request_id).model_dump_json().encode()
            own = {"content-type": "application/json", "content-length": str(len(body))}
            headers = Headers({**_HEADERS, **own, **({REQUEST_ID_HEADER: request_id} if request_id else {})})
            await self._send({"type": "http.response.start", "status": 503, "headers": headers.raw})
        await self._send({"type": "http.response.body", "body": body, "more_body": False})
