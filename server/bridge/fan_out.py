"""Draft fan-out: twin requests, which some editors send to get several suggestions, share the drafts of one run.

A request for one draft runs `num_drafts` of them, which with superposed decoding takes no more model rows, and gets the
best. Every identical request that comes meanwhile, or soon after, gets the next draft. When all distinct drafts are
given out it starts over with the best: another run would only give the same drafts again.
"""

import asyncio
import hashlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

from fastapi import Request
from pydantic import BaseModel

from superdraft.decoding.outputs import GenerationOutput
from superdraft.decoding.params import GenerationParams

WINDOW_S = 0.3
MAX_RUNS = 256
MAX_RANKS = 4096
_RETRY_HEADER = "x-stainless-retry-count"
_WHO_HEADERS = ("authorization", "x-api-key", "x-session-id")

Run = Callable[[GenerationParams], Coroutine[Any, Any, GenerationOutput]]


@dataclass(frozen=True, slots=True)
class Share:
    """What one request gets of a run.

    Attributes:
        output: the run's output with one draft, of index 0; or all of it, if the request was not fanned out.
        rank: the draft's place among the run's drafts, 0 being the best.
    """

    output: GenerationOutput
    rank: int = 0


@dataclass(slots=True, eq=False)
class _SharedRun:
    task: asyncio.Task[GenerationOutput]
    num_waiting: int = 0
    num_served: int = 0


def twin_key(request: Request, body: BaseModel) -> str | None:
    """What twins have in common: route, key, session and every field.

    Returns:
        A digest; None for a request that repeats a failed one, and wants the same answer.
    """
    if request.headers.get(_RETRY_HEADER, "0") != "0":
        return None
    # Pydantic warns of fields whose validator is our own, for no reason.
    fields = body.model_dump_json(warnings=False)
    parts = [request.url.path, *(request.headers.get(name, "") for name in _WHO_HEADERS), fields]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


class FanOut:
    """The runs that twins may still share. For one event loop.

    Args:
        num_drafts: of a shared run; 1: nothing is shared.
        window_s: how long after its end a run has drafts for twins.
        max_runs: how many are remembered; beyond that, requests run alone.
    """

    def __init__(self, num_drafts: int = 3, *, window_s: float = WINDOW_S, max_runs: int = MAX_RUNS) -> None:
        self._num_drafts = num_drafts
        self._window_s = window_s
        self._max_runs = max_runs
        self._runs: dict[str, _SharedRun] = {}
        self._ranks: dict[str, int] = {}

    async def draft(self, key: str | None, params: GenerationParams, run: Run) -> Share:
        """Run a request, or take the next draft of a twin's run. Cancelling the last twin that waits cancels the run.

        A request for exact log-probabilities shares nothing, but gets the best of as many drafts: asking for them must
        not change the text.

        Args:
            key: from `twin_key`; None: the request runs alone.
            params: the request's own. Not shared unless it is for one superposed draft that involves no chance.
            run: decodes, with the parameters that it is given; called at most once.

        Raises:
            SuperdraftError: what `run` raises, for each twin.
        """
        if key is None or not self._is_shareable(params):
            return Share(await run(params))
        if params.verify_top is not None:
            return Share(_only(await run(replace(params, num_drafts=self._num_drafts)), 0))
        shared = self._runs.get(key)
        if shared is None:
            if not self._has_room():
                return Share(await run(params))
            shared = self._start(key, run(replace(params, num_drafts=self._num_drafts)))
        shared.num_waiting += 1
        try:
            output = await asyncio.shield(shared.task)
        finally:
            shared.num_waiting -= 1
            if not shared.num_waiting and not shared.task.done():
                shared.task.cancel()
                self._forget(key, shared)
        rank = shared.num_served % max(1, len(output.drafts))
        shared.num_served += 1
        return Share(_only(output, rank), rank)

    def remember(self, completion_id: str, rank: int) -> None:
        """Keep the rank of the one draft that an answer had, for what its user does with it. The oldest are dropped."""
        if rank == 0:
            return
        if len(self._ranks) >= MAX_RANKS:
            del self._ranks[next(iter(self._ranks))]
        self._ranks[completion_id] = rank

    def rank_of(self, completion_id: str, choice_index: int) -> int:
        """The rank of a choice among the drafts of its run; its index, unless the answer was part of a fan-out."""
        return self._ranks.get(completion_id, 0) + choice_index

    def _is_shareable(self, params: GenerationParams) -> bool:
        asks_for_one = params.num_drafts == 1 and params.max_tokens > 0 and params.strategy == "superposed"
        is_plain = params.seed is None and params.reset_every is None
        return self._num_drafts > 1 and asks_for_one and is_plain

    def _has_room(self) -> bool:
        """Make room for one more run, at the cost of the oldest one that nobody waits for."""
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
    """The output with the draft of this rank alone; as it is, if it has no drafts."""
    if not output.drafts:
        return output
    draft = replace(output.drafts[rank], index=0)
    usage = replace(output.usage, completion_tokens=len(draft.token_ids))
    return replace(output, drafts=(draft,), usage=usage)
