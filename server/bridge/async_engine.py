"""The bridge between the event loop and the engine.

One thread owns the engine. Coroutines put commands on a queue, which the thread carries out between two steps. Answers
go back through `loop.call_soon_threadsafe`. So nothing in the engine needs a lock. Long texts are encoded by a second
thread before they are queued, so that drafts do not wait for that.
"""

import asyncio
import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import structlog

from superdraft.decoding.config import EngineConfig
from superdraft.decoding.errors import (
    EngineError,
    EngineStoppedError,
    InvalidRequestError,
    SequenceFailedError,
    SuperdraftError,
    SupersededError,
)
from superdraft.decoding.outputs import GenerationOutput, StepOutput
from superdraft.decoding.prompt import PrefixedText
from superdraft.decoding.request import EngineRequest
from superdraft.server.bridge.admission_control import AdmissionControl
from superdraft.server.bridge.ahead import Ahead
from superdraft.server.bridge.engine_protocol import DecodingEngine, EngineTokenizer
from superdraft.server.bridge.faults import STEP_FAULT_MESSAGE, logged_fault, request_error
from superdraft.server.bridge.key_gaps import KeyGaps
from superdraft.server.bridge.output_stream import OutputStream
from superdraft.server.bridge.places import Place, slots_of
from superdraft.server.bridge.session_order import SessionOrder
from superdraft.server.edge.access import current_caller
from superdraft.server.edge.rate_limits import counted_caller
from superdraft.server.observe.metrics import Metrics
from superdraft.server.observe.stats import RequestRecord, current_record

MAX_CONSECUTIVE_FAILURES = 3
LONG_TEXT_CHARS = 4096
"""Texts longer than this are encoded by a thread of their own. This much takes the default model's tokenizer one to two
milliseconds."""

_STOPPING = "The server is shutting down and takes no more requests; send this one again to another server."

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Add:
    request: EngineRequest
    deadline: float | None  # on time.monotonic
    stream: OutputStream
    record: RequestRecord
    place: Place


@dataclass(frozen=True, slots=True)
class _Cancel:
    request_id: str
    stream: OutputStream


@dataclass(frozen=True, slots=True)
class _Ahead:
    request: EngineRequest


@dataclass(frozen=True, slots=True)
class _Stop:
    deadline: float  # on time.monotonic


