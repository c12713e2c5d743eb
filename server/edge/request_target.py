"""Request targets in absolute form, `GET http://host/path HTTP/1.1`, which every server must take (RFC 9112, 3.2.2)."""

from urllib.parse import unquote, urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

_SCHEMES = (b"http://", b"https://")


class RequestTargetMiddleware:
    """ASGI middleware that turns such a target into a path. Its host takes the place of the header `Host`.

    Args:
        app: the app behind it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "http" and scope.get("raw_path", b"").lower().startswith(_SCHEMES):
            scope = _in_origin_form(scope)
        await self._app(scope, receive, send)


def _in_origin_form(scope: Scope) -> Scope:
    try:
        target = urlsplit(scope["raw_path"].decode("ascii"))
    except ValueError:  # the host is no host: the path stays, and no route has it
        return scope
    path = target.path or "/"
    headers = [(name, value) for name, value in scope["headers"] if name != b"host"]
    headers.append((b"host", target.netloc.rpartition("@")[2].encode()))
    return {**scope, "path": unquote(path), "raw_path": path.encode(), "headers": headers}
