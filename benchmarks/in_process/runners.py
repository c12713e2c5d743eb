"""The runners of a model compared: steps by rows and length, prompts, the time to load, and memory.

Every runner has a process of its own. A step runs rows that continue one prompt, each in its own draft, as requests do;
the texts of other slots can be kept beside it, as a server keeps them. `llama.cpp alone` is its own loop, with tokens
in place of embeddings and one sequence per row.
"""

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from superdraft.benchmarks.options import AsJson
from superdraft.benchmarks.summary import report, spread, tracked
from superdraft.decoding import EngineConfig
from superdraft.decoding.build import open_engine
from superdraft.decoding.loading.catalogue import DEFAULT_MODEL, KNOWN_MODELS
from superdraft.decoding.loading.store import ModelStore
from superdraft.decoding.model.segments import Segment
from superdraft.evaluation.options import Model
from superdraft.server.errors import CommandError
from superdraft.server.loading import model_options
from superdraft.server.settings import Settings

TORCH, LLAMACPP, ALONE = "torch", "llamacpp", "llama.cpp alone"
RUNNERS = [TORCH, LLAMACPP, ALONE]
NUM_ROWS = [1, 3, 8]
LENGTHS = [64, 1900]
PROMPT_TOKENS = 512
MAX_LEN = 2048
NUM_SLOTS = 8
STEPS = 10  # of each draft
_MEMORY = 4 * 1024**3
_TOKEN = 7  # any: the time does not depend on it
_CHUNK = 256

Step = Callable[[int], None]
"""Runs the step of this number after the prompt."""


def main(
    model: Model = DEFAULT_MODEL,
    runner: Annotated[list[str], typer.Option(help="torch, llamacpp, or 'llama.cpp alone'. Repeatable.")] = RUNNERS,
    rows: Annotated[list[int], typer.Option("--rows", min=1, max=16, help="Rows of a step. Repeatable.")] = NUM_ROWS,
    lengths: Annotated[
        list[int],
        typer.Option("--length", min=1, max=MAX_LEN - STEPS, help="Tokens before each row. Repeatable."),
    ] = LENGTHS,
    kept: Annotated[
        int, typer.Option(min=0, max=NUM_SLOTS - 1, help="Other texts of the greatest length to keep, too.")
    ] = NUM_SLOTS - 1,
    num_threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. If not set, all cores.")] = None,
    runs: Annotated[int, typer.Option(min=1, help="Drafts to time, of ten steps each.")] = 9,
    as_json: AsJson = False,
) -> None:
    """Compare runners on one model: its GGUF file for llama.cpp, the default weight format for torch."""
    unknown = sorted(set(runner) - set(RUNNERS))
    if unknown:
        raise CommandError(f"--runner must be one of {', '.join(RUNNERS)}, got {unknown[0]!r}.")
    num_threads = num_threads or os.cpu_count() or 1
    spawn = multiprocessing.get_context("spawn")
    found = []
    for name in tracked(runner, "runners"):
        with ProcessPoolExecutor(1, mp_context=spawn) as process:
            found.append(process.submit(measure, name, model, rows, lengths, kept, num_threads, runs).result())
    settings = {"model": model, "num_threads": num_threads, "prompt_tokens": PROMPT_TOKENS, "runs": runs, "kept": kept}
    load, steps = [row["load"] for row in found], [step for row in found for step in row["steps"]]
    report(__doc__, settings, as_json, load=load, steps=steps)


def measure(
    name: str, model: str, rows: Sequence[int], lengths: Sequence[int], kept: int, num_threads: int, num_runs: int
) -> dict[str, Any]:
    """Load a runner in this process and time it; milliseconds are medians."""
    torch.set_num_threads(num_threads)
    if name != TORCH:
        from superdraft.decoding.model.llamacpp.library import library

        library()  # importing is not loading
    before_mb, begun_s = _memory_mb("VmRSS"), time.perf_counter()
    subject = _Alone(gguf_file(model), num_threads) if name == ALONE else _Runner(name, model, num_threads)
    load = {"runner": name, "load_s": round(time.perf_counter() - begun_s, 2), "imports_mb": before_mb}
    prompt_s = [subject.time_prompt(PROMPT_TOKENS) for _ in range(3)]
    load["prompt_tokens_per_s"] = round(PROMPT_TOKENS / statistics.median(prompt_s))
    load["mb"] = _memory_mb("VmRSS")
    steps = []
    for num_kept in dict.fromkeys((0, kept)):
        subject.keep(num_kept, max(lengths))
        for length, num_rows in product(lengths, rows):
            times = list(_step_ms(subject.prepare(length, num_rows), num_runs))
            found = spread(times)
            what = {"runner": name, "kept": num_kept, "length": length, "rows": num_rows}
            steps.append(what | {"ms": found["median"], "p25": found["p25"], "p75": found["p75"]})
    load |= {"mb_after": _memory_mb("VmRSS"), "peak_mb": _memory_mb("VmHWM")}
    return {"load": load, "steps": steps}


