"""Protection from web pages: which hosts and sites a request may name, and headers that limit what browsers do.

Any site can point a name of its own at this machine. A browser that has one of the site's pages open then takes the
server for the site's, and the page may read every answer (DNS rebinding). Such requests carry the site's name in their
`Host`. And any page can send requests here without reading the answers, but can tell how long they take. A server that
requires no API key refuses both.
"""

import ipaddress
import re
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from superdraft.server.edge.error_map import response_of
from superdraft.server.edge.refusals import ForbiddenError

SAFE_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",  # answers hold what a user wrote
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}

_JSON = "application/json"
_ONE_LABEL = re.compile(r"[a-z0-9_-]*")  # such as localhost: no site has one; and no browser omits the host


class PageError(ForbiddenError):
    """A page of another site may have sent the request."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


_HOST_NOT_ALLOWED = (
    "host_not_allowed",
    "Host must be an IP address, localhost, a name without a dot, or one that --allowed-host names: any site could "
    "give this server a name of its own, and its pages could read the answers.",
)
_CROSS_SITE = (
    "cross_site",
    "Pages of other sites may not send requests to this server: allow a site with --cors-origin. Pages of this server "
    f"must send {_JSON}.",
)


class BrowsersMiddleware:
    """ASGI middleware that refuses what pages of other sites send, and adds safe headers. Those of the app stay.

    Args:
        app: the app behind it.
        is_guarded: requests are checked. False: they are not, since each must have an API key.
        hosts: further names of this server.
        origins: whose pages may send requests.
    """

    def __init__(
        self, app: ASGIApp, *, is_guarded: bool, hosts: Collection[str] = (), origins: Collection[str] = ()
    ) -> None:
        self._app = app
        self._is_guarded = is_guarded
        self._hosts = frozenset(name.lower() for name in hosts)
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SAFE_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = self._refusal(scope["method"], Headers(scope=scope)) if self._is_guarded else None
        answer = self._app if refusal is None else response_of(refusal)
        await answer(scope, receive, send_with_headers)

    def _refusal(self, method: str, headers: Headers) -> ForbiddenError | None:
        if not self._is_own_host(headers.get("host", "")):
            return PageError(*_HOST_NOT_ALLOWED)
        origin = headers.get("origin")
        if origin in self._origins:
            return None
        is_link = method in ("GET", "HEAD") and headers.get("sec-fetch-mode") == "navigate"
        if headers.get("sec-fetch-site") == "cross-site" and not is_link:
            return PageError(*_CROSS_SITE)
        # Older browsers do not name the site. They ask before they send JSON to another one.
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        return PageError(*_CROSS_SITE) if method == "POST" and origin is not None and kind != _JSON else None

    def _is_own_host(self, host: str) -> bool:
        """Whether no site can have given this name to the server."""
        try:
            name = (urlsplit(f"//{host}").hostname or "").removesuffix(".")
        except ValueError:
            return False
        is_local = _ONE_LABEL.fullmatch(name) is not None or name.endswith(".localhost")
        return is_local or name in self._hosts or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
