"""Headers that keep browsers from doing more with an answer than they should."""

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_ALWAYS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
}
_NO_STORE = "no-store"  # answers hold what somebody wrote
_CLOSED = "default-src 'none'; frame-ancestors 'none'"
# The documentation pages load their scripts from a public site.
_PAGES = dict.fromkeys(("/docs", "/redoc"), "frame-ancestors 'none'")


class SecurityHeadersMiddleware:
    """ASGI middleware. Headers that the app has set stay.

    Args:
        app: what answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _ALWAYS.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", _NO_STORE)
                headers.setdefault("content-security-policy", _PAGES.get(scope["path"], _CLOSED))
            await send(message)

        await self._app(scope, receive, send_with_headers)
