"""The outputs of requests on their way from the engine thread to the event loop."""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Self

import structlog

from superdraft.decoding.errors import SuperdraftError
from superdraft.decoding.outputs import StepOutput

log = structlog.get_logger(__name__)


class OutputStream:
    """An async iterator over one request's outputs: snapshots if it asked for them, then exactly one terminal output.

    It holds the latest output only. A reader that is slow misses snapshots, never the terminal output, and neither
    memory nor the engine waits for it. Close it, or use it up.

    Args:
        loop: the reader's event loop.
        on_close: called once if the stream is closed before its terminal output came.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, on_close: Callable[["OutputStream"], None]) -> None:
        self._loop = loop
        self._on_close = on_close
        self._accepted: asyncio.Future[None] = loop.create_future()
        self._arrived = asyncio.Event()
        self._latest: StepOutput | None = None
        self._is_over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StepOutput:
        if self._is_over:
            raise StopAsyncIteration
        await self._arrived.wait()
        self._arrived.clear()
        output = self.take()
        assert output is not None
        return output

    async def accepted(self) -> None:
        """Wait until the engine took the request.

        Raises:
            SuperdraftError: it refused.
        """
        await self._accepted

    @property
    def is_over(self) -> bool:
        """Whether the terminal output was read, or the stream closed."""
        return self._is_over

    def take(self) -> StepOutput | None:
        """The latest output, if it was not read yet."""
        output, self._latest = self._latest, None
        if output is not None:
            self._is_over = output.is_terminal
        return output

    def signal_to(self, arrived: asyncio.Event) -> None:
        """Set `arrived` when there is something to `take`. From here on, the stream is not iterated over."""
        self._arrived = arrived
        if self._latest is not None:
            arrived.set()

    def close(self) -> None:
        """Read no more. Ends the request if it has not ended by itself."""
        if not self._is_over and (self._latest is None or not self._latest.is_terminal):
            self._on_close(self)
        self._is_over = True

    # For the engine thread.

    def accept(self) -> None:
        """Tell the reader that the request is taken."""
        self._call(lambda: self._settle(None))

    def refuse(self, error: SuperdraftError) -> None:
        """Tell the reader why the request is not taken; nothing follows."""
        self._call(lambda: self._settle(error))

    def send(self, output: StepOutput) -> None:
        """Hand over an output; it takes the place of one that was not read yet."""
        self._call(lambda: self._put(output))

    def _call(self, callback: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:  # the loop is closed: nobody is left to hear
            log.debug("output_dropped", reason="the event loop is closed")

    # For the event loop.

    def _settle(self, error: SuperdraftError | None) -> None:
        if self._accepted.done():  # the reader left meanwhile
            return
        if error is None:
            self._accepted.set_result(None)
        else:
            self._accepted.set_exception(error)

    def _put(self, output: StepOutput) -> None:
        self._latest = output
        self._arrived.set()


class MergedOutputs:
    """The outputs of several requests as one async iterator, in the order in which they come.

    As of each of its streams, a slow reader gets the latest output of each request only. Close it, or use it up.

    Args:
        streams: nobody else reads them.
    """

    def __init__(self, streams: Sequence[OutputStream]) -> None:
        self._streams = deque(streams)
        self._arrived = asyncio.Event()
        for stream in self._streams:
            stream.signal_to(self._arrived)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StepOutput:
        while not all(stream.is_over for stream in self._streams):
            for _ in range(len(self._streams)):
                self._streams.rotate(-1)  # in turn, so that a busy one does not hide the others
                output = self._streams[0].take()
                if output is not None:
                    return output
            self._arrived.clear()
            await self._arrived.wait()
        raise StopAsyncIteration

    def close(self) -> None:
        """Read no more. Ends the requests that have not ended by themselves."""
        for stream in self._streams:
            stream.close()


async def open_all(starts: Sequence[Coroutine[Any, Any, OutputStream]]) -> MergedOutputs:
    """Queue several requests, or none: when one is refused or the caller is cancelled, the others are ended.

    Args:
        starts: calls of `AsyncEngine.stream`.

    Raises:
        SuperdraftError: the engine refused one.
    """
    tasks = [asyncio.create_task(start) for start in starts]
    try:
        return MergedOutputs(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        for stream in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(stream, OutputStream):
                stream.close()
        raise
