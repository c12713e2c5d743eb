"""The bridge between the event loop and the engine.

One thread owns the engine. Coroutines post commands on a queue, which the thread carries out between two steps; it
answers through `loop.call_soon_threadsafe`. Nothing in the engine needs a lock.
"""

import asyncio
import contextlib
import queue
import threading
import time
from dataclasses import dataclass, replace

import structlog

from superdraft.decoding.errors import (
    EngineError,
    EngineStoppedError,
    InvalidRequestError,
    SequenceFailedError,
    SuperdraftError,
    SupersededError,
)
from superdraft.decoding.outputs import GenerationOutput, StepOutput
from superdraft.decoding.request import EngineRequest
from superdraft.server.bridge.admission_control import AdmissionControl, Place
from superdraft.server.bridge.engine_protocol import DecodingEngine
from superdraft.server.bridge.output_stream import OutputStream
from superdraft.server.edge.access import current_caller
from superdraft.server.observe.metrics import Metrics
from superdraft.server.observe.stats import RequestRecord, current_record

MAX_CONSECUTIVE_FAILURES = 3
_STOPPING = "The server is shutting down and takes no more requests; send it again to another one."

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
class _Stop:
    deadline: float  # on time.monotonic


class AsyncEngine:
    """Runs an engine in a thread of its own and awaits its answers.

    Every accepted request gets exactly one terminal answer, whatever happens to the engine.

    Args:
        engine: nothing else uses it.
        metrics: where requests and steps are counted; None: nobody reads them.
        admission: who may go in when there is too much to do; None: everybody.
    """

    def __init__(
        self, engine: DecodingEngine, metrics: Metrics | None = None, admission: AdmissionControl | None = None
    ) -> None:
        self._engine = engine
        self._metrics = metrics or Metrics()
        self._admission = admission or AdmissionControl()
        self._commands: queue.SimpleQueue[_Add | _Cancel | _Stop] = queue.SimpleQueue()
        self._requests: dict[str, _Add] = {}  # touched by the engine thread alone
        self._gate = threading.Lock()  # closes `_accepting` and the queue together
        self._accepting = False
        self._failures = 0
        self._deadline: float | None = None
        self._thread = threading.Thread(target=self._run, name="superdraft-engine", daemon=True)

    @property
    def engine(self) -> DecodingEngine:
        """The engine; other threads may read its attributes, but call nothing."""
        return self._engine

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken and the engine does not keep failing."""
        return self._accepting and self._failures < MAX_CONSECUTIVE_FAILURES

    def start(self) -> None:
        """Start the engine thread. Once only."""
        self._accepting = True
        self._thread.start()

    async def generate(self, request: EngineRequest) -> GenerationOutput:
        """Queue a request and wait for its drafts. Cancelling the awaiting task cancels the request.

        Raises:
            InvalidRequestError: the engine refuses the prompt or the parameters.
            OverloadedError: the server has too much to do.
            SequenceFailedError: this request failed.
            SupersededError: a newer request of the same session took its place.
            EngineStoppedError: the engine stops, or has stopped.
        """
        outputs = await self.stream(request)
        with contextlib.closing(outputs):
            async for output in outputs:
                if output.error is not None:
                    raise output.error
                if output.output is not None:
                    return output.output
        raise AssertionError("a stream ended without a terminal output")

    async def stream(self, request: EngineRequest) -> OutputStream:
        """Queue a request; returns when the engine has taken it.

        Args:
            request: with `snapshots`, the stream holds one for each step, unless the reader is slower. Its session is
                one of the caller's: other callers may use the same name. Its time includes the waiting for a place.

        Returns:
            The outputs. Closing the stream before its end cancels the request at the next step boundary.

        Raises:
            InvalidRequestError: the engine refuses the prompt or the parameters.
            OverloadedError: the server has too much to do.
            SupersededError: a newer request of the same session came before this one was let in.
            EngineStoppedError: the engine stops, or has stopped.
        """
        self._check_accepting()
        deadline = None if request.timeout_s is None else time.monotonic() + request.timeout_s
        record = current_record()
        if request.session_id is not None and current_caller():  # whose name has no space
            request = replace(request, session_id=f"{current_caller()} {request.session_id}")
        place = await self._admission.enter(record, request.params.num_rows, request.session_id, request.timeout_s)

        def cancel(stream: OutputStream) -> None:
            record.is_cancelled = True
            self._commands.put(_Cancel(request.request_id, stream))

        outputs = OutputStream(asyncio.get_running_loop(), cancel)
        record.begin(request.params)
        self._post(_Add(request, deadline, outputs, record, place))
        try:
            await outputs.accepted()
        except asyncio.CancelledError:
            outputs.close()
            raise
        return outputs

    async def stop(self, grace_s: float) -> None:
        """Take no more requests, let the running ones finish for `grace_s` seconds, then end the thread."""
        with self._gate:
            self._accepting = False
            self._commands.put(_Stop(time.monotonic() + grace_s))
        self._admission.close(_STOPPING)
        if self._thread.ident is not None:
            await asyncio.to_thread(self._thread.join)

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

    # Below: the engine thread.

    def _run(self) -> None:
        try:
            while not self._finished():
                self._take_commands(wait=not self._engine.has_unfinished)
                if self._engine.has_unfinished:
                    self._step()
        except Exception:
            log.exception("engine_thread_failed")
        finally:
            self._close()

    def _finished(self) -> bool:
        if self._deadline is None:
            return False
        return not self._engine.has_unfinished or time.monotonic() >= self._deadline

    def _take_commands(self, *, wait: bool) -> None:
        """Carry out what is queued; with `wait`, sleep until there is something."""
        if wait and self._deadline is None:
            self._carry_out(self._commands.get())
        while not self._commands.empty():
            self._carry_out(self._commands.get())

    def _carry_out(self, command: _Add | _Cancel | _Stop) -> None:
        match command:
            case _Add():
                self._add(command)
            case _Cancel(request_id, stream):
                request = self._requests.get(request_id)
                if request is not None and request.stream is stream:
                    del self._requests[request_id]
                    self._engine.cancel(request_id)
                    request.place.release()
                    self._metrics.count_cancelled("client_gone")
            case _Stop(deadline):
                self._deadline = deadline if self._deadline is None else min(deadline, self._deadline)

    def _add(self, command: _Add) -> None:
        request_id = command.request.request_id
        if request_id in self._requests:
            error = InvalidRequestError(f"The request id {request_id} is in use.", param="id")
            self._refuse(command, error)
            return
        timeout_s = None if command.deadline is None else max(0.0, command.deadline - time.monotonic())
        try:
            self._engine.add_request(replace(command.request, timeout_s=timeout_s))
        except SuperdraftError as error:
            self._refuse(command, error)
        except Exception:
            log.exception("add_request_failed", engine_request_id=request_id)
            self._refuse(command, SequenceFailedError("The engine failed on this request; the server's log says why."))
        else:
            self._requests[request_id] = command
            command.stream.accept()

    def _refuse(self, command: _Add, error: SuperdraftError) -> None:
        command.place.release()
        command.stream.refuse(error)

    def _step(self) -> None:
        try:
            outputs = self._engine.step()
        except Exception:
            self._failures += 1
            log.exception("engine_step_failed", consecutive=self._failures, requests=len(self._requests))
            self._abandon_all()
            return
        self._failures = 0
        self._metrics.observe_step()
        for output in outputs:
            self._deliver(output)
        if self._requests and not self._engine.has_unfinished:
            log.error("engine_lost_requests", requests=len(self._requests))
            self._abandon_all()

    def _deliver(self, output: StepOutput) -> None:
        request = self._requests.get(output.request_id)
        if request is None:
            log.error("output_of_unknown_request", engine_request_id=output.request_id)
            return
        if output.is_terminal:
            del self._requests[output.request_id]
            request.place.release()
            if output.output is None and output.error is None:
                error = SequenceFailedError("The engine gave an empty answer; this is a bug in the server.")
                output = StepOutput(output.request_id, error=error)
            self._observe(request, output)
        request.stream.send(output)

    def _observe(self, request: _Add, terminal: StepOutput) -> None:
        if terminal.output is not None:
            request.record.add(terminal.output)
            self._metrics.observe_generation(request.request.params, terminal.output)
        elif isinstance(terminal.error, SupersededError):
            self._metrics.count_cancelled("superseded")

    def _abandon_all(self) -> None:
        """After a failed step, whose state cannot be trusted: drop every request, and tell its caller."""
        self._end_all(SequenceFailedError, "The engine failed while decoding; the server's log says why. Try again.")
        if self._engine.has_unfinished:
            raise RuntimeError("the engine holds requests that it cannot drop")

    def _end_all(self, kind: type[EngineError], message: str) -> None:
        ended = dict(self._requests)
        self._requests.clear()
        for request_id, request in ended.items():
            request.place.release()
            request.stream.send(StepOutput(request_id, error=kind(message)))
        for request_id in ended:
            self._engine.cancel(request_id)

    def _close(self) -> None:
        """Refuse what comes, answer what is left."""
        with self._gate:
            self._accepting = False
        while not self._commands.empty():
            command = self._commands.get()
            if isinstance(command, _Add):
                self._metrics.count_shed("shutdown")
                self._refuse(command, EngineStoppedError(_STOPPING))
        self._metrics.count_cancelled("shutdown", len(self._requests))
        self._end_all(EngineStoppedError, "The server shut down before this request was finished; send it again.")
