"""Access control: authentication and caller limits, as one dependency of every route.

A route that is not named below needs a key with the scope `complete`, so a new route is closed until it is opened here.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from dataclasses import dataclass

import structlog
from fastapi import Request
from starlette.datastructures import Headers

from superdraft.server.edge.api_keys import ApiKey, ApiKeys, Scope
from superdraft.server.edge.rate_limits import CallerLimits, network_of
from superdraft.server.edge.refusals import ForbiddenError, UnauthorizedError

_OPEN_ROUTES = frozenset({"/health", "/ready", "/v1/health"})
_SCOPES: Mapping[str, Scope] = {"/metrics": "metrics"}

_caller: ContextVar[str] = ContextVar("caller", default="")


def current_caller() -> str:
    """The name of the request's API key; empty on a server without keys."""
    return _caller.get()


@dataclass(frozen=True, slots=True)
class Access:
    """The dependency.

    Attributes:
        keys: the valid API keys.
        limits: on each caller's requests for drafts.
    """

    keys: ApiKeys
    limits: CallerLimits

    async def __call__(self, request: Request) -> AsyncIterator[None]:
        """Admit a request. Runs before its body is read, and ends when its answer has been sent.

        Raises:
            UnauthorizedError: the request has no valid key.
            ForbiddenError: the key lacks the scope.
            TooManyRequestsError: one of the caller's limits is reached.
        """
        route = request.scope["route"].path
        if route in _OPEN_ROUTES:
            yield
            return
        scope = _SCOPES.get(route, "complete")
        key = self._key_of(request.headers, scope) if self.keys.are_required else None
        if key is not None:
            _caller.set(key.name)
            structlog.contextvars.bind_contextvars(api_key=key.name)
        if scope != "complete":
            yield
            return
        async with self._counted(request, key):
            yield

    def _counted(self, request: Request, key: ApiKey | None) -> AbstractAsyncContextManager[None]:
        if key is not None:
            return self.limits.counted(f"key {key.name}", key.rate_limit, key.max_concurrent)
        return self.limits.counted(network_of(request.client.host if request.client else None))

    def _key_of(self, headers: Headers, scope: Scope) -> ApiKey:
        kind, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
        if not given:
            message = "This server requires an API key; send it as `Authorization: Bearer KEY`."
            raise UnauthorizedError(message, code="missing_api_key")
        key = self.keys.find(given)
        if key is None:
            raise UnauthorizedError("The API key is not valid, or no longer valid.", code="invalid_api_key")
        if not key.allows(scope):
            raise ForbiddenError(f"This route needs an API key with the scope {scope}; {key.name} lacks it.")
        return key
