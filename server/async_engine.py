"""The bridge between the event loop and the engine.

One thread owns the engine. Coroutines post commands on a queue; the thread answers through
`loop.call_soon_threadsafe`. Nothing in the engine needs a lock.
"""

import asyncio
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from superdraft.decoding.config import EngineConfig
from superdraft.decoding.errors import EngineStoppedError, InvalidRequestError, SequenceFailedError, SuperdraftError
from superdraft.decoding.ngram import NgramScorer
from superdraft.decoding.outputs import GenerationOutput, StepOutput
from superdraft.decoding.params import GenerationParams

MAX_CONSECUTIVE_FAILURES = 3
_STOPPING = "The server is shutting down and takes no more requests; send it again to another one."

log = structlog.get_logger(__name__)


class TextTokenizer(Protocol):
    """What the server asks of the engine's tokenizer."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of these token ids."""


class DecodingEngine(Protocol):
    """What the server asks of `superdraft.decoding.engine.Engine`. All but the attributes is for one thread only."""

    @property
    def tokenizer(self) -> TextTokenizer:
        """The model's tokenizer."""

    @property
    def config(self) -> EngineConfig:
        """The engine's limits."""

    @property
    def max_model_len(self) -> int:
        """The longest prompt and draft together, in tokens."""

    @property
    def has_unfinished(self) -> bool:
        """Whether `step` has something to do."""

    def add_request(
        self,
        request_id: str,
        prompt: str | Sequence[int],
        params: GenerationParams,
        scorer: NgramScorer[Any] | None = None,
    ) -> None:
        """Queue a request. Raises InvalidRequestError."""

    def cancel(self, request_id: str) -> bool:
        """Forget a request; no output follows for it."""

    def step(self) -> list[StepOutput]:
        """Advance every running sequence."""


@dataclass(frozen=True, slots=True)
class _Reply:
    """Where the terminal answer of one request goes."""

    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[GenerationOutput]"

    def send(self, answer: GenerationOutput | SuperdraftError) -> None:
        try:
            self.loop.call_soon_threadsafe(self._settle, answer)
        except RuntimeError:  # the caller's loop is closed: nobody is left to hear
            log.debug("answer_dropped", reason="the event loop is closed")

    def _settle(self, answer: GenerationOutput | SuperdraftError) -> None:
        if self.future.done():  # cancelled meanwhile
            return
        if isinstance(answer, GenerationOutput):
            self.future.set_result(answer)
        else:
            self.future.set_exception(answer)


@dataclass(frozen=True, slots=True)
class _Add:
    request_id: str
    prompt: str | Sequence[int]
    params: GenerationParams
    scorer: NgramScorer[Any] | None
    reply: _Reply


@dataclass(frozen=True, slots=True)
class _Cancel:
    request_id: str


@dataclass(frozen=True, slots=True)
class _Stop:
    deadline: float  # on time.monotonic


class AsyncEngine:
    """Runs an engine in a thread of its own and awaits its answers.

    Every request that `generate` accepts gets exactly one terminal answer, whatever happens to the engine.
    """

    def __init__(self, engine: DecodingEngine) -> None:
        self._engine = engine
        self._commands: queue.SimpleQueue[_Add | _Cancel | _Stop] = queue.SimpleQueue()
        self._replies: dict[str, _Reply] = {}  # touched by the engine thread alone
        self._gate = threading.Lock()  # closes `_accepting` and the queue together
        self._accepting = False
        self._failures = 0
        self._deadline: float | None = None
        self._thread = threading.Thread(target=self._run, name="superdraft-engine", daemon=True)

    @property
    def engine(self) -> DecodingEngine:
        """The engine; other threads may read `tokenizer`, `config` and `max_model_len` only."""
        return self._engine

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken and the engine does not keep failing."""
        return self._accepting and self._failures < MAX_CONSECUTIVE_FAILURES

    def start(self) -> None:
        """Start the engine thread. Once only."""
        self._accepting = True
        self._thread.start()

    async def generate(
        self,
        request_id: str,
        prompt: str | Sequence[int],
        params: GenerationParams,
        scorer: NgramScorer[Any] | None = None,
    ) -> GenerationOutput:
        """Queue a request and wait for its drafts. Cancelling the awaiting task cancels the request.

        Raises:
            InvalidRequestError: the engine refuses the prompt or the parameters.
            SequenceFailedError: this request failed.
            EngineStoppedError: the engine stops, or has stopped.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[GenerationOutput] = loop.create_future()
        self._post(_Add(request_id, prompt, params, scorer, _Reply(loop, future)))
        try:
            return await future
        except asyncio.CancelledError:
            self._commands.put(_Cancel(request_id))
            raise

    async def stop(self, grace_s: float = 10.0) -> None:
        """Take no more requests, let the running ones finish for `grace_s` seconds, then end the thread."""
        with self._gate:
            self._accepting = False
            self._commands.put(_Stop(time.monotonic() + grace_s))
        if self._thread.ident is not None:
            await asyncio.to_thread(self._thread.join)

    def _post(self, command: _Add) -> None:
        with self._gate:
            if not self._accepting:
                raise EngineStoppedError(_STOPPING)
            self._commands.put(command)

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
            case _Cancel(request_id):
                if self._replies.pop(request_id, None) is not None:
                    self._engine.cancel(request_id)
            case _Stop(deadline):
                self._deadline = deadline

    def _add(self, command: _Add) -> None:
        if command.request_id in self._replies:
            command.reply.send(InvalidRequestError(f"The request id {command.request_id} is in use.", param="id"))
            return
        try:
            self._engine.add_request(command.request_id, command.prompt, command.params, command.scorer)
        except SuperdraftError as error:
            command.reply.send(error)
        except Exception:
            log.exception("add_request_failed", engine_request_id=command.request_id)
            command.reply.send(SequenceFailedError("The engine failed on this request; the server's log says why."))
        else:
            self._replies[command.request_id] = command.reply

    def _step(self) -> None:
        try:
            outputs = self._engine.step()
        except Exception:
            self._failures += 1
            log.exception("engine_step_failed", consecutive=self._failures, requests=len(self._replies))
            self._abandon_all()
            return
        self._failures = 0
        for output in outputs:
            self._answer(output)
        if self._replies and not self._engine.has_unfinished:
            log.error("engine_lost_requests", requests=len(self._replies))
            self._abandon_all()

    def _answer(self, output: StepOutput) -> None:
        reply = self._replies.pop(output.request_id, None)
        answer = output.error if output.error is not None else output.output
        if reply is None:
            log.error("output_of_unknown_request", engine_request_id=output.request_id)
        else:
            reply.send(answer or SequenceFailedError("The engine gave an empty answer; this is a bug in the server."))

    def _abandon_all(self) -> None:
        """After a failed step, whose state cannot be trusted: drop every request, and tell its caller."""
        for request_id, reply in list(self._replies.items()):
            del self._replies[request_id]
            reply.send(SequenceFailedError("The engine failed while decoding; the server's log says why. Try again."))
            self._engine.cancel(request_id)
        if self._engine.has_unfinished:
            raise RuntimeError("the engine holds requests that it cannot drop")

    def _close(self) -> None:
        """Refuse what comes, answer what is left."""
        with self._gate:
            self._accepting = False
        while not self._commands.empty():
            command = self._commands.get()
            if isinstance(command, _Add):
                command.reply.send(EngineStoppedError(_STOPPING))
        for reply in self._replies.values():
            reply.send(EngineStoppedError("The server shut down before this request was finished; send it again."))
        self._replies.clear()
