"""The bridge between the event loop and the engine: requests in, outputs out.

The engine has a thread of its own (`engine_thread.py`). Long texts are encoded by a second thread before they go there,
so that drafts do not wait for that.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

from superdraft.decoding.config import EngineConfig
from superdraft.decoding.errors import EngineStoppedError, SupersededError
from superdraft.decoding.outputs import GenerationOutput
from superdraft.decoding.prompt import PrefixedText
from superdraft.decoding.request import EngineRequest
from superdraft.server.bridge.admission_control import AdmissionControl
from superdraft.server.bridge.engine_protocol import DecodingEngine, EngineTokenizer
from superdraft.server.bridge.engine_thread import STOPPING_MESSAGE, Add, Cancel, EngineThread, LookAhead
from superdraft.server.bridge.faults import request_error
from superdraft.server.bridge.key_gaps import KeyGaps
from superdraft.server.bridge.output_stream import OutputStream
from superdraft.server.bridge.session_order import SessionOrder
from superdraft.server.edge.access import current_caller
from superdraft.server.edge.rate_limits import counted_caller
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
    """

    def __init__(
        self, engine: DecodingEngine, metrics: Metrics | None = None, admission: AdmissionControl | None = None
    ) -> None:
        self._engine = engine
        self.tokenizer: EngineTokenizer = engine.tokenizer
        self.config: EngineConfig = engine.config
        self.max_model_len: int = engine.max_model_len
        self.num_slots: int = engine.num_slots
        self._metrics = metrics or Metrics()
        self._admission = admission or AdmissionControl()
        self._key_gaps = KeyGaps()
        self._order = SessionOrder()
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

    async def generate(self, request: EngineRequest) -> GenerationOutput:
        """Queue a request and wait for its drafts. Cancelling the awaiting task cancels the request.

        Raises:
            InvalidRequestError: the engine refuses the prompt or the parameters.
            OverloadedError: the server is full.
            SequenceFailedError: this request failed.
            SupersededError: a newer request of the same session replaced it.
            EngineStoppedError: the engine is stopping or has stopped.
        """
        return await (await self.stream(request)).result()

    async def stream(self, request: EngineRequest) -> OutputStream:
        """Queue a request; returns when the engine has taken it.

        Args:
            request: with `snapshots`, the stream has one per step, unless its reader is slower. Sessions belong to the
                caller: other callers may use the same name.

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
        record = current_record()
        if request.session_id is not None and current_caller():  # a caller's name has no space in it
            request = replace(request, session_id=f"{current_caller()} {request.session_id}")
        if request.session_id is not None:
            request = replace(request, key_gap_s=self._key_gaps.note(request.session_id, time.monotonic()))
        with self._order.arrival(request.session_id) as go:
            place = await self._admission.enter(
                record,
                *request.params.least_work,
                self._engine.num_needed(request.params),
                caller=counted_caller(),
                session=request.session_id,
                deadline_s=request.deadline_s,
                is_warm_up=request.is_warm_up,
            )
            record.begin(request.params)
            try:
                request = await self._prepared(request)
                go()
            except BaseException as fault:
                place.release()
                self._count_unsent(fault, record)
                raise

            def cancel(stream: OutputStream) -> None:
                record.is_cancelled = True
                self._thread.cancel(Cancel(request.request_id, stream))

            outputs = OutputStream(asyncio.get_running_loop(), cancel)
            if not self._thread.put(Add(request, outputs, record, place)):
                place.release()
                raise self._stopping()
        await outputs.accepted()
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
        """Take no more requests, let the running ones go on for at most `grace_s` seconds, then end the thread."""
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
