"""The engine's thread: the only one that uses the engine.

Others put commands on a queue, which the thread carries out between two steps. Answers go back through
`loop.call_soon_threadsafe`. So nothing in the engine needs a lock.
"""

import queue
import threading
import time
from dataclasses import dataclass

import structlog

from superdraft.decoding.errors import (
    EngineError,
    EngineStoppedError,
    InvalidRequestError,
    SequenceFailedError,
    SuperdraftError,
)
from superdraft.decoding.outputs import StepOutput
from superdraft.decoding.request import EngineRequest
from superdraft.server.bridge.ahead import Ahead
from superdraft.server.bridge.engine_protocol import DecodingEngine
from superdraft.server.bridge.faults import STEP_FAULT_MESSAGE, logged_fault, request_error
from superdraft.server.bridge.output_stream import OutputStream
from superdraft.server.bridge.typists import Ticket, superseded
from superdraft.server.observe.metrics import Metrics
from superdraft.server.observe.request_record import RequestRecord

MAX_CONSECUTIVE_FAILURES = 3
STOPPING_MESSAGE = "The server is shutting down and takes no more requests; send this one again to another server."

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Add:
    """Run a request. It ends an unfinished one of its typist.

    Attributes:
        request: what to run.
        stream: takes the outputs.
        record: takes the figures.
        ticket: is released when the request has ended.
    """

    request: EngineRequest
    stream: OutputStream
    record: RequestRecord
    ticket: Ticket


@dataclass(frozen=True, slots=True)
class Cancel:
    """End a request without an output, unless it has ended or another one has its id."""

    request_id: str
    stream: OutputStream


@dataclass(frozen=True, slots=True)
class LookAhead:
    """Run a request that somebody is likely to send soon, while nothing else is to do."""

    request: EngineRequest


@dataclass(frozen=True, slots=True)
class _Stop:
    deadline: float  # on time.monotonic


class EngineThread:
    """Runs an engine. Every request that was put here gets exactly one terminal output, whatever happens to the engine.

    An unexpected exception ends all requests; the engine continues. The thread ends after several failures in a row,
    or if the engine cannot drop its requests.

    Args:
        engine: nothing else uses it.
        metrics: where requests and steps are counted.
    """

    def __init__(self, engine: DecodingEngine, metrics: Metrics) -> None:
        self._engine = engine
        self._metrics = metrics
        self._commands: queue.SimpleQueue[Add | Cancel | LookAhead | _Stop] = queue.SimpleQueue()
        self._gate = threading.Lock()  # closes `_accepting` and the queue together
        self._accepting = False
        self._ahead = Ahead(engine, metrics)
        self._requests: dict[str, Add] = {}
        self._failures = 0
        self._deadline: float | None = None
        self._thread = threading.Thread(target=self._run, name="superdraft-engine", daemon=True)

    # For other threads.

    @property
    def is_accepting(self) -> bool:
        """Whether requests are taken."""
        return self._accepting

    @property
    def is_sound(self) -> bool:
        """Whether the engine has not failed several times in a row."""
        return self._failures < MAX_CONSECUTIVE_FAILURES

    @property
    def has_failed(self) -> bool:
        """Whether the thread has ended without being asked to. All its requests have been answered."""
        return self._thread.ident is not None and not self._thread.is_alive() and self._deadline is None

    @property
    def num_commands(self) -> int:
        """Commands that have not been carried out."""
        return self._commands.qsize()

    def start(self) -> None:
        """Start the thread. Call it once."""
        self._accepting = True
        self._thread.start()

    def put(self, command: Add | LookAhead) -> bool:
        """Queue a command; returns False, and does nothing, if requests are not taken any more."""
        with self._gate:
            if self._accepting:
                self._commands.put(command)
            return self._accepting

    def cancel(self, command: Cancel) -> None:
        """Queue the end of a request."""
        self._commands.put(command)

    def stop_accepting(self, grace_s: float) -> None:
        """Take no more requests, let the running ones continue for at most `grace_s` seconds, then end the thread."""
        with self._gate:
            self._accepting = False
            self._commands.put(_Stop(time.monotonic() + grace_s))

    def join(self) -> None:
        """Wait until the thread has ended, if it was started."""
        if self._thread.ident is not None:
            self._thread.join()

    # For the thread itself.

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
            RuntimeError: the engine cannot continue.
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
            self._carry_out(self._commands.get())
        while not self._commands.empty():
            self._carry_out(self._commands.get())

    def _carry_out(self, command: Add | Cancel | LookAhead | _Stop) -> None:
        match command:
            case Add():
                self._ahead.give_up()
                self._add(command)
            case LookAhead(likely):
                if not self._requests and self._deadline is None:
                    self._ahead.put(likely)
            case Cancel(request_id, stream):
                request = self._requests.get(request_id)
                if request is not None and request.stream is stream:
                    self._drop(request)
                    self._metrics.count_cancelled("client_gone")
            case _Stop(deadline):
                self._ahead.give_up()
                self._deadline = deadline if self._deadline is None else min(deadline, self._deadline)

    def _add(self, command: Add) -> None:
        command.ticket.is_added = True
        request_id = command.request.request_id
        if request_id in self._requests:
            self._refuse(command, InvalidRequestError(f"The request id {request_id} is in use.", param="id"))
            return
        try:
            self._engine.add_request(command.request)
        except Exception as fault:
            self._refuse(command, fault)
            if not isinstance(fault, SuperdraftError):
                self._engine.cancel(request_id)  # it may have been added in part
        else:
            self._requests[request_id] = command
            command.stream.accept()
            self._supersede(command)

    def _supersede(self, newer: Add) -> None:
        """End what the typist of a request has asked for before; not earlier, since the engine might refuse it."""
        typist = newer.ticket.typist
        for older in list(self._requests.values()) if typist.session else ():
            if older.ticket.typist is typist and older is not newer:
                self._drop(older)
                self._metrics.count_cancelled("superseded")
                older.stream.send(StepOutput(older.request.request_id, error=superseded()))

    def _drop(self, request: Add) -> None:
        request_id = request.request.request_id
        self._engine.cancel(request_id)
        del self._requests[request_id]  # not before: if `cancel` fails, it is tried again
        request.ticket.release()

    def _refuse(self, command: Add, fault: Exception) -> None:
        command.ticket.release()
        command.stream.refuse(request_error(fault, engine_request_id=command.request.request_id))

    def _step(self) -> None:
        outputs = self._engine.step()
        self._metrics.observe_step(self._engine.last_step)
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
            request.ticket.release()
        request.stream.send(output)

    def _observe(self, request: Add, terminal: StepOutput) -> None:
        if terminal.output is not None:
            request.record.add(terminal.output)
            self._metrics.observe_generation(request.request.params, terminal.output)
            request.ticket.typist.waiting_since_s = None

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
            request.ticket.release()
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
            if isinstance(command, Add):
                self._metrics.count_shed("shutdown")
                self._refuse(command, EngineStoppedError(STOPPING_MESSAGE))
        self._metrics.count_cancelled("shutdown", len(self._requests))
        self._end_all(EngineStoppedError, "The server shut down before this request was finished; send it again.")
