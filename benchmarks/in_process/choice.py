"""Cost of choosing the next tokens, compared with the forward pass, by the number of requests in a step.

The choice is everything that turns logits into drafts: cut, interpolation, selection. Its time is that of
`DecodeStep.choose` in steps in which all requests are running.
"""

import itertools
import statistics
import time
from contextlib import AbstractContextManager
from typing import Annotated, Any
from unittest import mock

import typer

from superdraft.benchmarks.options import AsJson, NumDraftsEach
from superdraft.benchmarks.summary import report
from superdraft.benchmarks.typing_texts import TEXTS
from superdraft.decoding import Engine, EngineConfig, EngineRequest, GenerationParams, load_engine
from superdraft.decoding.engine.decode import DecodeStep
from superdraft.decoding.loading.store import DEFAULT_MODEL
from superdraft.evaluation.options import Dtype, Model

PROMPT_CHARS = 40
TOKENS_PER_RUN = 10
NUM_REQUESTS = [1, 16, 64]
NUM_DRAFTS = [3, 8]


def main(
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    requests: Annotated[
        list[int], typer.Option("--requests", min=1, help="Number of requests in a step. Repeatable.")
    ] = NUM_REQUESTS,
    num_drafts: NumDraftsEach = NUM_DRAFTS,
    runs: Annotated[int, typer.Option(min=1, help="Runs of each number.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Time the choice of next tokens in decode steps of several requests."""
    config = EngineConfig(max_model_len=256, num_slots=max(requests), max_num_drafts=max(num_drafts))
    engine = load_engine(model, config, dtype=dtype)
    rows = [
        measure(engine, num, GenerationParams(num_drafts=k, alpha=0, max_tokens=TOKENS_PER_RUN), runs)
        for k in num_drafts
        for num in requests
    ]
    settings = {"model": model, "dtype": dtype, "selection": "paper", "alpha": 0, "tokens_per_run": TOKENS_PER_RUN}
    report(__doc__, settings, as_json, rows=rows)


def measure(engine: Engine, num_requests: int, params: GenerationParams, num_runs: int) -> dict[str, Any]:
    """Medians over the steps in which all of `num_requests` requests are running."""
    forward_ms: list[float] = []
    choose_ms: list[float] = []
    for run in range(num_runs + 1):
        for number, text in zip(range(num_requests), itertools.cycle(TEXTS), strict=False):
            engine.add_request(EngineRequest(str(number), f"{number}. {text[:PROMPT_CHARS]}", params))
        while engine.has_unfinished:
            is_full = engine.num_used_slots == num_requests and engine.num_waiting == 0
            seconds = {"forward": 0.0, "choose": 0.0}
            with _timed("forward", seconds), _timed("choose", seconds):
                engine.step()
            if run > 0 and is_full and engine.last_step.kind == "decode":
                forward_ms.append(1e3 * seconds["forward"])
                choose_ms.append(1e3 * seconds["choose"])
    return {
        "requests": num_requests,
        "num_drafts": params.num_drafts,
        "choice_ms": round(statistics.median(choose_ms), 2),
        "forward_ms": round(statistics.median(forward_ms), 2),
        "steps": len(choose_ms),
    }


def _timed(name: str, seconds: dict[str, float]) -> AbstractContextManager[Any]:
    """Add the time in a method of `DecodeStep` to its `seconds`, during the context."""
    method = getattr(DecodeStep, name)

    def call(*arguments: Any, **named: Any) -> Any:
        begun_s = time.perf_counter()
        try:
            return method(*arguments, **named)
        finally:
            seconds[name] += time.perf_counter() - begun_s

    return mock.patch.object(DecodeStep, name, call)
