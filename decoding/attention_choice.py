"""Which way of `decode_attention` is the fastest for a shape, found by trying them on the GPU itself."""

import contextlib
import logging
import statistics
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from superdraft.decoding.decode_attention import CANDIDATES, Attention, Candidate, masked_sdpa
from superdraft.decoding.errors import UnsupportedModelError

Timer = Callable[[Callable[[], object]], float]
"""Milliseconds that a function takes."""

_logger = logging.getLogger(__name__)

# Of the largest number of each row's result. bfloat16 keeps 8 bits and float16 11; the kernels round probabilities to
# them and add up in float32 in their own order. A position too many or too few is off by far more, see `_random_layer`.
TOLERANCES = {torch.bfloat16: 0.03, torch.float16: 0.005, torch.float32: 1e-3, torch.float64: 1e-5}
# Keys and values of a model's many layers do not stay in a GPU's cache from step to step; neither shall these.
_TIMED_BYTES = 256 << 20
_MAX_TIMED_LAYERS = 32
_UNUSED_VALUE = 50.0
_UNUSED_POSITIONS = 8
_NUM_REPLAYS = 20
_REASON_LENGTH = 200


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """R rows, Hkv heads of keys and values, G query heads to each, Dh numbers a head, C positions read."""

    num_rows: int
    num_kv_heads: int
    group_size: int
    head_dim: int
    read_length: int


@dataclass(frozen=True, slots=True)
class Trial:
    """What became of one candidate: its time for one layer, or why it was left out."""

    name: str
    time_ms: float | None = None
    reason: str | None = None

    def __str__(self) -> str:
        return f"{self.name} {self.reason if self.time_ms is None else f'{self.time_ms:.4f} ms'}"


@dataclass(frozen=True, slots=True)
class AttentionChoice:
    """The fastest candidate, and all that was tried for it."""

    name: str
    attention: Attention
    trials: tuple[Trial, ...] = ()


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


@torch.inference_mode()
def choose_attention(
    shape: AttentionShape,
    dtype: torch.dtype,
    device: torch.device,
    *,
    scale: float,
    has_window: bool = False,
    may_compile: bool = True,
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
        may_compile: try those that torch.compile makes too; it takes seconds for each shape.
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
        if (candidate.reads_mask or not has_window) and (may_compile or not candidate.is_compiled)
    }
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        test = _Test(shape, dtype, device, scale, timer)
        trials = [test.trial(name, candidate.attention) for name, candidate in fitting.items()]
    _logger.info("attention of %s in %s: %s", shape, dtype, "; ".join(map(str, trials)))
    times = {trial.name: trial.time_ms for trial in trials if trial.time_ms is not None}
    if not times:
        raise UnsupportedModelError(f"No way to compute attention works on {device}: {'; '.join(map(str, trials))}.")
    fastest = min(times, key=times.__getitem__)
    return AttentionChoice(fastest, fitting[fastest].attention, tuple(trials))


_Layer = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


class _Test:
    """What each candidate goes through: some layers to compare, and some to time."""

    def __init__(
        self, shape: AttentionShape, dtype: torch.dtype, device: torch.device, scale: float, timer: Timer
    ) -> None:
        self._scale, self._timer, self._allowed = scale, timer, TOLERANCES[dtype]
        random = torch.Generator(device).manual_seed(0)
        last, rows = shape.read_length - 1, shape.num_rows
        spans = [(last, 0), (0, last)]  # lengths of the first and the last row; one row alone is as long as the first
        lengths = [torch.linspace(*span, rows, device=device).round().long() for span in spans]
        self._compared = [_random_layer(shape, dtype, row_lengths, random) for row_lengths in lengths]
        self._expected = [_reference(*layer, scale) for layer in self._compared]
        num_layers = 1
        if device.type == "cuda":
            layer_bytes = 2 * rows * shape.num_kv_heads * shape.read_length * shape.head_dim * dtype.itemsize
            num_layers = min(_MAX_TIMED_LAYERS, max(1, _TIMED_BYTES // layer_bytes))
        # The longest row decides what all of them read; how long the others are depends on the requests.
        usual = torch.linspace(last, last // 2, rows, device=device).round().long()
        self._timed = [_random_layer(shape, dtype, usual, random) for _ in range(num_layers)]

    def trial(self, name: str, attention: Attention) -> Trial:
        """Compare and time one candidate; whatever it raises is the reason to leave it out."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns of each reason why a kernel does not fit
                for layer, expected in zip(self._compared, self._expected, strict=True):
                    error = _error(attention(*layer, self._scale), expected)
                    if not error <= self._allowed:  # as with a NaN
                        return Trial(name, reason=f"is off by {error:.2g} of the largest number of a row")
                total = self._timer(lambda: [attention(*layer, self._scale) for layer in self._timed])
        except Exception as problem:  # kernels refuse shapes, types and GPUs in many ways
            message = " ".join(str(problem).split())[:_REASON_LENGTH]
            return Trial(name, reason=f"failed: {type(problem).__name__}: {message}")
        return Trial(name, time_ms=total / len(self._timed))


def _random_layer(shape: AttentionShape, dtype: torch.dtype, lengths: Tensor, random: torch.Generator) -> _Layer:
    """Queries, keys, values, lengths and mask. Values that no row should see are large: one of them would show."""
    device, rows, heads, length = lengths.device, shape.num_rows, shape.num_kv_heads, shape.read_length
    slots = (2, rows, heads, length + _UNUSED_POSITIONS, shape.head_dim)
    queries = torch.randn(rows, heads, shape.group_size, shape.head_dim, generator=random, device=device).to(dtype)
    block = torch.randn(slots, generator=random, device=device).to(dtype)
    unseen = torch.arange(slots[3], device=device) > lengths[:, None, None]
    block[1].masked_fill_(unseen[..., None], _UNUSED_VALUE)
    keys, values = block[:, :, :, :length].unbind(0)
    mask = torch.zeros(rows, 1, 1, length, dtype=dtype, device=device)
    return queries, keys, values, lengths, mask.masked_fill_(unseen[:, None, :, :length], torch.finfo(dtype).min)


def _reference(queries: Tensor, keys: Tensor, values: Tensor, _lengths: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Plain arithmetic in float32, or in float64 if that is what comes in."""
    exact = torch.promote_types(queries.dtype, torch.float32)
    scores = queries.to(exact) @ keys.to(exact).transpose(2, 3) * scale + mask.to(exact)
    return scores.softmax(-1) @ values.to(exact)


def _error(got: Tensor, expected: Tensor) -> float:
    """The largest error of a row, as a part of the row's largest number."""
    if got.shape != expected.shape:
        return float("inf")
    difference = (got.to(expected.dtype) - expected).abs().flatten(1).amax(1)
    return float((difference / expected.abs().flatten(1).amax(1)).amax())
