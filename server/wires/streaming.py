"""Server-sent events: a request's outputs as `data:` lines, ending with `[DONE]`.

No library is used: Starlette already ends the answer to a client that left, event ids and retries are not needed, and
the keep-alive comment must not be the usual `: ping`, which breaks an editor plugin.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

import structlog
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from superdraft.decoding.outputs import StepOutput
from superdraft.server.bridge.output_stream import MergedOutputs, OutputStream
from superdraft.server.edge.error_map import failure_of

KEEP_ALIVE_S = 5.0
_KEEP_ALIVE = b": keep-alive\n\n"
_DONE = b"data: [DONE]\n\n"

log = structlog.get_logger(__name__)


Render = Callable[[StepOutput], BaseModel | Sequence[BaseModel]]


class EventStream(StreamingResponse):
    """Sends the outputs of one or several requests as they come. If the client leaves, the requests end.

    Args:
        outputs: closed when the answer has ended, for whatever reason. The first error among them ends the answer.
        render: makes any number of events from an output that is not an error.
        headers: in addition to those of every event stream.
    """

    media_type = "text/event-stream"

    def __init__(
        self, outputs: OutputStream | MergedOutputs, render: Render, headers: Mapping[str, str] | None = None
    ) -> None:
        own = {"cache-control": "no-cache", "x-accel-buffering": "no"}  # proxies must not buffer events
        super().__init__(_events(outputs, render), headers={**own, **(headers or {})})
        self._outputs = outputs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        try:
            await super().__call__(scope, receive, send)
        finally:  # not in the generator, whose `finally` does not run if it never started
            self._outputs.close()


async def _events(outputs: OutputStream | MergedOutputs, render: Render) -> AsyncIterator[bytes]:
    clock = asyncio.get_running_loop().time
    sent_s = clock()
    try:
        while True:
            try:
                async with asyncio.timeout_at(sent_s + KEEP_ALIVE_S):
                    output = await anext(outputs)
            except TimeoutError:
                yield _KEEP_ALIVE
                sent_s = clock()
                continue
            except StopAsyncIteration:
                break
            if output.error is not None:
                failure = failure_of(output.error)
                failure.log()
                yield _event(failure.body)
                break
            rendered = render(output)
            for event in [rendered] if isinstance(rendered, BaseModel) else rendered:
                yield _event(event)
                sent_s = clock()
    except Exception as error:
        log.exception("unexpected_error")
        yield _event(failure_of(error).body)
    yield _DONE


def _event(data: BaseModel) -> bytes:
    return b"data: " + data.model_dump_json().encode() + b"\n\n"
