"""Asynchronous client, for asyncio.

Cancelling a task closes its connection, and the server then stops working on the request.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx

from superdraft.client.completion import AsyncCompletion, ClientBase, ClientOptions, reporting_through
from superdraft.client.errors import ClientError
from superdraft.client.models import FeedbackReceipt, Model, Snapshot
from superdraft.client.stream_reader import StreamReader
from superdraft.client.wire import (
    Call,
    DraftsOptions,
    Endpoint,
    drafts_call,
    feedback_call,
    models_call,
    read_answer,
    status_error,
)

T = TypeVar("T")


class AsyncDraftsStream:
    """A stream of growing drafts: iterate over it, or over `snapshots`, then call `result`."""

    def __init__(
        self, response: httpx.Response, reader: StreamReader[AsyncCompletion], endpoint: Endpoint, timeout_s: float
    ) -> None:
        self._response = response
        self._reader = reader
        self._endpoint = endpoint
        self._timeout_s = timeout_s
        self.snapshots = self._read()

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

    async def _read(self) -> AsyncGenerator[Snapshot, None]:
        with self._endpoint.translating(self._timeout_s, streams=True):
            async for chunk in self._response.aiter_bytes():
                for snapshot in self._reader.feed(chunk):
                    yield snapshot
        self._reader.end()


class AsyncSuperdraft(ClientBase):
    """A connection to a Superdraft server. Close it, or use it in an `async with` statement.

    Args:
        base_url: for example "http://127.0.0.1:8000"; a trailing "/v1" is ignored. None: the environment variable
            SUPERDRAFT_URL, or else a server on this machine, port 8000.
        api_key: sent as a bearer token. None: the environment variable SUPERDRAFT_API_KEY; "": no key.
        timeout: seconds to wait for the connection, and then for each part of the response.
        max_retries: how often a failed request is retried, see `RetryPolicy`; 0: never.
        default_headers: sent with every request, for example for a proxy.
        http_client: an httpx.AsyncClient for the connections, with its own proxies, certificates and limits.
            It stays open when this client is closed. None: one of the client's own.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout: float = 30.0,
        max_retries: int = 2,
        *,
        default_headers: Mapping[str, str] | None = None,
        http_client: httpx.AsyncClient | None = None,
    ) -> None:
        super().__init__(base_url, api_key, timeout, max_retries, default_headers)
        self._owns_http = http_client is None
        self._http = http_client or httpx.AsyncClient(timeout=timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections, unless they are those of `http_client` or of another client."""
        if self._owns_http:
            await self._http.aclose()

    def with_options(self, **changes: Unpack[ClientOptions]) -> "AsyncSuperdraft":
        """Return a client with other settings and the same connections, which this one closes.

        ::

            await client.with_options(timeout=2, max_retries=0).complete("Thank you for")

        Args:
            changes: `api_key`, `timeout`, `max_retries`, or `default_headers`, which are added to this client's.
        """
        return AsyncSuperdraft(**self._options(changes), http_client=self._http)

    async def complete(
        self,
        prompt: str | Sequence[int],
        num_drafts: int = 3,
        max_tokens: int = 16,
        *,
        timeout: float | None = None,
        max_retries: int | None = None,
        **options: Unpack[DraftsOptions],
    ) -> AsyncCompletion:
        """Return the best `num_drafts` continuations of `prompt`, or fewer if there are not enough distinct ones.

        Args:
            prompt: text or token ids.
            num_drafts: k.
            max_tokens: maximum number of new tokens per draft.
            timeout: seconds; overrides the client's timeout for this request.
            max_retries: overrides the client's setting for this request.
            options: other fields of `POST /v1/drafts`, see `DraftsOptions`.

        Raises:
            ConnectionFailedError: no server answers at the base URL, or the connection broke.
            RequestTimeoutError: the server did not respond within the timeout.
            StatusError: the server responded with an error; see the subclasses.
            InvalidAnswerError: the response is not one of a Superdraft server.
        """
        call = drafts_call(prompt, num_drafts, max_tokens, options, AsyncCompletion)
        return self._with_feedback(await self._ask(call, timeout, max_retries))

    @asynccontextmanager
    async def stream(
        self,
        prompt: str | Sequence[int],
        num_drafts: int = 3,
        max_tokens: int = 16,
        *,
        timeout: float | None = None,
        max_retries: int | None = None,
        **options: Unpack[DraftsOptions],
    ) -> AsyncIterator[AsyncDraftsStream]:
        """Stream the drafts of `complete` while they grow. Leaving the `async with` block early cancels the request.

        ::

            async with client.stream("Thank you for") as stream:
                async for snapshot in stream:
                    print([draft.text for draft in snapshot.drafts])
                completion = await stream.result()

        Raises:
            ClientError: as in `complete`. Failures before the response begins are retried in the same way.
        """
        call = drafts_call(prompt, num_drafts, max_tokens, options, AsyncCompletion, stream=True)
        timeout_s = self._timeout_s(timeout)
        response = await self._open(call, timeout_s, max_retries, stream=True)
        try:
            reader = StreamReader(call, response, self.base_url, self._with_feedback)
            stream = AsyncDraftsStream(response, reader, self._endpoint, timeout_s)
            async with aclosing(stream.snapshots):
                yield stream
            reader.is_closed = True
        finally:
            await response.aclose()

    async def models(self) -> tuple[Model, ...]:
        """List the values that the option `model` accepts.

        Raises:
            ClientError: as in `complete`.
        """
        return await self._ask(models_call())

    async def feedback(
        self,
        completion_id: str,
        event: str,
        rank: int = 0,
        *,
        elapsed_ms: float | None = None,
    ) -> FeedbackReceipt:
        """Report an event like `AsyncCompletion.shown`, `accepted` and `dismissed`, given only the completion's id.

        Raises:
            ClientError: as in `complete`.
        """
        return await self._ask(feedback_call(completion_id, event, rank, elapsed_ms))

    def _with_feedback(self, completion: AsyncCompletion) -> AsyncCompletion:
        reporting_through(completion, self._ask)
        return completion

    async def _ask(self, call: Call[T], timeout: float | None = None, max_retries: int | None = None) -> T:
        response = await self._open(call, self._timeout_s(timeout), max_retries, stream=False)
        return read_answer(call, response, self.base_url)

    async def _open(
        self, call: Call[Any], timeout_s: float, max_retries: int | None, *, stream: bool
    ) -> httpx.Response:
        """Send a call, with retries, and return the successful response; with `stream`, its body is still unread."""
        attempts = self._attempts(max_retries)
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
                delay_s = attempts.delay_after(error)
            await asyncio.sleep(delay_s)
