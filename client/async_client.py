"""Asynchronous client, for asyncio.

Cancelling a task closes its connection, and the server then stops working on the request.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Any, Self, TypeVar

import httpx

from superdraft.client.completion import AsyncCompletion
from superdraft.client.core import ClientBase
from superdraft.client.errors import ClientError
from superdraft.client.models import FeedbackReceipt, Model, Snapshot
from superdraft.client.stream_reader import StreamReader
from superdraft.client.wire import Call, read_answer, status_error

T = TypeVar("T")


class AsyncDraftsStream:
    """A stream of growing drafts: iterate over it, or over `snapshots`, then call `result`."""

    def __init__(self, snapshots: AsyncGenerator[Snapshot, None], reader: StreamReader[AsyncCompletion]) -> None:
        self.snapshots = snapshots
        self._reader = reader

    def __aiter__(self) -> AsyncIterator[Snapshot]:
        return self.snapshots

    async def result(self) -> AsyncCompletion:
        """Read the rest of the stream and return the finished drafts.

        Raises:
            StreamBrokenError: the connection ended before the finished drafts arrived.
            ClientError: as in `AsyncSuperdraft.complete`.
        """
        async for _ in self.snapshots:
            pass
        return self._reader.end()


class AsyncSuperdraft(
    ClientBase[
        httpx.AsyncClient,
        Coroutine[Any, Any, AsyncCompletion],
        AbstractAsyncContextManager[AsyncDraftsStream],
        Coroutine[Any, Any, tuple[Model, ...]],
        Coroutine[Any, Any, FeedbackReceipt],
    ]
):
    """A connection to a Superdraft server. Close it, or use it in an `async with` statement.

    Its arguments are those of `ClientBase`.
    """

    _kind, _http_kind = AsyncCompletion, httpx.AsyncClient

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections, unless they are those of `http_client` or of another client."""
        if self._owns_http:
            await self._http.aclose()

    @asynccontextmanager
    async def _stream(
        self, call: Call[AsyncCompletion], timeout: float | None, max_retries: int | None
    ) -> AsyncIterator[AsyncDraftsStream]:
        timeout_s = self._timeout_s(timeout)
        response = await self._open(call, timeout_s, max_retries, stream=True)
        try:
            reader = StreamReader(call, response, self.base_url)
            async with aclosing(self._snapshots(response, reader, timeout_s)) as snapshots:
                yield AsyncDraftsStream(snapshots, reader)
            reader.is_closed = True
        finally:
            await response.aclose()

    async def _snapshots(
        self, response: httpx.Response, reader: StreamReader[AsyncCompletion], timeout_s: float
    ) -> AsyncGenerator[Snapshot, None]:
        with self._endpoint.translating(timeout_s, streams=True):
            async for chunk in response.aiter_bytes():
                for snapshot in reader.feed(chunk):
                    yield snapshot
        reader.end()

    async def _ask(self, call: Call[T], timeout: float | None = None, max_retries: int | None = None) -> T:
        response = await self._open(call, self._timeout_s(timeout), max_retries, stream=False)
        return read_answer(call, response, self.base_url)

    async def _open(
        self, call: Call[Any], timeout_s: float, max_retries: int | None, *, stream: bool
    ) -> httpx.Response:
        """Send a call, with retries, and return the successful response; with `stream`, its body is still unread."""
        policy, num_retries = self._retries(max_retries), 0
        while True:
            try:
                with self._endpoint.translating(timeout_s):
                    request = self._http.build_request(**self._endpoint.request(call, timeout_s))
                    response = await self._http.send(request, stream=stream)
                    if response.is_success:
                        return response
                    await response.aread()
                raise status_error(response)
            except ClientError as error:
                delay_s = policy.delay_s(error, num_retries)
                if delay_s is None:
                    raise
            await asyncio.sleep(delay_s)
            num_retries += 1
