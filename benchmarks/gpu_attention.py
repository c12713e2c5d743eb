"""Which kernel computes the attention of a decode step fastest, by rows, positions and heads."""

import math
from collections.abc import Callable
from typing import Any

import torch

from superdraft.benchmarks.gpu_models import Shape
from superdraft.benchmarks.gpu_timing import Findings, seconds_of
from superdraft.decoding.attention_choice import AttentionShape, choose_attention
from superdraft.decoding.decode_attention import CANDIDATES
from superdraft.decoding.trials import Trial

MAX_BYTES = 4 << 30
"""Of one layer's keys and values: larger shapes are left out."""

# torch.compile takes seconds for each shape: what it makes is tried where the figures matter most.
COMPILED_SIZES = ((1, 1024), (64, 1024))


def compare_attention(
    device: torch.device, shapes: dict[str, Shape], rows: tuple[int, ...], contexts: tuple[int, ...]
) -> Findings:
    """Every way that the engine can choose from, for every number of rows and positions.

    Args:
        device: where it runs.
        shapes: of the models whose heads are looked at, by name.
        rows: numbers of rows.
        contexts: numbers of positions read.
    """
    found = Findings()
    for name, shape in shapes.items():
        head_dim = shape.width // shape.num_heads
        for num_rows in rows:
            for context in contexts:
                layer_bytes = 4 * num_rows * shape.num_kv_heads * context * head_dim
                if layer_bytes > MAX_BYTES:
                    continue
                size = AttentionShape(
                    num_rows, shape.num_kv_heads, shape.num_heads // shape.num_kv_heads, head_dim, context
                )
                options = _options(device, (num_rows, context) in COMPILED_SIZES)
                chosen = choose_attention(size, torch.bfloat16, device, scale=1 / math.sqrt(head_dim), **options)
                found.rows += [
                    _row(name, num_rows, context, layer_bytes, chosen.name, trial) for trial in chosen.trials
                ]
    found.notes = ["GB/s: bytes of all positions' keys and values divided by the time."]
    return found


def _options(device: torch.device, may_compile: bool) -> dict[str, Any]:
    if device.type == "cuda":
        return {"may_compile": may_compile}
    plain = {name: candidate for name, candidate in CANDIDATES.items() if not candidate.is_compiled}

    def timer(run: Callable[[], object]) -> float:
        return 1000 * seconds_of(device, run)

    return {"candidates": plain, "timer": timer}


def _row(name: str, num_rows: int, context: int, layer_bytes: int, chosen: str, trial: Trial) -> dict[str, Any]:
    took_ms = trial.time_ms
    return {
        "heads of": name,
        "rows": num_rows,
        "context": context,
        "way": trial.name,
        "us": None if took_ms is None else round(1000 * took_ms, 2),
        "GB/s": None if took_ms is None else round(layer_bytes / took_ms / 1e6, 1),
        "is best": trial.name == chosen,
        "left out": trial.reason,
    }
