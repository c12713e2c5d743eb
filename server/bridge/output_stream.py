"""Outputs of requests on their way from the engine's thread to the event loop."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Self

import structlog

from superdraft.decoding.errors import SuperdraftError
from superdraft.decoding.outputs import GenerationOutput, StepOutput

log = structlog.get_logger(__name__)


class OutputStream:
    """Async iterator over one request's outputs: snapshots if it asked for them, then exactly one terminal output.

    The stream holds only the latest output. A slow reader misses snapshots but never the terminal output, so neither
    memory nor the engine waits for it. Close the stream, or read it to its end.

    Args:
        loop: the reader's event loop.
        on_close: called once if the stream is closed before its terminal output has come.
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
        """Wait until the engine has taken the request. Cancelling the wait closes the stream.

        Raises:
            SuperdraftError: the engine refused it.
        """
        try:
            await self._accepted
        except asyncio.CancelledError:
            self.close()
            raise

    async def result(self, on_snapshot: Callable[[StepOutput], None] = lambda _: None) -> GenerationOutput:
        """Read the stream to its end; closes it if the caller is cancelled.

        Raises:
            SuperdraftError: the request ended with an error.
        """
        with contextlib.closing(self):
            async for step in self:
                if step.error is not None:
                    raise step.error
                if step.output is not None:
                    return step.output
                on_snapshot(step)
        raise AssertionError("a stream ended without a terminal output")

    @property
    def is_over(self) -> bool:
        """Whether the terminal output was read, or the stream closed."""
        return self._is_over

    def take(self) -> StepOutput | None:
        """The latest output, unless it was read before."""
        output, self._latest = self._latest, None
        if output is not None:
            self._is_over = output.is_terminal
        return output

    def signal_to(self, arrived: asyncio.Event) -> None:
        """Set `arrived` whenever there is something to `take`. The stream must not be iterated over from now on."""
        self._arrived = arrived
        if self._latest is not None:
            arrived.set()

    def close(self) -> None:
        """Stop reading. Ends the request if it has not ended already."""
        if not self._is_over and (self._latest is None or not self._latest.is_terminal):
            self._on_close(self)
        self._is_over = True

    # For the engine's thread.

    def accept(self) -> None:
        """Tell the reader that the engine has taken the request."""
        self._call(lambda: self._settle(None))

    def refuse(self, error: SuperdraftError) -> None:
        """Tell the reader why the engine did not take the request; nothing follows."""
        self._call(lambda: self._settle(error))

    def send(self, output: StepOutput) -> None:
        """Hand over an output; it replaces one that was not read yet."""
        self._call(lambda: self._put(output))

    def _call(self, callback: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:  # the loop is closed, and its readers are gone
            log.debug("output_dropped", reason="the event loop is closed")

    # For the event loop.

    def _settle(self, error: SuperdraftError | None) -> None:
        if self._accepted.done():  # settled before, or the reader has left
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

    As with a single stream, a slow reader gets only the latest output of each request. Close it, or read it to its end.

    Args:
        streams: no one else reads them.
        finish: what becomes of a terminal output before it is read.
    """

    def __init__(
        self, streams: Sequence[OutputStream], finish: Callable[[StepOutput], StepOutput] = lambda step: step
    ) -> None:
        self._streams = deque(streams)
        self._finish = finish
        self._arrived = asyncio.Event()
        for stream in self._streams:
            stream.signal_to(self._arrived)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StepOutput:
        while not all(stream.is_over for stream in self._streams):
            for _ in range(len(self._streams)):
                self._streams.rotate(-1)  # in turn, so that a busy stream does not hide the others
                output = self._streams[0].take()
                if output is not None:
                    return self._finish(output) if output.is_terminal else output
            self._arrived.clear()
            await self._arrived.wait()
        raise StopAsyncIteration

    async def results(self) -> dict[str, GenerationOutput]:
        """Read all to their ends. If one ends with an error or the caller is cancelled, the others are ended.

        Returns:
            The output of each, by its request id.

        Raises:
            SuperdraftError: the first error.
        """
        outputs: dict[str, GenerationOutput] = {}
        with contextlib.closing(self):
            async for step in self:
                if step.error is not None:
                    raise step.error
                if step.output is not None:
                    outputs[step.request_id] = step.output
        return outputs

    def close(self) -> None:
        """Stop reading. Ends the requests that have not ended already."""
        for stream in self._streams:
            stream.close()


async def open_all(
    starts: Sequence[Coroutine[Any, Any, OutputStream]], finish: Callable[[StepOutput], StepOutput] = lambda step: step
) -> MergedOutputs:
    """Queue any number of requests. If one is refused or the caller is cancelled, the others are ended.

    Args:
        starts: calls of `AsyncEngine.stream` or `FanOut.stream`.
        finish: see `MergedOutputs`.

    Raises:
        SuperdraftError: the engine refused a request.
    """
    if len(starts) == 1:  # needs no task of its own
        return MergedOutputs([await starts[0]], finish)
    tasks = [asyncio.create_task(start) for start in starts]
    try:
        return MergedOutputs(await asyncio.gather(*tasks), finish)
    except BaseException:
        for task in tasks:
            task.cancel()
        for stream in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(stream, OutputStream):
                stream.close()
        raise
