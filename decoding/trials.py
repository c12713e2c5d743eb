"""Ways to compute the same: each is compared with plain arithmetic, then timed, and the fastest right one is taken."""

import logging
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from superdraft.decoding.errors import UnsupportedModelError

Timer = Callable[[Callable[[], object]], float]
"""Milliseconds that a function takes."""

TIMED_BYTES = 256 << 20
"""What a model reads in a step does not stay in a GPU's cache until the next one. So much, read in turn, does not
either."""
# Of the largest number of each row's result. bfloat16 keeps 8 bits and float16 11; kernels round what they add up to
# them, and add in their own order.
_TOLERANCES = {torch.bfloat16: 0.03, torch.float16: 0.005, torch.float32: 1e-3, torch.float64: 1e-5}
_NUM_REPLAYS = 20
_REASON_LENGTH = 200
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Trial:
    """What became of one candidate: its time for one call, or why it was left out."""

    name: str
    time_ms: float | None = None
    reason: str | None = None

    def __str__(self) -> str:
        return f"{self.name} {self.reason if self.time_ms is None else f'{self.time_ms:.4f} ms'}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Inputs of a call, and its result [R, ...] in plain arithmetic, float32 or better."""

    inputs: tuple[Any, ...]
    expected: Tensor


def graph_time_ms(run: Callable[[], object]) -> float:
    """The median time of a function under a CUDA graph: what it launches counts, launching does not.

    Args:
        run: works on the current device.

    Returns:
        Milliseconds.
    """
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # whatever is compiled or allocated at first must not be recorded
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    times = []
    for _ in range(_NUM_REPLAYS + 1):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return float(statistics.median(times[1:]))


def run_trials(
    what: str,
    candidates: Mapping[str, Callable[..., Tensor]],
    compared: Sequence[Comparison],
    timed: Sequence[tuple[Any, ...]],
    timer: Timer,
) -> tuple[str, tuple[Trial, ...]]:
    """Compare and time the candidates; all of it is logged.

    Args:
        what: is computed, for the log.
        candidates: by name.
        compared: calls whose results must be right.
        timed: inputs of the calls that are timed together.
        timer: measures them.

    Returns:
        The fastest one's name, and what became of each.

    Raises:
        UnsupportedModelError: none of them is right.
    """
    trials = tuple(_try(name, candidate, compared, timed, timer) for name, candidate in candidates.items())
    shown = "; ".join(map(str, trials))
    _logger.info("%s: %s", what, shown)
    times = {trial.name: trial.time_ms for trial in trials if trial.time_ms is not None}
    if not times:
        raise UnsupportedModelError(f"No way to compute {what} works: {shown}.")
    return min(times, key=times.__getitem__), trials


def _try(
    name: str,
    candidate: Callable[..., Tensor],
    compared: Sequence[Comparison],
    timed: Sequence[tuple[Any, ...]],
    timer: Timer,
) -> Trial:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of each reason why a kernel does not fit
            for comparison in compared:
                got = candidate(*comparison.inputs)
                error = _error(got, comparison.expected)
                if not error <= _TOLERANCES[got.dtype]:  # as with a NaN
                    return Trial(name, reason=f"is off by {error:.2g} of the largest number of a row")
            total = timer(lambda: [candidate(*inputs) for inputs in timed])
    except Exception as problem:  # kernels refuse shapes, types and GPUs in many ways
        message = " ".join(str(problem).split())[:_REASON_LENGTH]
        return Trial(name, reason=f"failed: {type(problem).__name__}: {message}")
    return Trial(name, time_ms=total / len(timed))


def _error(got: Tensor, expected: Tensor) -> float:
    """The largest error of a row, as a part of the row's largest number."""
    if got.shape != expected.shape:
        return float("inf")
    difference = (got.to(expected.dtype) - expected).abs().flatten(1).amax(1)
    return float((difference / expected.abs().flatten(1).amax(1)).amax())
