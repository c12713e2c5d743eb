"""Host-header check for a keyless server on localhost, as a guard against DNS rebinding.

Any site can point a name of its own at 127.0.0.1. A browser that has one of the site's pages open then takes the server
for the site's, and the page may read every answer. Such requests carry the site's name in their `Host`.
"""

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from superdraft.server.edge.error_map import response_of
from superdraft.server.edge.refusals import ForbiddenError


class HostNotAllowedError(ForbiddenError):
    """The request's `Host` is not a name of this machine."""

    code = "host_not_allowed"


class HostCheckMiddleware:
    """ASGI middleware that admits requests to an IP address, to `localhost` or to one of the allowed names.

    Args:
        app: the app behind it.
        allowed: further names.
    """

    def __init__(self, app: ASGIApp, allowed: Collection[str]) -> None:
        self._app = app
        self._allowed = frozenset(name.lower() for name in allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http" or self._is_allowed(Headers(scope=scope).get("host", "")):
            await self._app(scope, receive, send)
            return
        message = (
            "Host must be localhost or an IP address, since this server requires no API key: any site could read its "
            "answers under a name of its own. Name the host in --allowed-host, or use API keys."
        )
        await response_of(HostNotAllowedError(message))(scope, receive, send)

    def _is_allowed(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").removesuffix(".")
        except ValueError:
            return False
        is_local = not host or name == "localhost" or name.endswith(".localhost")  # no browser omits the host
        return is_local or name in self._allowed or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
