"""Numbers from the host to a device."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def to_device(values: Sequence[Any], device: torch.device, dtype: torch.dtype = torch.long) -> Tensor:
    """A tensor of these (nested) numbers on `device`; the host does not wait for what that is doing.

    A copy to a GPU from memory that is not pinned would wait for all that was started before.
    """
    tensor = torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda")
    return tensor.to(device, non_blocking=True)
