"""CUDA graphs of decode steps: recorded once per shape, then replayed, so hundreds of short kernels start as one.

A graph stores shapes and addresses, but no Python values. A replay reads whatever its input buffers hold at the time.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

_logger = logging.getLogger(__name__)

MAX_GRAPHS = 256
"""Each takes a few megabytes of device memory; the least recently used are dropped first."""

Operations = Callable[[], object]
Recorder = Callable[[Operations], Operations]
"""Captures operations without running them and returns a function that replays them."""


def can_be_recorded(model: PreTrainedModel) -> bool:
    """Whether a CUDA graph can capture a step of this model.

    It cannot if the rotary angles depend on the longest row's length, because the host compares that with the trained
    length. This applies to "dynamic" angles and, in some versions of transformers, to "longrope" angles.
    """
    for module in model.modules():
        kinds = getattr(module, "rope_type", ())
        kinds = kinds.values() if isinstance(kinds, dict) else [kinds]
        if any("dynamic" in kind or kind == "longrope" for kind in kinds):
            return False
    return True


class CudaGraphRecorder:
    """Records CUDA graphs. They share memory for intermediate results, since no two of them run at once."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, operations: Operations) -> Operations:
        """Record operations, none of which may wait for the device, as a graph.

        Raises:
            RuntimeError: an operation cannot be recorded.
        """
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the device during the capture.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            operations()
        return graph.replay


@dataclass(frozen=True, slots=True)
class StepTensors:
    """Inputs of a step with B slots and T rows in each. `SlotKVCache` and `Grid` define them.

    Attributes:
        embeddings: shape [B, T, D].
        slots: shape [B].
        cells: shape [B, T].
        positions: shape [B, T].
        distances: shape [B, T, C].
    """

    embeddings: Tensor
    slots: Tensor
    cells: Tensor
    positions: Tensor
    distances: Tensor

    @property
    def all(self) -> tuple[Tensor, ...]:
        """All of them, in a fixed order."""
        return self.embeddings, self.slots, self.cells, self.positions, self.distances


@dataclass(slots=True)
class _Recorded:
    """A graph with the tensors whose addresses it stores. Each step's inputs are copied into them."""

    inputs: StepTensors
    logits: Tensor
    replay: Operations


class StepGraphs:
    """The graphs of all shapes used so far.

    Args:
        recorder: records a graph.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder: Recorder | None = recorder
        self._graphs: OrderedDict[Hashable, _Recorded] = OrderedDict()

    def clear(self) -> None:
        """Drop all graphs, because the tensors that they read have been replaced."""
        self._graphs.clear()

    def run(self, shape: Hashable, inputs: StepTensors, forward: Callable[[StepTensors], Tensor]) -> Tensor:
        """Run a step by graph if there is one for `shape`; equal shapes must mean equal operations.

        Args:
            shape: what the operations depend on.
            inputs: the step's inputs.
            forward: inputs -> logits [B, T, V].

        Returns:
            The logits, valid until the next step of this shape.
        """
        recorded = self._graphs.get(shape)
        if recorded is None:
            return self._record(shape, inputs, forward)
        self._graphs.move_to_end(shape)
        for target, source in zip(recorded.inputs.all, inputs.all, strict=True):
            target.copy_(source)
        recorded.replay()
        return recorded.logits

    def _record(self, shape: Hashable, inputs: StepTensors, forward: Callable[[StepTensors], Tensor]) -> Tensor:
        """Run a step and record it."""
        # Run once before recording: libraries initialise at a kernel's first use, which a graph cannot capture.
        logits = forward(inputs)
        if self._recorder is None:
            return logits
        own = StepTensors(*(tensor.clone() for tensor in inputs.all))
        kept = logits.clone()
        try:
            replay = self._recorder(lambda: kept.copy_(forward(own)))
        except RuntimeError as error:
            # For example, the model's forward waits for the device. Without a graph it is slower but just as correct.
            _logger.warning("This model's decode step cannot be recorded as a CUDA graph and runs without: %s", error)
            self._recorder = None
            return logits
        self._graphs[shape] = _Recorded(own, kept, replay)
        if len(self._graphs) > MAX_GRAPHS:
            self._graphs.popitem(last=False)
        return logits
