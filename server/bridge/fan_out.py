"""Draft fan-out: identical requests, which some editors send to get several suggestions, share the drafts of one run.

A request for one draft runs `num_drafts` of them, which superposed decoding does in the same number of model rows, and
gets the best. Every identical request (a *twin*) that comes meanwhile, or soon after, gets the next draft. When all
distinct drafts have been given out, the best one comes again: another run would only give the same drafts.
"""

import asyncio
import hashlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

from fastapi import Request
from pydantic import BaseModel

from superdraft.decoding.outputs import GenerationOutput, StepOutput
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.request import EngineRequest
from superdraft.server.bridge.faults import request_error
from superdraft.server.bridge.output_stream import OutputStream

WINDOW_S = 0.3
MAX_RUNS = 256
_RETRY_HEADER = "x-stainless-retry-count"
_CALLER_HEADERS = ("authorization", "x-api-key", "x-session-id")

Run = Callable[[GenerationParams], Coroutine[Any, Any, GenerationOutput]]
Open = Callable[[EngineRequest], Coroutine[Any, Any, OutputStream]]


@dataclass(frozen=True, slots=True)
class Share:
    """One request's share of a run.

    Attributes:
        output: the run's output with one draft, of index 0; or the whole output, if the request was not fanned out.
        rank: the draft's place among the run's drafts, 0 being the best.
    """

    output: GenerationOutput
    rank: int = 0


@dataclass(slots=True, eq=False)
class _SharedRun:
    task: asyncio.Task[GenerationOutput]
    num_waiting: int = 0
    num_served: int = 0
    keeps_best: bool = True  # for the request that started the run, until it has taken the best draft or left


def twin_key(request: Request, body: BaseModel) -> str | None:
    """Digest of what twins have in common: route, key, session and every field.

    Returns:
        The digest; None for a request that repeats a failed one and wants the same answer.
    """
    if request.headers.get(_RETRY_HEADER, "0") != "0":
        return None
    # Pydantic warns about fields with a plain validator, whose type it does not know.
    fields = body.model_dump_json(warnings=False)
    parts = [request.url.path, *(request.headers.get(name, "") for name in _CALLER_HEADERS), fields]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


