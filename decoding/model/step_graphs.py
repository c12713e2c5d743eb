"""A step's operations recorded once and replayed: hundreds of short kernels then start as one CUDA graph.

A graph remembers shapes and addresses and nothing of Python: a step of the same shape reads what lies in its buffers
then.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch
from transformers import PreTrainedModel

_logger = logging.getLogger(__name__)

MAX_GRAPHS = 256
"""Each keeps some megabytes on the device; the ones that were not used for longest go first."""

Operations = Callable[[], object]
Recorder = Callable[[Operations], Operations]
"""Runs nothing of what it is given; what it returns repeats it."""


def can_be_recorded(model: PreTrainedModel) -> bool:
    """Whether a CUDA graph can hold a step of this model: not where rotary angles depend on the longest row's length.

    That is compared with the trained length on the host: by "dynamic" angles, and by "longrope" ones in some versions
    of transformers.
    """
    for module in model.modules():
        kinds = getattr(module, "rope_type", ())
        kinds = kinds.values() if isinstance(kinds, dict) else [kinds]
        if any("dynamic" in kind or kind == "longrope" for kind in kinds):
            return False
    return True


class CudaGraphRecorder:
    """Records CUDA graphs, which share the memory of what they compute on the way, since no two run at once."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, operations: Operations) -> Operations:
        """The graph of some operations, none of which may wait for the device.

        Raises:
            RuntimeError: one of them cannot be recorded.
        """
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the device meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            operations()
        return graph.replay


class StepGraphs:
    """The graphs of all shapes that were needed so far.

    Args:
        recorder: makes a graph; None: everything is run as it is, as on a CPU.
    """

    def __init__(self, recorder: Recorder | None) -> None:
        self._recorder = recorder
        self._graphs: OrderedDict[Hashable, Operations] = OrderedDict()

    def clear(self) -> None:
        """Forget all of them, since what they read lies elsewhere now."""
        self._graphs.clear()

    def run(self, shape: Hashable, operations: Operations) -> None:
        """Run the operations of a step of some shape; `operations` must do the same whenever `shape` is the same."""
        graph = self._graphs.get(shape)
        if graph is not None:
            self._graphs.move_to_end(shape)
            graph()
            return
        # Run before it is recorded: libraries set themselves up at a kernel's first use, which no graph can hold.
        operations()
        if self._recorder is not None:
            self._graphs[shape] = self._recorded(self._recorder, operations)
            if len(self._graphs) > MAX_GRAPHS:
                self._graphs.popitem(last=False)

    def _recorded(self, recorder: Recorder, operations: Operations) -> Operations:
        try:
            return recorder(operations)
        except RuntimeError as error:
            # A model whose forward waits for the device, for instance. It is slower this way, and as right.
            _logger.warning("This model's decode step cannot be recorded as a CUDA graph and runs without: %s", error)
            self._recorder = None
            return operations
