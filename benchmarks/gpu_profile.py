"""Where decode steps spend their time on a GPU: the most expensive kernels, and the gaps between them."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from superdraft.benchmarks.gpu_load import STRATEGIES, Load, load_engine
from superdraft.benchmarks.gpu_models import Scorer, Workbench
from superdraft.benchmarks.gpu_steps import GREEDY, steps_engine, token_prompt
from superdraft.benchmarks.gpu_timing import Findings, synchronise
from superdraft.decoding.engine import Engine
from superdraft.decoding.params import GenerationParams

NUM_STEPS = 20
NUM_KERNELS = 25
_NAME_LENGTH = 90
_TOKENS = 3 * NUM_STEPS

Span = tuple[float, float]


def profile_single_row(bench: Workbench, context: int) -> Findings:
    """Greedy decode steps of one row."""
    engine = steps_engine(bench, context)
    prompt = token_prompt(context - _TOKENS // 2, engine._runner.vocab_size)
    return profile_steps(engine, [prompt], replace(GREEDY, max_tokens=_TOKENS), None)


def profile_load(bench: Workbench, load: Load) -> Findings:
    """Superposed decode steps of all requests in flight."""
    engine = load_engine(bench, load)
    chance = random.Random(11)  # noqa: S311 (not for secrets)
    prompts = [
        token_prompt(load.context, engine._runner.vocab_size, chance.randrange(10**6)) for _ in range(load.in_flight)
    ]
    return profile_steps(engine, prompts, replace(STRATEGIES["superposed"], max_tokens=_TOKENS), bench.scorer)


def profile_steps(
    engine: Engine, prompts: Sequence[list[int]], params: GenerationParams, scorer: Scorer | None
) -> Findings:
    """Profile `NUM_STEPS` decode steps of these requests, the first few not counted.

    Raises:
        RuntimeError: the requests were through before all of them were running.
    """
    device = engine._runner.device
    for number, prompt in enumerate(prompts):
        engine.add_request(f"profiled {number}", prompt, params, scorer)
    try:
        for _ in range(len(prompts) + NUM_STEPS):
            engine.step()
            if engine.num_waiting == 0 and engine.last_step.kind == "decode":
                break
        for _ in range(3):
            engine.step()
        if engine.num_running < len(prompts):
            raise RuntimeError(f"Only {engine.num_running} of {len(prompts)} requests run together.")
        synchronise(device)
        # Watching the host as well would slow it down and lengthen the gaps.
        activities = [ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU]
        with profile(activities=activities, acc_events=True) as profiler:
            for _ in range(NUM_STEPS):
                engine.step()
            synchronise(device)
    finally:
        for number in range(len(prompts)):
            engine.cancel(f"profiled {number}")
    return summarise(_kernels(profiler, device), NUM_STEPS)


def _kernels(profiler: Any, device: torch.device) -> list[tuple[str, Span]]:
    """What ran on the device, with begin and end in microseconds; on a CPU the operations that nothing contains."""
    events = [event for event in profiler.events() if event.device_type.name == "CUDA"]
    if device.type != "cuda":
        events = [event for event in profiler.events() if event.cpu_parent is None]
    return [(event.name, (event.time_range.start, event.time_range.end)) for event in events]


def summarise(kernels: Sequence[tuple[str, Span]], num_steps: int) -> Findings:
    """The kernels that took longest in all, and how much of the time the device ran nothing.

    Args:
        kernels: names, with begin and end in microseconds.
        num_steps: decode steps that they belong to.

    Raises:
        RuntimeError: there are none.
    """
    if not kernels:
        raise RuntimeError("The profiler saw nothing run on the device.")
    took, count = defaultdict[str, float](float), defaultdict[str, int](int)
    for name, (begin, end) in kernels:
        took[name] += end - begin
        count[name] += 1
    total = sum(took.values())
    dearest = sorted(took, key=lambda name: -took[name])[:NUM_KERNELS]
    rows = [
        {
            "kernel": name[:_NAME_LENGTH],
            "us a step": round(took[name] / num_steps, 2),
            "share": round(took[name] / total, 4) if total else 0.0,
            "calls a step": round(count[name] / num_steps, 2),
        }
        for name in dearest
    ]
    spans = [span for _, span in kernels]
    length = max(end for _, end in spans) - min(begin for begin, _ in spans)
    idle, num_gaps = gaps(spans)
    return Findings(
        rows,
        [
            f"A step: {length / num_steps:.1f} us from first to last kernel, {len(kernels) / num_steps:.1f} kernels, "
            f"{idle / num_steps:.1f} us in {num_gaps / num_steps:.1f} gaps in which none runs ({num_steps} steps; "
            "watching slows them down)."
        ],
    )


def gaps(spans: Sequence[Span]) -> tuple[float, int]:
    """How long, and how often, no span runs between the first and the last one."""
    idle, number = 0.0, 0
    latest_end = min(begin for begin, _ in spans)
    for begin, end in sorted(spans):
        if begin > latest_end:
            idle += begin - latest_end
            number += 1
        latest_end = max(latest_end, end)
    return idle, number