class FanOut:
    """The runs that twins may still share. For one event loop.

    Args:
        num_drafts: drafts of a shared run; 1: nothing is shared.
        window_s: how long after its end a run has drafts for twins.
        max_runs: runs remembered; beyond that, requests run alone.
    """

    def __init__(self, num_drafts: int = 3, *, window_s: float = WINDOW_S, max_runs: int = MAX_RUNS) -> None:
        self._num_drafts = num_drafts
        self._window_s = window_s
        self._max_runs = max_runs
        self._runs: dict[str, _SharedRun] = {}

    async def draft(self, key: str | None, params: GenerationParams, run: Run) -> Share:
        """Run a request, or take the next draft of a twin's run. If all waiting twins are cancelled, so is the run.

        A request for exact log-probabilities shares nothing, but gets the best of equally many drafts, since asking for
        log-probabilities must not change the text.

        Args:
            key: from `twin_key`; None: the request runs alone.
            params: the request's. It shares a run only if it asks for one superposed draft without randomness.
            run: decodes with the given parameters; called at most once.

        Raises:
            SuperdraftError: raised by `run`, for each twin.
        """
        if key is None or not self._is_shareable(params):
            return Share(await run(params))
        if params.verify_top is not None:
            return Share(_only(await run(replace(params, num_drafts=self._num_drafts)), 0))
        shared = self._runs.get(key)
        is_first = shared is None
        if shared is None:
            if not self._has_room():
                return Share(await run(params))
            shared = self._start(key, run(replace(params, num_drafts=self._num_drafts)))
        shared.num_waiting += 1
        try:
            output = await asyncio.shield(shared.task)
        finally:
            shared.num_waiting -= 1
            shared.keeps_best &= not is_first
            if not shared.num_waiting and not shared.task.done():
                shared.task.cancel()
                self._forget(key, shared)
        # A twin that comes just after the run's end is faster than those that wait.
        num_before = 0 if is_first else max(shared.num_served, int(shared.keeps_best))
        rank = num_before % max(1, len(output.drafts))
        shared.num_served = max(shared.num_served, num_before + 1)
        return Share(_only(output, rank), rank)

    async def stream(
        self,
        key: str,
        request: EngineRequest,
        open_stream: Open,
        cut: Callable[[GenerationOutput], GenerationOutput],
        on_share: Callable[[Share], None],
    ) -> OutputStream:
        """`draft` as a stream; returns when the engine has taken the request. Without a share, it is the engine's own.

        The request that starts a shared run gets the run's snapshots; its twins get their draft alone, at the end. The
        best draft begins with a snapshot's stable text, and the first request gets that draft.

        Args:
            key: from `twin_key`.
            request: with the parameters that the client asked for.
            open_stream: queues a request in the engine.
            cut: shortens the drafts of the run before they are shared.
            on_share: called with the request's share, before the stream's terminal output.

        Raises:
            SuperdraftError: the engine refused the request.
        """
        if not self._is_shareable(request.params):
            return await open_stream(request)

        async def run(params: GenerationParams) -> GenerationOutput:
            steps = await open_stream(replace(request, params=params))
            outputs.accept()
            return cut(await steps.result(outputs.send))

        def cancel(_: OutputStream) -> None:
            feeding.cancel()

        outputs = OutputStream(asyncio.get_running_loop(), cancel)
        feeding = asyncio.create_task(self._feed(outputs, key, request, run, on_share))
        await outputs.accepted()
        return outputs

    async def _feed(
        self, outputs: OutputStream, key: str, request: EngineRequest, run: Run, on_share: Callable[[Share], None]
    ) -> None:
        """Send a request's share, or its error, to its stream."""
        try:
            share = await self.draft(key, request.params, run)
        except Exception as fault:
            error = request_error(fault, engine_request_id=request.request_id)
            outputs.refuse(error)  # no effect if the engine had taken the request
            outputs.send(StepOutput(request.request_id, error=error))
        else:
            on_share(share)
            outputs.accept()
            outputs.send(StepOutput(request.request_id, output=share.output))

    def _is_shareable(self, params: GenerationParams) -> bool:
        asks_for_one = params.num_drafts == 1 and params.max_tokens > 0 and params.strategy == "superposed"
        is_plain = params.seed is None and params.reset_every is None
        return self._num_drafts > 1 and asks_for_one and is_plain

    def _has_room(self) -> bool:
        """Make room for one more run by dropping the oldest finished one; False if all are still running."""
        if len(self._runs) >= self._max_runs:
            finished = next((key for key, shared in self._runs.items() if shared.task.done()), None)
            if finished is not None:
                del self._runs[finished]
        return len(self._runs) < self._max_runs

    def _start(self, key: str, work: Coroutine[Any, Any, GenerationOutput]) -> _SharedRun:
        shared = _SharedRun(asyncio.create_task(work))
        self._runs[key] = shared
        shared.task.add_done_callback(lambda task: self._on_done(key, shared, task))
        return shared

    def _on_done(self, key: str, shared: _SharedRun, task: asyncio.Task[GenerationOutput]) -> None:
        if task.cancelled() or task.exception() is not None:
            self._forget(key, shared)
        else:
            task.get_loop().call_later(self._window_s, self._forget, key, shared)

    def _forget(self, key: str, shared: _SharedRun) -> None:
        if self._runs.get(key) is shared:
            del self._runs[key]


def _only(output: GenerationOutput, rank: int) -> GenerationOutput:
    """The output with the draft of this rank alone; unchanged if there are no drafts."""
    if not output.drafts:
        return output
    draft = replace(output.drafts[rank], index=0)
    usage = replace(output.usage, completion_tokens=len(draft.token_ids))
    return replace(output, drafts=(draft,), usage=usage)
