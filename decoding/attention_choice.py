"""Which way of `decode_attention` is the fastest for a shape, found by trying them on the GPU itself."""

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from superdraft.decoding.decode_attention import CANDIDATES, Attention, Candidate, masked_sdpa
from superdraft.decoding.trials import TIMED_BYTES, Comparison, Timer, Trial, graph_time_ms, run_trials

_logger = logging.getLogger(__name__)
_MAX_TIMED_LAYERS = 32
_UNUSED_VALUE = 50.0
_UNUSED_POSITIONS = 8


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """R rows, Hkv heads of keys and values, G query heads to each, Dh numbers a head, C positions read."""

    num_rows: int
    num_kv_heads: int
    group_size: int
    head_dim: int
    read_length: int


@dataclass(frozen=True, slots=True)
class AttentionChoice:
    """The fastest candidate, and all that was tried for it."""

    name: str
    attention: Attention
    trials: tuple[Trial, ...] = ()


@torch.inference_mode()
def choose_attention(
    shape: AttentionShape,
    dtype: torch.dtype,
    device: torch.device,
    *,
    scale: float,
    has_window: bool = False,
    tries_all: bool = True,
    candidates: Mapping[str, Candidate] | None = None,
    timer: Timer = graph_time_ms,
) -> AttentionChoice:
    """Try the candidates on random numbers and take the fastest of those that are right.

    Away from a GPU nothing is tried unless candidates are given: it is torch's attention with the mask.

    Args:
        shape: of one step.
        dtype: of queries, keys and values.
        device: where the step runs.
        scale: the products of queries and keys are multiplied by it.
        has_window: rows do not see all positions up to their length, so only candidates that read the mask are right.
        tries_all: those too that torch.compile makes, which takes seconds for each shape, and those that call functions
            which torch does not document: a kernel that is used wrongly can end the process.
        candidates: by name; None: all there are.
        timer: measures a call of the candidate for several layers.

    Raises:
        UnsupportedModelError: none of them is right.
    """
    if candidates is None and device.type != "cuda":
        return AttentionChoice("sdpa", masked_sdpa)
    fitting = {
        name: candidate
        for name, candidate in (CANDIDATES if candidates is None else candidates).items()
        if (candidate.reads_mask or not has_window) and (tries_all or candidate.is_simple)
    }
    try:
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            compared, timed = _layers(shape, dtype, device, scale)
            name, trials = run_trials(
                f"attention of {shape} in {dtype} on {device}",
                {name: candidate.attention for name, candidate in fitting.items()},
                [Comparison(layer, _reference(*layer)) for layer in compared],
                timed,
                timer,
            )
    except torch.OutOfMemoryError:
        # The KV cache has taken its memory already; what is left need not hold copies of a layer's part of it.
        _logger.warning("there is no memory to try ways to compute attention of %s: torch's own is used", shape)
        return AttentionChoice("sdpa", masked_sdpa)
    return AttentionChoice(name, fitting[name].attention, trials)


_Layer = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, float]


def _layers(
    shape: AttentionShape, dtype: torch.dtype, device: torch.device, scale: float
) -> tuple[list[_Layer], list[_Layer]]:
    """Layers to compare, and layers to time."""
    random = torch.Generator(device).manual_seed(0)
    last, rows = shape.read_length - 1, shape.num_rows
    spans = [(last, 0), (0, last)]  # lengths of the first and the last row; one row alone is as long as the first
    lengths = [torch.linspace(*span, rows, device=device).round().long() for span in spans]
    compared = [_random_layer(shape, dtype, row_lengths, scale, random) for row_lengths in lengths]
    num_layers = 1
    if device.type == "cuda":
        layer_bytes = 2 * rows * shape.num_kv_heads * shape.read_length * shape.head_dim * dtype.itemsize
        num_layers = min(_MAX_TIMED_LAYERS, max(1, TIMED_BYTES // layer_bytes))
    # The longest row decides what all of them read; how long the others are depends on the requests.
    usual = torch.linspace(last, last // 2, rows, device=device).round().long()
    return compared, [_random_layer(shape, dtype, usual, scale, random) for _ in range(num_layers)]


def _random_layer(
    shape: AttentionShape, dtype: torch.dtype, lengths: Tensor, scale: float, random: torch.Generator
) -> _Layer:
    """Inputs of an attention. Values that no row should see are large: one of them would show."""
    device, rows, heads, length = lengths.device, shape.num_rows, shape.num_kv_heads, shape.read_length
    slots = (2, rows, heads, length + _UNUSED_POSITIONS, shape.head_dim)
    queries = torch.randn(rows, heads, shape.group_size, shape.head_dim, generator=random, device=device).to(dtype)
    block = torch.randn(slots, generator=random, device=device).to(dtype)
    unseen = torch.arange(slots[3], device=device) > lengths[:, None, None]
    block[1].masked_fill_(unseen[..., None], _UNUSED_VALUE)
    keys, values = block[:, :, :, :length].unbind(0)
    mask = torch.zeros(rows, 1, 1, length, dtype=dtype, device=device)
    mask.masked_fill_(unseen[:, None, :, :length], torch.finfo(dtype).min)
    return queries, keys, values, lengths, mask, scale


def _reference(queries: Tensor, keys: Tensor, values: Tensor, _lengths: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Plain arithmetic in float32, or in float64 if that is what comes in."""
    exact = torch.promote_types(queries.dtype, torch.float32)
    scores = queries.to(exact) @ keys.to(exact).transpose(2, 3) * scale + mask.to(exact)
    return scores.softmax(-1) @ values.to(exact)
