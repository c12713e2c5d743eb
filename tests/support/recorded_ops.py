"""Emulation of CUDA graphs on any device: records a function's operations and replays them without its Python code.

Tensors keep the memory that they had during recording. A replay reads the current contents of the inputs and writes the
results to the memory of the recorded ones. Operations that need the host are refused, except `tolist()` and `numpy()`,
which torch does not report; `fake_cuda` detects those too.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from superdraft.decoding.model.step_graphs import Operations

_aten = torch.ops.aten
_HOST_TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
_HOST_OPERATIONS = {
    _aten._local_scalar_dense.default,
    _aten.item.default,
    _aten.is_nonzero.default,
    _aten.equal.default,
    _aten.lift_fresh.default,  # a tensor made of Python data
    _aten.lift_fresh_copy.default,
}


def refuse_host_work(func: Any, args: tuple) -> None:
    """Fail if a CUDA graph cannot contain the operation: it needs values on the host, from the host, or for a shape."""
    if func is _aten.index.Tensor:  # its shape depends on values only if an index is a mask
        unfit = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    else:
        unfit = func in _HOST_OPERATIONS or bool(_HOST_TAGS & set(func.tags))
    if unfit:
        raise AssertionError(f"{func} needs the host, which is not possible in a recorded step.")


@dataclass(frozen=True)
class _Call:
    func: Any
    args: tuple
    kwargs: dict
    output: Any


class RecordedOps(TorchDispatchMode):
    """Records the operations that run inside it::

    with RecordedOps() as recorded:
        logits = step()
    embeddings.copy_(others)
    recorded.replay()  # logits are now those of `others`
    """

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[_Call] = []

    @property
    def names(self) -> list[str]:
        """Names of the recorded operations in order, such as "aten.mm.default"."""
        return [str(call.func) for call in self._calls]

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        refuse_host_work(func, args)
        output = func(*args, **(kwargs or {}))
        self._calls.append(_Call(func, args, kwargs or {}, output))
        return output

    @torch.inference_mode()
    def replay(self) -> None:
        """Run the operations again."""
        for call in self._calls:
            again = call.func(*call.args, **call.kwargs)
            for old, new in zip(tree_leaves(call.output), tree_leaves(again), strict=True):
                # Views and in-place results are already in the recorded memory.
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class CountedRecorder:
    """Replacement for `CudaGraphRecorder` that records operations, and counts graphs and replays."""

    def __init__(self) -> None:
        self.num_graphs = self.num_replays = 0

    def __call__(self, operations: Operations) -> Operations:
        self.num_graphs += 1
        with RecordedOps() as recorded:
            operations()

        def replay() -> None:
            self.num_replays += 1
            recorded.replay()

        return replay
