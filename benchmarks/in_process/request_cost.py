"""Cost of one request to an engine, including the host's work for token healing."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from superdraft.decoding.engine import admission
from superdraft.decoding.engine.engine import Engine
from superdraft.decoding.engine.starts import Starts
from superdraft.decoding.ngram import NgramScorer
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.request import EngineRequest
from superdraft.decoding.text.covers import Covers

BOOKKEEPING: tuple[tuple[Any, str], ...] = (
    (admission, "plan_healing"),
    (Starts, "covers"),
    (Starts, "choose_start"),
    (Covers, "add"),
    (Covers, "next_unrun"),
)
"""The host's work for healing; none of these functions calls another."""


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of one request.

    Attributes:
        prefill_ms: the prompt's pass, including the choice of the first tokens.
        decode_ms: all decode steps together.
        steps: number of decode steps.
        rows: model rows of the decode steps, and of other tokenisations of the prompt's end.
        total_ms: from the text to the drafts, including tokenisation.
        bookkeeping_ms: the host's work for healing, by function.
    """

    prefill_ms: float
    decode_ms: float
    steps: int
    rows: int
    total_ms: float
    bookkeeping_ms: Mapping[str, float]


def ask(engine: Engine, text: str, params: GenerationParams, scorer: NgramScorer[Any] | None) -> Cost:
    """Answer one prompt and measure its cost."""
    kinds: list[str | None] = []
    with timed(BOOKKEEPING) as seconds:
        started_s = time.perf_counter()
        engine.add_request(EngineRequest("cost", text, params, scorer))
        output = None
        while output is None:
            for step_output in engine.step():
                if step_output.error is not None:
                    raise step_output.error
                output = step_output.output
            kinds.append(engine.last_step.kind)
        total_ms = (time.perf_counter() - started_s) * 1000
    timings = output.timings
    return Cost(
        timings.prefill_ms,
        timings.decode_ms,
        num_steps(kinds),
        output.usage.forward_rows,
        total_ms,
        {name: 1000 * spent_s for name, spent_s in seconds.items()},
    )


def num_steps(kinds: Sequence[str | None]) -> int:
    """Decode steps of a request's drafts, without a first step that ran the last token of a cached prompt."""
    return kinds.count("decode") - (kinds[:1] == ["decode"])


@contextmanager
def timed(functions: Sequence[tuple[Any, str]]) -> Iterator[dict[str, float]]:
    """Time functions, given as (module or class, name), during the context; yields seconds by name."""
    seconds = {name: 0.0 for _, name in functions}
    originals = [(owner, name, getattr(owner, name)) for owner, name in functions]

    def watched(name: str, function: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            started_s = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                seconds[name] += time.perf_counter() - started_s

        return call

    try:
        for owner, name, function in originals:
            setattr(owner, name, watched(name, function))
        yield seconds
    finally:
        for owner, name, function in originals:
            setattr(owner, name, function)
