"""The parts of the GPU benchmark in their order, and how large everything is in them."""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from superdraft.benchmarks.gpu_attention import compare_attention
from superdraft.benchmarks.gpu_checks import check
from superdraft.benchmarks.gpu_load import Load, find_capacity, time_load
from superdraft.benchmarks.gpu_models import SHAPES, TINY_SHAPES, Workbench, free_memory
from superdraft.benchmarks.gpu_peers import time_batching, time_generate
from superdraft.benchmarks.gpu_profile import profile_load, profile_single_row
from superdraft.benchmarks.gpu_steps import compare_steps, time_key_presses, time_single_row
from superdraft.benchmarks.gpu_timing import Findings, Roofline, measure_roofline
from superdraft.benchmarks.machine import describe_machine

CHECK = "correctness"


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large everything is.

    Attributes:
        num_prompts: of each case of the check.
        copy_bytes: of the copies that give the bandwidth.
        matmul_size: of the products that give the arithmetic's limit.
        repeats: timed copies and products.
        context: positions before a decode step.
        runs: timed requests of each variant.
        keys: timed key presses of each kind.
        load: of many requests at once.
        attention_rows: numbers of rows whose attention is compared.
        attention_contexts: numbers of positions.
    """

    num_prompts: int
    copy_bytes: int
    matmul_size: int
    repeats: int
    context: int
    runs: int
    keys: int
    load: Load
    attention_rows: tuple[int, ...]
    attention_contexts: tuple[int, ...]


FULL = Sizes(
    num_prompts=50,
    copy_bytes=4 << 30,
    matmul_size=8192,
    repeats=20,
    context=1024,
    runs=15,
    keys=100,
    load=Load(context=1024, in_flight=64, turns=4, rounds=5, kv_budget_bytes=40 * 10**9, verified_share=1 / 8),
    attention_rows=(1, 8, 64, 192),
    attention_contexts=(128, 1024, 4096),
)
TINY = Sizes(
    num_prompts=4,
    copy_bytes=1 << 20,
    matmul_size=64,
    repeats=2,
    context=48,
    runs=2,
    keys=3,
    load=Load(context=48, in_flight=2, turns=1, rounds=2, kv_budget_bytes=200_000, verified_share=1 / 2),
    attention_rows=(1, 2),
    attention_contexts=(16,),
)


class Benchmark:
    """What the parts share.

    Args:
        bench: models and engines.
        sizes: how large everything is.
    """

    def __init__(self, bench: Workbench, sizes: Sizes) -> None:
        self.bench = bench
        self.sizes = sizes
        self._roofline: Roofline | None = None

    @property
    def roofline(self) -> Roofline:
        """Measured when it is first asked for."""
        if self._roofline is None:
            sizes = self.sizes
            self._roofline = measure_roofline(self.bench.device, sizes.copy_bytes, sizes.matmul_size, sizes.repeats)
            free_memory()
        return self._roofline


def _machine(run: Benchmark) -> Findings:
    return Findings([{"what": name, "is": value} for name, value in describe(run.bench).items()])


def _roofline(run: Benchmark) -> Findings:
    found = run.roofline
    return Findings(
        [
            {"limit": "copy, TB/s (read and written)", "value": found.copy_bytes_per_s / 1e12, "ms": found.copy_ms},
            {"limit": "bfloat16 product, TFLOP/s", "value": found.matmul_flop_per_s / 1e12, "ms": found.matmul_ms},
        ]
    )


def _attention(run: Benchmark) -> Findings:
    run.bench.release_engine()
    sizes = run.sizes
    return compare_attention(run.bench.device, run.bench.shapes, sizes.attention_rows, sizes.attention_contexts)


Part = Callable[[Benchmark], Findings]

# What uses the same model stands together. Profiles come last: having been watched, a process may be slower.
PARTS: dict[str, Part] = {
    "machine": _machine,
    CHECK: lambda run: check(run.bench.device, run.bench.scorer, run.sizes.num_prompts),
    "roofline": _roofline,
    "step": lambda run: time_single_row(run.bench, run.roofline, run.sizes.context, run.sizes.runs),
    "superposed": lambda run: compare_steps(run.bench, run.sizes.context, run.sizes.runs),
    "typing": lambda run: time_key_presses(run.bench, run.sizes.context, run.sizes.keys),
    "load": lambda run: time_load(run.bench, run.sizes.load),
    "capacity": lambda run: find_capacity(run.bench, run.sizes.load),
    "generate": lambda run: time_generate(run.bench, run.sizes.load),
    "attention": _attention,
    "batching": lambda run: time_batching(run.bench, run.sizes.load),
    "step-int4": lambda run: time_single_row(run.bench, run.roofline, run.sizes.context, run.sizes.runs, quantise=True),
    "step-tuned": lambda run: time_single_row(
        run.bench, run.roofline, run.sizes.context, run.sizes.runs, tune_kernels=True
    ),
    "load-tuned": lambda run: time_load(run.bench, run.sizes.load, tune_kernels=True),
    "profile-load": lambda run: profile_load(run.bench, run.sizes.load),
    "profile-step": lambda run: profile_single_row(run.bench, run.sizes.context),
}


def describe(bench: Workbench) -> dict[str, str | int | float]:
    """Machine, card, driver and versions."""
    found = describe_machine()
    found["kenlm"] = _kenlm_version()
    found["n-gram model"] = "none" if bench.scorer is None else "given"
    if bench.device.type == "cuda":
        card = torch.cuda.get_device_properties(bench.device)
        found["gpu memory GB"] = round(card.total_memory / 1e9, 1)
        found["multiprocessors"] = card.multi_processor_count
        found["cuda"] = str(torch.version.cuda)
        found["driver, clocks, power"] = _nvidia_smi()
    return found


def _kenlm_version() -> str:
    for name in ("kenlm", "ufal.kenlm"):
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    return "none"


def _nvidia_smi() -> str:
    query = "--query-gpu=driver_version,clocks.max.sm,clocks.max.memory,power.limit"
    try:
        done = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


def make_benchmark(device: str, shapes: str, scorer: Any) -> Benchmark:
    """All that the parts share.

    Args:
        device: "cuda", "cuda:N" or "cpu".
        shapes: "full" or "tiny".
        scorer: the n-gram model; None: none.
    """
    is_tiny = shapes == "tiny"
    bench = Workbench(torch.device(device), TINY_SHAPES if is_tiny else SHAPES, scorer)
    return Benchmark(bench, TINY if is_tiny else FULL)
