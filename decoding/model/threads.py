"""The number of threads with which a model is fastest on this machine, measured once and remembered."""

import contextlib
import json
import os
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from superdraft.decoding.durable import new_file
from superdraft.decoding.home import superdraft_home

if TYPE_CHECKING:
    from superdraft.decoding.model.native.runner import NativeRunner
    from superdraft.decoding.model.torch_runner import TorchRunner

_ROWS = (1, 8)  # decode steps for a person typing, and for several
_TOKENS = 16  # of a prompt
_MAX_REPEATS = 5
_MAX_SECONDS = 0.2  # for the repeats of each; a large model's are long enough to need few
_TOLERANCE = 1.05  # more threads must win clearly: they take the processor from everything else


def choose_num_threads(runner: "TorchRunner | NativeRunner", remembered: Path) -> int:
    """The number of threads with which steps and prompts are fastest; the fewer of two that are about as fast.

    The first call for a model takes at most about half a second per number of threads tried, or twice as long as two
    decode steps and a short prompt.
    torch is left with the number chosen. What is measured on a busy machine is used, but not remembered.

    Args:
        runner: a model on a CPU, with no request in its slots.
        remembered: a JSON file of earlier results, one per processor and size of model. It is made if it is missing,
            and replaced if it cannot be read.
    """
    key = f"{processor_name()}, {num_cores()} cores: {runner.description}"
    known = recall(remembered)
    num_threads = known.get(key)
    if num_threads is None:
        num_threads = fastest(lambda num: _seconds(runner, num), candidates(num_cores()))
        if is_busy():
            return _use(num_threads)
        with contextlib.suppress(OSError):  # without the file, the next start measures again
            remembered.parent.mkdir(parents=True, exist_ok=True)
            with new_file(remembered) as fresh:
                fresh.write_text(json.dumps(known | {key: num_threads}, indent=2) + "\n")
    return _use(num_threads)


def _use(num_threads: int) -> int:
    torch.set_num_threads(num_threads)
    return num_threads


def is_busy() -> bool:
    """Whether other programs have used more than half of this machine in the last minute."""
    return hasattr(os, "getloadavg") and os.getloadavg()[0] > num_cores() / 2


def threads_file(home: Path | None = None) -> Path:
    """The file in which the results are remembered; see `superdraft_home` for the folder."""
    return superdraft_home(home) / "threads.json"


def candidates(cores: int) -> list[int]:
    """The numbers to try: powers of two, and all cores."""
    return sorted({1 << power for power in range(cores.bit_length()) if 1 << power <= cores} | {cores})


def fastest(seconds: Callable[[int], float], numbers: list[int]) -> int:
    """The smallest number that takes about as little time as the best; stops where more threads are much slower.

    Args:
        seconds: the time with a number of threads.
        numbers: increasing.
    """
    found: dict[int, float] = {}
    for number in numbers:
        found[number] = seconds(number)
        if found[number] > 2 * min(found.values()):
            break
    best = min(found.values())
    return next(number for number, time_taken in found.items() if time_taken <= best * _TOLERANCE)


def recall(remembered: Path) -> dict[str, int]:
    """What earlier starts measured: numbers of threads by processor and size of model."""
    try:
        known = json.loads(remembered.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(known, dict):
        return {}
    return {key: value for key, value in known.items() if type(value) is int and value > 0}


def num_cores() -> int:
    """Cores that this process may use: its affinity, and a container's limit."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, int(quota) // int(period)))  # quota "max" is no number: no limit
    return cores


def processor_name() -> str:
    """The processor's name, as the system reports it."""
    with contextlib.suppress(OSError):  # Linux alone has this file
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _seconds(runner: "TorchRunner | NativeRunner", num_threads: int) -> float:
    """Shortest times of decode steps and of a prompt, multiplied: none weighs more than another."""
    torch.set_num_threads(num_threads)
    num_tokens = min(_TOKENS, runner.max_model_len - 1)
    runs: list[Callable[[], object]] = [partial(runner.prefill, [0], [[0] * num_tokens], [0])]
    runs += [
        partial(runner.decode, runner.embed([0] * num_rows), [num_tokens] * num_rows)
        for num_rows in sorted({min(rows, runner.num_slots) for rows in _ROWS})
    ]
    product = 1.0
    for run in runs:
        times: list[float] = []
        while len(times) < 2 or (len(times) <= _MAX_REPEATS and sum(times) < _MAX_SECONDS):
            begin = time.perf_counter()
            run()
            times.append(time.perf_counter() - begin)
        product *= min(times)
    return product
