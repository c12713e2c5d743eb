"""CUDA graphs of decode steps: recorded once per shape, then replayed, so hundreds of short kernels start as one.

A graph stores shapes and addresses, but no Python values. A replay reads whatever its input buffers hold at the time.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch
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


class StepGraphs:
    """The graphs of all shapes used so far.

    Args:
        recorder: records a graph; None: run all operations directly, as on a CPU.
    """

    def __init__(self, recorder: Recorder | None) -> None:
        self._recorder = recorder
        self._graphs: OrderedDict[Hashable, Operations] = OrderedDict()

    def clear(self) -> None:
        """Drop all graphs, because the tensors that they read have been replaced."""
        self._graphs.clear()

    def run(self, shape: Hashable, operations: Operations) -> None:
        """Run a step's operations, by graph if there is one for `shape`; equal shapes must mean equal operations."""
        graph = self._graphs.get(shape)
        if graph is not None:
            self._graphs.move_to_end(shape)
            graph()
            return
        # Run once before recording: libraries initialise at a kernel's first use, which a graph cannot capture.
        operations()
        if self._recorder is not None:
            self._graphs[shape] = self._recorded(self._recorder, operations)
            if len(self._graphs) > MAX_GRAPHS:
                self._graphs.popitem(last=False)

    def _recorded(self, recorder: Recorder, operations: Operations) -> Operations:
        try:
            return recorder(operations)
        except RuntimeError as error:
            # For example, the model's forward waits for the device. Without a graph it is slower but just as correct.
            _logger.warning("This model's decode step cannot be recorded as a CUDA graph and runs without: %s", error)
            self._recorder = None
            return operations