def _step_ms(step: Step, num_runs: int) -> Iterator[float]:
    """Milliseconds of the steps of all runs but the first."""
    for run in range(num_runs + 1):
        for number in range(STEPS):
            begun_s = time.perf_counter()
            step(number)
            if run:
                yield (time.perf_counter() - begun_s) * 1000


class _Runner:
    """A `ModelRunner`, as the engine uses it."""

    def __init__(self, name: str, model: str, num_threads: int) -> None:
        settings = Settings.model_validate({"model": model, "runner": name, "num_threads": num_threads})
        config = EngineConfig(max_model_len=MAX_LEN, num_slots=NUM_SLOTS, kv_memory_bytes=_MEMORY)
        _, engine = open_engine(model_options(settings), config)
        self._runner = engine._runner

    def time_prompt(self, num_tokens: int) -> float:
        """Seconds that a new prompt takes."""
        self._runner.cache.clear(0)
        begun_s = time.perf_counter()
        self._feed(0, num_tokens)
        return time.perf_counter() - begun_s

    def keep(self, num_texts: int, length: int) -> None:
        """Let other slots hold texts."""
        for slot in range(1, num_texts + 1):
            self._feed(slot, length)

    def prepare(self, length: int, num_rows: int) -> Step:
        """Run a prompt; each step then runs a row of each draft after it."""
        self._feed(0, length)
        embeddings = self._runner.embed([_TOKEN] * num_rows)
        kept = list(range(num_rows))

        def step(number: int) -> None:
            cells = [[length + depth * num_rows + row for depth in range(number + 1)] for row in range(num_rows)]
            segments = [Segment(0, length + number, 1, length, tuple(path)) for path in cells]
            self._runner.forward(segments, embeddings, kept)

        return step

    def _feed(self, slot: int, num_tokens: int) -> None:
        for start in range(0, num_tokens, _CHUNK):
            count = min(_CHUNK, num_tokens - start)
            is_last = start + count == num_tokens
            segment = Segment.plain(slot, start, count)
            self._runner.forward([segment], self._runner.embed([_TOKEN] * count), [count - 1] if is_last else [])


class _Alone:
    """llama.cpp's own loop: tokens, and a sequence for each row that shares the prompt's keys and values."""

    def __init__(self, path: Path, num_threads: int) -> None:
        from superdraft.decoding.model.llamacpp.context import LlamaContext
        from superdraft.decoding.model.llamacpp.library import LlamaModel

        self._num_sequences = max(NUM_ROWS) + NUM_SLOTS + 16
        self._context = LlamaContext(LlamaModel(path), NUM_SLOTS * MAX_LEN, self._num_sequences, num_threads)

    def time_prompt(self, num_tokens: int) -> float:
        """Seconds that a new prompt takes."""
        self._context.drop(0)
        begun_s = time.perf_counter()
        self._feed(0, num_tokens)
        return time.perf_counter() - begun_s

    def keep(self, num_texts: int, length: int) -> None:
        """Let other sequences hold texts."""
        for number in range(num_texts):
            self._context.drop(self._num_sequences - 1 - number)
            self._feed(self._num_sequences - 1 - number, length)

    def prepare(self, length: int, num_rows: int) -> Step:
        """Run a prompt; each step then runs a row of each sequence after it."""
        for sequence in range(max(16, num_rows)):
            self._context.drop(sequence)
        self._feed(0, length)
        rows = list(range(num_rows))
        tokens = np.full(num_rows, _TOKEN, dtype=np.int32)

        def step(number: int) -> None:
            if not number:
                for row in rows:
                    self._context.remove(row, length, MAX_LEN)
                for row in rows[1:]:
                    self._context.drop(row)
                    self._context.share(0, row, 0, length)
            self._context.run(tokens, [length + number] * num_rows, rows, rows)

        return step

    def _feed(self, sequence: int, num_tokens: int) -> None:
        for start in range(0, num_tokens, _CHUNK):
            count = min(_CHUNK, num_tokens - start)
            tokens = np.full(count, _TOKEN, dtype=np.int32)
            wanted = [count - 1] if start + count == num_tokens else []
            self._context.run(tokens, list(range(start, start + count)), [sequence] * count, wanted)


def gguf_file(model: str) -> Path:
    """The GGUF file of a known model, or `model` itself if it is a GGUF file.

    Raises:
        CommandError: there is no such file.
    """
    if model in KNOWN_MODELS:
        return ModelStore().ensure(model)
    if Path(model).suffix == ".gguf" and Path(model).is_file():
        return Path(model)
    raise CommandError(
        f"llama.cpp reads GGUF files, and {model} is not one. Name a .gguf file, or leave llama.cpp out."
    )


def _memory_mb(what: str) -> int | None:
    """`VmRSS` (now) or `VmHWM` (most so far) of this process; None: this system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith(f"{what}:")), None)
