"""The connection of the language server: to a server's URL, or to the engine in this process."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack

import httpx

from superdraft.client import AsyncSuperdraft
from superdraft.client.errors import ClientError

OpenEngine = Callable[[], AbstractAsyncContextManager[httpx.AsyncBaseTransport]]

_ENGINE_URL = "http://superdraft"  # a name for messages; nothing is looked up


def origin_of(url: str) -> tuple[str, str, int | None]:
    """The scheme, the host and the port of a URL, unless it is the scheme's own; empty if it is no URL."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return "", "", None
    return parsed.scheme, parsed.host, parsed.port


class Connection:
    """A client for drafts, once it is open.

    Args:
        url: of a server; None: the engine in this process.
        api_key: of the server.
        open_engine: loads the engine, and returns a transport to it.
    """

    def __init__(self, url: str | None, api_key: str | None, open_engine: OpenEngine) -> None:
        self.url = url
        self._api_key = api_key
        self._open_engine = open_engine
        self._stack = AsyncExitStack()
        self.client: AsyncSuperdraft | None = None

    async def open(self) -> str:
        """Make the client; returns the name of the model.

        A server that cannot be reached now may be started later, so the client is there even if this fails.

        Raises:
            ClientError: the server cannot be reached, or refuses the key.
            ValueError: the URL or the key is not valid.
        """
        if self.url is None:
            transport = await self._stack.enter_async_context(self._open_engine())
            http = await self._stack.enter_async_context(httpx.AsyncClient(transport=transport, timeout=None))  # noqa: S113
            client = AsyncSuperdraft(_ENGINE_URL, http_client=http)
        else:
            client = AsyncSuperdraft(self.url, self._api_key)
        self.client = await self._stack.enter_async_context(client)
        models = await self.client.models()
        if not models:
            raise ClientError(f"{self.client.base_url} serves no model.")
        return models[0].id

    async def close(self) -> None:
        """Close the client, and the engine if it is in this process."""
        await self._stack.aclose()
