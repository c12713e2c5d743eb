"""Server-sent events: a request's outputs as `data:` lines, the last of them `[DONE]`.

No library: Starlette already ends the answer of a client that left, event ids and retries are not used, and the
keep-alive comment must not be the usual `: ping`, on which an editor plugin chokes.
"""

import asyncio
from collections.abc import AsyncIterator, Callable

import structlog
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from superdraft.decoding.outputs import StepOutput
from superdraft.server.error_map import failure_of
from superdraft.server.output_stream import OutputStream

KEEP_ALIVE_S = 5.0
_KEEP_ALIVE = b": keep-alive\n\n"
_DONE = b"data: [DONE]\n\n"

log = structlog.get_logger(__name__)


class EventStream(StreamingResponse):
    """Sends a request's outputs as they come. A client that leaves ends its request.

    Args:
        outputs: closed when the answer is over, however it ends.
        render: the event for an output that is no error.
    """

    media_type = "text/event-stream"

    def __init__(self, outputs: OutputStream, render: Callable[[StepOutput], BaseModel]) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}  # proxies must not hold events back
        super().__init__(_events(outputs, render), headers=headers)
        self._outputs = outputs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        try:
            await super().__call__(scope, receive, send)
        finally:  # not in the generator: one that never started runs no `finally`
            self._outputs.close()


async def _events(outputs: OutputStream, render: Callable[[StepOutput], BaseModel]) -> AsyncIterator[bytes]:
    try:
        while True:
            try:
                async with asyncio.timeout(KEEP_ALIVE_S):
                    output = await anext(outputs)
            except TimeoutError:
                yield _KEEP_ALIVE
                continue
            if output.error is not None:
                failure = failure_of(output.error)
                failure.log()
                yield _event(failure.body)
            else:
                yield _event(render(output))
            if output.is_terminal:
                break
    except Exception as error:
        log.exception("unexpected_error")
        yield _event(failure_of(error).body)
    yield _DONE


def _event(data: BaseModel) -> bytes:
    return b"data: " + data.model_dump_json().encode() + b"\n\n"
