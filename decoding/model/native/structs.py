"""The interface of Python and the C++ kernels: the same structs and constants as in the C++ files.

`load_kernels` compares their sizes with those that a library was compiled with; `decoder.cpp` states where each begins.
"""

import ctypes
from enum import IntEnum

GROUP = 32
"""Inputs that are rounded together: `kGroup`."""

PANEL = 16
"""Outputs of a linear layer that lie together: `kPanel`."""

SUPERBLOCK = 8
"""Groups whose scales are given relative to one: `kSuperblock`."""

MAX_PARTS = 3
"""Matrices of one linear layer: `kMaxParts`."""

LANES = 16
"""Numbers of a vector: `kLanes`."""

MAX_SHARED = 96
"""Queries that may share keys and values: `kQueryBlock`."""

PHASES = (
    "norms",
    "products",
    "rotary",
    "attention",
    "attention",
    "products",
    "norms",
    "products",
    "products",
    "norms",
    "head",
)
"""What a forward does between two meetings of its threads: the phases of a layer, then of the head."""


class Format(IntEnum):
    """The formats of weights: `kFormats` in `products.h`."""

    INT4 = 0
    Q5_0 = 1
    Q5_1 = 2
    INT8 = 3
    Q4_K = 4
    Q5_K = 5
    Q6_K = 6
    Q3_K = 7
    Q2_K = 8


class Activation(IntEnum):
    """The functions of gates: `Activation` in `decoder.cpp`."""

    SILU = 0
    GELU_TANH = 1


class MatrixStruct(ctypes.Structure):
    """`Matrix` in `packing.h`."""

    _fields_ = (
        ("rows", ctypes.c_void_p),
        ("row_bytes", ctypes.c_int64),
        ("type", ctypes.c_int32),
        ("num_inputs", ctypes.c_int32),
    )


class WeightsStruct(ctypes.Structure):
    """`Weights` in `products.h`."""

    _fields_ = (("panels", ctypes.c_void_p), ("format", ctypes.c_int32), ("num_panels", ctypes.c_int32))


class LinearStruct(ctypes.Structure):
    """`Linear` in `products.h`."""

    _fields_ = (
        ("parts", WeightsStruct * MAX_PARTS),
        ("bias", ctypes.c_void_p),
        ("num_outputs", ctypes.c_int32),
        ("num_inputs", ctypes.c_int32),
    )


class LayerStruct(ctypes.Structure):
    """`Layer` in `decoder.cpp`."""

    _fields_ = (
        ("input_norm", ctypes.c_void_p),
        ("qkv", LinearStruct),
        ("query_norm", ctypes.c_void_p),
        ("key_norm", ctypes.c_void_p),
        ("output", LinearStruct),
        ("post_attention_norm", ctypes.c_void_p),
        ("mlp_norm", ctypes.c_void_p),
        ("gate_up", LinearStruct),
        ("down", LinearStruct),
        ("post_mlp_norm", ctypes.c_void_p),
        ("window", ctypes.c_int32),
        ("rotation", ctypes.c_int32),
    )


class ModelStruct(ctypes.Structure):
    """`Model` in `decoder.cpp`."""

    _fields_ = (
        ("layers", ctypes.c_void_p),
        ("norm", ctypes.c_void_p),
        ("head", LinearStruct),
        ("num_layers", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("num_heads", ctypes.c_int32),
        ("num_kv_heads", ctypes.c_int32),
        ("head_dim", ctypes.c_int32),
        ("rotary_dim", ctypes.c_int32),
        ("activation", ctypes.c_int32),
        ("epsilon", ctypes.c_float),
        ("scaling", ctypes.c_float),
        ("residual", ctypes.c_float),
    )


class BatchStruct(ctypes.Structure):
    """`Batch` in `decoder.cpp`."""

    _fields_ = (
        ("embeddings", ctypes.c_void_p),
        ("cosines", ctypes.c_void_p),
        ("sines", ctypes.c_void_p),
        ("slots", ctypes.c_void_p),
        ("starts", ctypes.c_void_p),
        ("counts", ctypes.c_void_p),
        ("bases", ctypes.c_void_p),
        ("paths", ctypes.c_void_p),
        ("kept", ctypes.c_void_p),
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("logits", ctypes.c_void_p),
        ("seconds", ctypes.c_void_p),
        ("slot_stride", ctypes.c_int64),
        ("head_stride", ctypes.c_int64),
        ("num_rows", ctypes.c_int32),
        ("num_segments", ctypes.c_int32),
        ("num_kept", ctypes.c_int32),
        ("num_threads", ctypes.c_int32),
    )


def expected_layout() -> list[int]:
    """What `superdraft_layout` must write: sizes of the structs in bytes, then the constants."""
    structs = (MatrixStruct, LinearStruct, LayerStruct, ModelStruct, BatchStruct)
    constants = (GROUP, PANEL, SUPERBLOCK, LANES, MAX_SHARED, len(PHASES), len(Format))
    return [*map(ctypes.sizeof, structs), *constants]
