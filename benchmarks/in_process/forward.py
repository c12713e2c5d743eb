"""Forward passes by the number of rows, the length of the text and the number of threads, and where their time goes."""

import statistics
import time
from collections.abc import Callable
from typing import Annotated, Any

import torch
import typer

from superdraft.benchmarks.options import AsJson
from superdraft.benchmarks.summary import report, tracked
from superdraft.decoding import Engine, EngineConfig, load_engine
from superdraft.decoding.loading.catalogue import DEFAULT_MODEL
from superdraft.decoding.model.native.runner import NativeRunner
from superdraft.decoding.model.native.structs import PHASES
from superdraft.decoding.model.threads import candidates, num_cores
from superdraft.decoding.model.torch_runner import TorchRunner
from superdraft.evaluation.options import Dtype, Model

NUM_ROWS = [1, 3, 8, 16, 64]
LENGTHS = [64, 1900]
PROMPTS = [32, 256, 900]
_MAX_LEN = 2048
_TOKEN = 7  # any: the time does not depend on it


def main(
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    rows: Annotated[list[int], typer.Option("--rows", min=1, help="Rows of a decode step. Repeatable.")] = NUM_ROWS,
    lengths: Annotated[
        list[int], typer.Option("--length", min=1, max=_MAX_LEN - 1, help="Positions before each row. Repeatable.")
    ] = LENGTHS,
    prompts: Annotated[
        list[int], typer.Option("--prompt", min=1, max=_MAX_LEN, help="Tokens of a prompt. Repeatable.")
    ] = PROMPTS,
    runs: Annotated[int, typer.Option(min=1, help="Runs of each.")] = 9,
    as_json: AsJson = False,
) -> None:
    """Time decode steps and prompts, with 1, 2, 4, ... threads."""
    config = EngineConfig(max_model_len=_MAX_LEN, num_slots=max(rows), kv_memory_bytes=16 * 1024**3)
    engine = load_engine(model, config, dtype=dtype)
    found = [
        measure(engine, num_threads, what, size, length, runs)
        for num_threads in candidates(num_cores())
        for what, size, length in tracked(
            [("step", size, length) for length in lengths for size in rows] + [("prompt", size, 0) for size in prompts],
            f"{num_threads} threads",
        )
    ]
    runner = engine._runner
    assert isinstance(runner, NativeRunner | TorchRunner)
    settings = {"model": model, "dtype": dtype, "forward": runner.forward_name, "runs": runs}
    report(__doc__, settings, as_json, rows=found)


def measure(engine: Engine, num_threads: int, what: str, size: int, length: int, num_runs: int) -> dict[str, Any]:
    """Medians of a decode step of `size` rows after `length` positions, or of a prompt of `size` tokens."""
    runner = engine._runner
    assert isinstance(runner, NativeRunner | TorchRunner)
    torch.set_num_threads(num_threads)
    run: Callable[[], Any]
    if what == "step":
        embeddings, starts = runner.embed([_TOKEN] * size), [length] * size
        run = lambda: runner.decode(embeddings, starts)  # noqa: E731
    else:
        run = lambda: runner.prefill([0], [[_TOKEN] * size], [0])  # noqa: E731
    run()
    phases = torch.zeros(len(PHASES), dtype=torch.float64)
    if isinstance(runner, NativeRunner):
        phases = runner.decoder.measure()
    times = []
    for _ in range(num_runs):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    row: dict[str, Any] = {
        "threads": num_threads,
        "what": what,
        "rows": size,
        "length": length,
        "ms": round(1e3 * statistics.median(times), 2),
    }
    for name in dict.fromkeys(PHASES):
        seconds = sum(float(phases[index]) for index, phase in enumerate(PHASES) if phase == name)
        row[f"{name}_ms"] = round(1e3 * seconds / num_runs, 3)
    return row