class AsyncEngine:
    """Runs an engine in a thread of its own and awaits its answers.

    Every accepted request gets exactly one terminal output, whatever happens to the engine. An unexpected exception
    ends all requests, and the engine goes on. The thread ends after several failures in a row, or if the engine cannot
    drop its requests.

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
        self._commands: queue.SimpleQueue[_Add | _Cancel | _Ahead | _Stop] = queue.SimpleQueue()
        self._ahead = Ahead(engine, self._metrics)  # used only by the engine's thread
        self._requests: dict[str, _Add] = {}  # used only by the engine's thread
        self._gate = threading.Lock()  # closes `_accepting` and the queue together
        self._accepting = False
        self._failures = 0
        self._busy_since_s = 0.0  # on time.monotonic: when the present round began
        self._deadline: float | None = None
        self._order = SessionOrder()
        # One thread: encoding takes no more than one core from the model.
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="superdraft-encoder")
        self._thread = threading.Thread(target=self._run, name="superdraft-engine", daemon=True)

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken and the engine has not failed several times in a row."""
        return self._accepting and self._failures < MAX_CONSECUTIVE_FAILURES

    @property
    def has_failed(self) -> bool:
        """Whether the engine's thread has ended without being asked to. All its requests have been answered."""
        return self._thread.ident is not None and not self._thread.is_alive() and self._deadline is None

    def start(self) -> None:
        """Start the engine's thread. Call it once."""
        self._accepting = True
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
                caller: other callers may use the same name. The time limit includes the wait for admission.

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
        deadline = None if request.timeout_s is None else time.monotonic() + request.timeout_s
        record = current_record()
        if request.session_id is not None and current_caller():  # a caller's name has no space in it
            request = replace(request, session_id=f"{current_caller()} {request.session_id}")
        if request.session_id is not None:
            request = replace(request, key_gap_s=self._key_gaps.note(request.session_id, time.monotonic()))
        with self._order.arrival(request.session_id) as go:
            place = await self._admission.enter(
                record,
                *request.params.least_work,
                slots_of(request.params.num_rows, request.params.max_tokens),
                caller=counted_caller(),
                session=request.session_id,
                timeout_s=request.timeout_s,
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
                self._commands.put(_Cancel(request.request_id, stream))

            outputs = OutputStream(asyncio.get_running_loop(), cancel)
            self._post(_Add(request, deadline, outputs, record, place))
        await outputs.accepted()
        return outputs

    def look_ahead(self, request: EngineRequest) -> None:
        """Run a request that somebody is likely to send soon, as long as nothing else is to do; it has no answer."""
        with self._gate:
            if self._accepting:
                self._commands.put(_Ahead(replace(request, is_ahead=True)))

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

    def _count_unsent(self, fault: BaseException, record: RequestRecord) -> None:
        """Count a request that was admitted and did not reach the engine."""
        if isinstance(fault, asyncio.CancelledError):
            record.is_cancelled = True
            self._metrics.count_cancelled("client_gone")
        elif isinstance(fault, SupersededError):
            self._metrics.count_cancelled("superseded")

    async def stop(self, grace_s: float) -> None:
        """Take no more requests, let the running ones go on for at most `grace_s` seconds, then end the thread."""
        with self._gate:
            self._accepting = False
            self._commands.put(_Stop(time.monotonic() + grace_s))
        self._admission.close(_STOPPING)
        if self._thread.ident is not None:
            await asyncio.to_thread(self._thread.join)
        await asyncio.to_thread(self._encoder.shutdown)

    def _check_accepting(self) -> None:
        if not self._accepting:
            self._metrics.count_shed("shutdown")
            raise EngineStoppedError(_STOPPING)

    def _post(self, command: _Add) -> None:
        with self._gate:
            if self._accepting:
                self._commands.put(command)
                return
        command.place.release()
        self._check_accepting()

    # Everything below runs on the engine's thread.

    def _run(self) -> None:
        try:
            while not self._finished():
                self._turn()
        except BaseException:  # a library's SystemExit too would end the thread without a word
            log.exception("engine_thread_failed")
        finally:
            self._close()

    def _turn(self) -> None:
        """Carry out the queued commands, then take a step.

        Raises:
            RuntimeError: the engine cannot go on.
        """
        try:
            self._take_commands(wait=not (self._engine.has_unfinished or self._ahead.has_work))
            if self._ahead.has_work:  # so there are no requests
                self._ahead.step()
            elif self._engine.has_unfinished:
                self._step()
        except Exception as fault:  # the engine's state cannot be trusted any more: every request ends
            self._failures += 1
            self._abandon_all(fault)

    def _finished(self) -> bool:
        if self._deadline is None:
            return False
        return not self._engine.has_unfinished or time.monotonic() >= self._deadline

    def _take_commands(self, *, wait: bool) -> None:
        """Carry out the queued commands; with `wait`, sleep until there is one."""
        if wait and self._deadline is None:
            command = self._commands.get()
            self._busy_since_s = time.monotonic()
            self._carry_out(command)
        while not self._commands.empty():
            self._carry_out(self._commands.get())

    def _carry_out(self, command: _Add | _Cancel | _Ahead | _Stop) -> None:
        match command:
            case _Add():
                self._ahead.give_up()
                self._add(command)
            case _Ahead(likely):
                if not self._requests and self._deadline is None:
                    self._ahead.put(likely)
            case _Cancel(request_id, stream):
                request = self._requests.get(request_id)
                if request is not None and request.stream is stream:
                    self._engine.cancel(request_id)
                    del self._requests[request_id]  # not before: if `cancel` fails, it is tried again
                    request.place.release()
                    self._metrics.count_cancelled("client_gone")
            case _Stop(deadline):
                self._ahead.give_up()
                self._deadline = deadline if self._deadline is None else min(deadline, self._deadline)

    def _add(self, command: _Add) -> None:
        command.place.is_added = True
        request_id = command.request.request_id
        if request_id in self._requests:
            self._refuse(command, InvalidRequestError(f"The request id {request_id} is in use.", param="id"))
            return
        timeout_s = None if command.deadline is None else max(0.0, command.deadline - time.monotonic())
        try:
            self._engine.add_request(replace(command.request, timeout_s=timeout_s))
        except Exception as fault:
            self._refuse(command, fault)
            if not isinstance(fault, SuperdraftError):
                self._engine.cancel(request_id)  # it may have been added in part
        else:
            self._requests[request_id] = command
            if not command.request.is_warm_up:
                self._admission.costs.observe_request()
            command.stream.accept()

    def _refuse(self, command: _Add, fault: Exception) -> None:
        command.place.release()
        command.stream.refuse(request_error(fault, engine_request_id=command.request.request_id))

    def _step(self) -> None:
        num_rows = sum(request.place.num_rows for request in self._requests.values())
        outputs = self._engine.step()
        self._metrics.observe_step()
        step, costs, now_s = self._engine.last_step, self._admission.costs, time.monotonic()
        # What came before the step counts too: taking requests, handing over answers, waiting for the event loop.
        seconds = max(step.seconds, now_s - self._busy_since_s)
        self._busy_since_s = now_s
        decode_s = costs.decode_s(num_rows) if step.num_rows else 0.0
        if step.kind == "prefill":
            is_full = self._engine.num_waiting > 0 or not step.num_completed
            costs.observe_prefill(max(0.0, seconds - decode_s), step.num_completed, is_full=is_full)
        if step.num_rows:
            # With prompts in every step, a step that is quicker than this is all that shows that rows have become so.
            costs.observe_decode(num_rows, seconds if step.kind == "decode" else min(seconds, decode_s))
        costs.num_waiting = self._engine.num_waiting
        for output in outputs:
            self._deliver(output)
        if self._requests and not self._engine.has_unfinished:
            raise RuntimeError("the engine lost requests without answering them")
        self._failures = 0

    def _deliver(self, output: StepOutput) -> None:
        request = self._requests.get(output.request_id)
        if request is None:
            log.error("output_of_unknown_request", engine_request_id=output.request_id)
            return
        if output.is_terminal:
            if output.output is None and output.error is None:
                empty = RuntimeError("the engine gave a terminal output that holds nothing")
                output = StepOutput(output.request_id, error=logged_fault(empty))
            self._observe(request, output)
            del self._requests[output.request_id]  # not before: if counting fails, the request ends with an error
            request.place.release()
        request.stream.send(output)

    def _observe(self, request: _Add, terminal: StepOutput) -> None:
        if terminal.output is not None:
            request.record.add(terminal.output)
            self._metrics.observe_generation(request.request.params, terminal.output)
        elif isinstance(terminal.error, SupersededError):
            self._metrics.count_cancelled("superseded")

    def _abandon_all(self, fault: Exception) -> None:
        logged_fault(fault, requests=len(self._requests), consecutive=self._failures)
        self._end_all(SequenceFailedError, STEP_FAULT_MESSAGE)
        self._ahead.give_up()
        if self._engine.has_unfinished:
            raise RuntimeError("the engine holds requests that it cannot drop")
        if self._failures >= MAX_CONSECUTIVE_FAILURES:
            raise RuntimeError(f"the engine failed {self._failures} times in a row")

    def _end_all(self, kind: type[EngineError], message: str) -> None:
        """End every request with an error of its own, since each one's handler adds a traceback to it."""
        ended = dict(self._requests)
        self._requests.clear()
        for request_id, request in ended.items():
            request.place.release()
            request.stream.send(StepOutput(request_id, error=kind(message)))
        for request_id in ended:
            try:
                self._engine.cancel(request_id)
            except Exception as fault:
                logged_fault(fault, engine_request_id=request_id)

    def _close(self) -> None:
        """Refuse the queued requests, and end the running ones."""
        with self._gate:
            self._accepting = False
        while not self._commands.empty():
            command = self._commands.get()
            if isinstance(command, _Add):
                self._metrics.count_shed("shutdown")
                self._refuse(command, EngineStoppedError(_STOPPING))
        self._metrics.count_cancelled("shutdown", len(self._requests))
        self._end_all(EngineStoppedError, "The server shut down before this request was finished; send it again.")
