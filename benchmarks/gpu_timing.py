"""Clocks of the GPU benchmark, and what the card can do at best."""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from superdraft.benchmarks.summary import spread

WARM_UP_CALLS = 3


@dataclass(slots=True)
class Findings:
    """What one part of the benchmark found.

    Attributes:
        rows: of its table; each names its columns.
        notes: what has to be said of them.
        passed: of a check: whether it holds.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    passed: bool = True


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one processor: tiny models gain nothing by two, which on a busy machine wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def seconds_of(device: torch.device, run: Callable[[], object]) -> float:
    """How long `run` takes, with all that it starts on the device."""
    synchronise(device)
    started_s = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - started_s


def times_ms(device: torch.device, run: Callable[[], object], repeats: int) -> list[float]:
    """Milliseconds that `run` takes, again and again, after some turns that are not counted; by the GPU's own clock."""
    for _ in range(WARM_UP_CALLS):
        run()
    if device.type != "cuda":
        return [1000 * seconds_of(device, run) for _ in range(repeats)]
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return times


@dataclass(frozen=True, slots=True)
class Roofline:
    """What the card does at best.

    Attributes:
        copy_bytes_per_s: of a large copy within its memory, bytes read and bytes written.
        matmul_flop_per_s: of a large product in bfloat16.
        copy_ms: spread of the copies.
        matmul_ms: spread of the products.
    """

    copy_bytes_per_s: float
    matmul_flop_per_s: float
    copy_ms: dict[str, float]
    matmul_ms: dict[str, float]


def measure_roofline(device: torch.device, copy_bytes: int, matmul_size: int, repeats: int) -> Roofline:
    """Time copies of `copy_bytes` and products of square matrices of random numbers (zeros would be quicker)."""
    copies = _copy_times_ms(device, copy_bytes, repeats)
    left, right = (torch.randn(matmul_size, matmul_size, device=device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(left)
    products = times_ms(device, lambda: torch.mm(left, right, out=out), repeats)
    return Roofline(
        copy_bytes_per_s=2 * copy_bytes / (statistics.median(copies) / 1000),
        matmul_flop_per_s=2 * matmul_size**3 / (statistics.median(products) / 1000),
        copy_ms=spread(copies, digits=4),
        matmul_ms=spread(products, digits=4),
    )


def _copy_times_ms(device: torch.device, num_bytes: int, repeats: int) -> list[float]:
    source = torch.ones(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return times_ms(device, lambda: target.copy_(source), repeats)
