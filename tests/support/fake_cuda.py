"""Fake GPU: runs a step with torch's rules for shapes, types and devices, but without numbers.

It detects what a CUDA graph cannot contain: host tensors mixed with device tensors, values that the host waits for,
tensors made from Python data, and shapes that depend on values. It works with a build of torch without CUDA.
"""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any, TypeVar
from unittest import mock

import torch
from support.recorded_ops import refuse_host_work
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_T = TypeVar("_T")
_SUBSTITUTES: dict[Any, Any] = {
    Tensor.__invert__: torch.bitwise_not,
    Tensor.nonzero: torch.ops.aten.nonzero,
    Tensor.copy_: torch.ops.aten.copy_,
    Tensor.contiguous: torch.ops.aten.contiguous,
    **dict.fromkeys((Tensor.__int__, Tensor.__float__, Tensor.__bool__, Tensor.__index__), torch.ops.aten.item),
}


@contextlib.contextmanager
def fake_cuda() -> Iterator[None]:
    """In this context every tensor is fake, and `device="cuda"` is an ordinary device."""
    with FakeTensorMode(allow_non_fake_inputs=False), _NoCurrentDevice():
        yield


class _NoCurrentDevice(TorchFunctionMode):
    """Replaces methods that first make the device current, which would fail here, with operations that do not."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is Tensor.__getitem__:
            tensor, indices = _sliced(*args)
            return torch.ops.aten.index(tensor, indices) if indices else tensor
        if func is Tensor.__setitem__:
            (tensor, indices), value = _sliced(*args[:2]), args[2]
            value = value if isinstance(value, Tensor) else tensor.new_full((), value)
            return torch.ops.aten.index_put_(tensor, indices, value) if indices else torch.ops.aten.copy_(tensor, value)
        return _SUBSTITUTES.get(func, func)(*args, **(kwargs or {}))


def _sliced(tensor: Tensor, index: Any) -> tuple[Tensor, list[Tensor | None]]:
    """Return the view given by all parts of the index except tensors, and the tensors by dimension."""
    index = index if isinstance(index, tuple) else (index,)
    num_indexed = sum(item is not None and item is not Ellipsis for item in index)
    skipped, dim = tensor.dim() - num_indexed, 0
    indices: list[Tensor | None] = []
    for item in index:
        if isinstance(item, int):
            tensor = tensor.select(dim, item)
            continue
        if item is None:
            tensor = tensor.unsqueeze(dim)
        elif isinstance(item, slice):
            tensor = torch.ops.aten.slice(tensor, dim, item.start, item.stop, item.step or 1)
        elif isinstance(item, Tensor):
            indices += [None] * (dim - len(indices)) + [item]
        elif item is not Ellipsis:
            raise AssertionError(f"{item!r} as an index would be copied to the device.")
        dim += skipped if item is Ellipsis else 1
    return tensor, indices


class OnlyOnDevice(TorchDispatchMode):
    """Requires every operation to stay on the device, as in a CUDA graph. Use it within `fake_cuda`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        refuse_host_work(func, args)
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, output)):
            if isinstance(tensor, Tensor) and tensor.device.type != "cuda":
                raise AssertionError(f"{func} uses {tensor.device} in a step that should stay on the device.")
        return output


def on_fake_cuda(thing: _T) -> _T:
    """Copy an object, such as a runner, with all its tensors on the fake GPU. Use it within `fake_cuda`.

    Objects are built and validated on a device with real numbers, and then copied.
    """

    def fake(tensor: Tensor, _memo: dict) -> Tensor:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda")

    def fake_weight(weight: nn.Parameter, memo: dict) -> nn.Parameter:
        return nn.Parameter(fake(weight, memo), requires_grad=False)

    by_type = {Tensor: fake, nn.Parameter: fake_weight, torch.device: lambda *_: torch.device("cuda:0")}
    with mock.patch.dict(copy._deepcopy_dispatch, by_type):
        return copy.deepcopy(thing)
