"""The replica of a request: a typist stays with the one that holds the tree. Independent of Ray, fast to import.

Ray Serve's router hashes a header. Here it is set for each request: from the typing session, or else from the API key
and the beginning of the document, which stays the same while somebody types. Requests of which neither is known are
spread. A wrong guess costs one key press without a warm tree.
"""

import hashlib
import re

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ROUTE_HEADER = "x-superdraft-route"
"""Read by Ray Serve's router (`RAY_SERVE_SESSION_ID_HEADER_KEY`)."""

SESSION_HEADER = "x-session-id"
START_CHARS = 64
"""Bytes of a document's JSON by which it is known; a shorter one may still change in them with each key."""

_SESSION = re.compile(rb'"session_id"\s*:\s*"((?:[^"\\]|\\.){1,512})"')
_START = re.compile(rb'"(?:prompt|input_prefix|prefix)"\s*:\s*"((?:[^"\\]|\\.){%d})' % START_CHARS)


class TypistRoutes:
    """ASGI middleware of a proxy that sets `ROUTE_HEADER`.

    Args:
        app: the proxy.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        session, first = headers.get(SESSION_HEADER), None
        if session is None and scope["method"] == "POST":
            first = await receive()
        route = route_of(session, headers.get("authorization", headers.get("x-api-key", "")), first)
        own = MutableHeaders(raw=[pair for pair in scope["headers"] if pair[0].lower() != ROUTE_HEADER.encode()])
        if route is not None:
            own[ROUTE_HEADER] = route

        async def receive_all() -> Message:
            nonlocal first
            message, first = first, None
            return await receive() if message is None else message

        await self._app({**scope, "headers": own.raw}, receive_all, send)


def route_of(session: str | None, key: str, first: Message | None) -> str | None:
    """The value by which a request is routed; None: any replica will do.

    Args:
        session: the typing session, if a header names it.
        key: the API key; sessions and documents of different keys have nothing in common.
        first: the first part of the body; None if it need not be looked at.
    """
    what = None if session is None else session.encode()
    body = b"" if first is None else first.get("body", b"")
    if what is None and (found := _SESSION.search(body) or _START.search(body)) is not None:
        what = found[1]
    return None if what is None else hashlib.blake2b(key.encode() + b"\0" + what, digest_size=16).hexdigest()
