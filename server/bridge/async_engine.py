"""The bridge between the event loop and the engine: requests in, outputs out.

The engine has a thread of its own (`engine_thread.py`). Long texts are encoded by a second thread before they go there,
so that drafts do not wait for that.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

from superdraft.decoding.config import EngineConfig
from superdraft.decoding.errors import EngineStoppedError, SupersededError
from superdraft.decoding.prompt import PrefixedText
from superdraft.decoding.request import EngineRequest
from superdraft.server.bridge.admission import Admission
from superdraft.server.bridge.engine_protocol import DecodingEngine, EngineTokenizer
from superdraft.server.bridge.engine_thread import STOPPING_MESSAGE, Add, Cancel, EngineThread, LookAhead
from superdraft.server.bridge.faults import request_error
from superdraft.server.bridge.output_stream import OutputStream
from superdraft.server.bridge.typists import Ticket, Typist
from superdraft.server.observe.metrics import Metrics
from superdraft.server.observe.request_record import RequestRecord, current_record

T = TypeVar("T")

LONG_TEXT_CHARS = 4096
"""Texts longer than this are encoded by a thread of their own. This much takes the default model's tokenizer one to two
milliseconds."""


class AsyncEngine:
    """Runs an engine in a thread of its own and awaits its answers.

    Every accepted request gets exactly one terminal output, whatever happens to the engine.

    Args:
        engine: nothing else uses it.
        metrics: where requests and steps are counted; None: they are not.
        admission: decides which requests go in under overload; None: all do.

    Attributes:
        tokenizer: the engine's.
        config: the engine's limits.
        max_model_len: most tokens of a prompt and a draft together.
        num_slots: most requests that can run at once.
        typists: of whom requests come.
    """

    def __init__(
        self, engine: DecodingEngine, metrics: Metrics | None = None, admission: Admission | None = None
    ) -> None:
        self._engine = engine
        self.tokenizer: EngineTokenizer = engine.tokenizer
        self.config: EngineConfig = engine.config
        self.max_model_len: int = engine.max_model_len
        self.num_slots: int = engine.num_slots
        self._metrics = metrics or Metrics()
        self._admission = admission or Admission(load=engine.load)
        self.typists = self._admission.typists
        # One thread: encoding takes no more than one core from the model.
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="superdraft-encoder")
        self._thread = EngineThread(engine, self._metrics)

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken and the engine has not failed several times in a row."""
        return self._thread.is_accepting and self._thread.is_sound

    @property
    def has_failed(self) -> bool:
        """Whether the engine's thread has ended without being asked to. All its requests have been answered."""
        return self._thread.has_failed

    def start(self) -> None:
        """Start the engine's thread. Call it once."""
        self._thread.start()

    async def stream(self, request: EngineRequest, typist: Typist | None = None) -> OutputStream:
        """Queue a request; returns when the engine has taken it. Cancelling the awaiting task cancels the request.

        Args:
            request: with `snapshots`, the stream has one per step, unless its reader is slower.
            typist: of whom it comes; None: of a session-less caller without a name.

        Returns:
            The outputs. Closing the stream before its end cancels the request at the next step boundary.

        Raises:
            InvalidRequestError: the engine refuses the prompt or the parameters.
            OverloadedError: the server is full.
            SupersededError: a newer request of the same session came before this one reached the engine.
            SequenceFailedError: the text could not be encoded.
            EngineStoppedError: the engine is stopping or has stopped.
        """
        self._check_accepting()
        typist = typist or self.typists.of()
        record, loop = current_record(), asyncio.get_running_loop()
        with typist.arrival(loop.time()) as go:
            ticket = await self._admission.enter(
                record,
                typist,
                *request.params.least_work,
                self._engine.num_needed(request.params),
                deadline_s=request.deadline_s,
                is_warm_up=request.is_warm_up,
            )
            record.begin(request.params)
            try:
                request = await self._prepared(request)
                go()
            except BaseException as fault:
                ticket.release()
                self._count_unsent(fault, record)
                raise
            outputs = self._put(
                replace(request, key_gap_s=typist.gap_s, waiting_since_s=typist.waiting_since_s), record, ticket
            )
        await outputs.accepted()
        return outputs

    def _put(self, request: EngineRequest, record: RequestRecord, ticket: Ticket) -> OutputStream:
        def cancel(stream: OutputStream) -> None:
            record.is_cancelled = True
            self._thread.cancel(Cancel(request.request_id, stream))

        outputs = OutputStream(ticket.loop, cancel)
        if not self._thread.put(Add(request, outputs, record, ticket)):
            ticket.release()
            raise self._stopping()
        return outputs

    def look_ahead(self, request: EngineRequest) -> None:
        """Run a request that somebody is likely to send soon, as long as nothing else is to do; it has no answer."""
        self._thread.put(LookAhead(replace(request, is_ahead=True)))

    async def _prepared(self, request: EngineRequest) -> EngineRequest:
        """The request with its text encoded, if it is long."""
        text = request.prompt.text if isinstance(request.prompt, PrefixedText) else request.prompt
        if not isinstance(text, str) or len(text) <= LONG_TEXT_CHARS:
            return request
        self._check_accepting()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._encoder, self._engine.prepare, request)
        except Exception as fault:
            raise request_error(fault, engine_request_id=request.request_id) from None

    async def encoded(self, encode: Callable[[], T]) -> T:
        """What `encode` returns, run by the thread that encodes long texts. Not run if cancelled before its turn."""
        self._check_accepting()
        return await asyncio.get_running_loop().run_in_executor(self._encoder, encode)

    def _count_unsent(self, fault: BaseException, record: RequestRecord) -> None:
        """Count a request that was admitted and did not reach the engine."""
        if isinstance(fault, asyncio.CancelledError):
            record.is_cancelled = True
            self._metrics.count_cancelled("client_gone")
        elif isinstance(fault, SupersededError):
            self._metrics.count_cancelled("superseded")

    async def stop(self, grace_s: float) -> None:
        """Take no more requests, let the running ones continue for at most `grace_s` seconds, then end the thread."""
        self._thread.stop_accepting(grace_s)
        self._admission.close(STOPPING_MESSAGE)
        await asyncio.to_thread(self._thread.join)
        await asyncio.to_thread(self._encoder.shutdown)

    def _check_accepting(self) -> None:
        if not self._thread.is_accepting:
            raise self._stopping()

    def _stopping(self) -> EngineStoppedError:
        self._metrics.count_shed("shutdown")
        return EngineStoppedError(STOPPING_MESSAGE)
