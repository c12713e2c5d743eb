"""Synchronous client."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Self, TypeVar

import httpx

from superdraft.client.completion import Completion
from superdraft.client.core import ClientBase
from superdraft.client.errors import ClientError
from superdraft.client.models import FeedbackReceipt, Model, Snapshot
from superdraft.client.stream_reader import StreamReader
from superdraft.client.wire import Call, read_answer, status_error

T = TypeVar("T")


class DraftsStream:
    """A stream of growing drafts: iterate over it, or over `snapshots`, then call `result`."""

    def __init__(self, snapshots: Iterator[Snapshot], reader: StreamReader[Completion]) -> None:
        self.snapshots = snapshots
        self._reader = reader

    def __iter__(self) -> Iterator[Snapshot]:
        return self.snapshots

    def result(self) -> Completion:
        """Read the rest of the stream and return the finished drafts.

        Raises:
            StreamBrokenError: the connection ended before the finished drafts arrived.
            ClientError: as in `Superdraft.complete`.
        """
        for _ in self.snapshots:
            pass
        return self._reader.end()


class Superdraft(
    ClientBase[httpx.Client, Completion, AbstractContextManager[DraftsStream], tuple[Model, ...], FeedbackReceipt]
):
    """A connection to a Superdraft server. Close it, or use it in a `with` statement.

    Its arguments are those of `ClientBase`.
    """

    _kind, _http_kind = Completion, httpx.Client

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections, unless they are those of `http_client` or of another client."""
        if self._owns_http:
            self._http.close()

    @contextmanager
    def _stream(self, call: Call[Completion], timeout: float | None, max_retries: int | None) -> Iterator[DraftsStream]:
        timeout_s = self._timeout_s(timeout)
        response = self._open(call, timeout_s, max_retries, stream=True)
        try:
            reader = StreamReader(call, response, self.base_url)
            yield DraftsStream(self._snapshots(response, reader, timeout_s), reader)
            reader.is_closed = True
        finally:
            response.close()

    def _snapshots(
        self, response: httpx.Response, reader: StreamReader[Completion], timeout_s: float
    ) -> Iterator[Snapshot]:
        with self._endpoint.translating(timeout_s, streams=True):
            for chunk in response.iter_bytes():
                yield from reader.feed(chunk)
        reader.end()

    def _ask(self, call: Call[T], timeout: float | None = None, max_retries: int | None = None) -> T:
        response = self._open(call, self._timeout_s(timeout), max_retries, stream=False)
        return read_answer(call, response, self.base_url)

    def _open(self, call: Call[Any], timeout_s: float, max_retries: int | None, *, stream: bool) -> httpx.Response:
        """Send a call, with retries, and return the successful response; with `stream`, its body is still unread."""
        policy, num_retries = self._retries(max_retries), 0
        while True:
            try:
                with self._endpoint.translating(timeout_s):
                    request = self._http.build_request(**self._endpoint.request(call, timeout_s))
                    response = self._http.send(request, stream=stream)
                    if response.is_success:
                        return response
                    response.read()
                raise status_error(response)
            except ClientError as error:
                delay_s = policy.delay_s(error, num_retries)
                if delay_s is None:
                    raise
            time.sleep(delay_s)
            num_retries += 1
