"""Registry of the weight formats: the values of `dtype`.

A new format is a file with a `Conversion`, such as `linear_int4`, and a line in `WEIGHT_FORMATS`.
"""

from collections.abc import Mapping

import torch

from superdraft.decoding.errors import ModelLoadError
from superdraft.decoding.model.linear import WeightFormat
from superdraft.decoding.model.linear_int4 import convert_int4
from superdraft.decoding.model.native.library import has_kernels

WEIGHT_FORMATS: Mapping[str, WeightFormat] = {
    weight_format.name: weight_format
    for weight_format in (
        WeightFormat("float32", torch.float32),
        WeightFormat("bfloat16", torch.bfloat16),
        WeightFormat("float16", torch.float16),
        WeightFormat("int4", torch.bfloat16, convert_int4),
    )
}


def choose_weight_format(dtype: str, device: torch.device) -> WeightFormat:
    """The weight format of a name.

    Args:
        dtype: a name in `WEIGHT_FORMATS`, or "auto": bfloat16 on a GPU; int4 on a CPU with native kernels or bfloat16
            instructions; float32 on other CPUs.
        device: where the model will run.

    Raises:
        ModelLoadError: no format has this name, or it is not for this device.
    """
    if dtype == "auto":
        dtype = "bfloat16" if device.type == "cuda" else "int4" if has_kernels() or _has_fast_bfloat16() else "float32"
    if dtype not in WEIGHT_FORMATS:
        *names, last = ("auto", *WEIGHT_FORMATS)
        raise ModelLoadError(f"dtype must be {', '.join(names)} or {last}, got {dtype!r}.")
    if device.type == "cuda" and WEIGHT_FORMATS[dtype].convert is not None:
        raise ModelLoadError(f"dtype {dtype} is for CPUs. On a GPU use bfloat16, got device {device}.")
    return WEIGHT_FORMATS[dtype]


def _has_fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices itself; without such instructions float32 is faster."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
