"""The interface of Python and the C++ kernels: the same structs and constants as in the C++ files.

`load_kernels` compares their sizes with those that a library was compiled with; `decoder.cpp` states where each begins.
"""

import ctypes

PANEL = 16
"""Outputs of a linear layer that lie together: `kPanel`."""

INT4_BLOCK, INT8_BLOCK = 320, 512
"""Bytes of 16 outputs and 32 inputs: `kInt4Block` and `kInt8Block`."""

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


class LinearStruct(ctypes.Structure):
    """`Linear` in `products.h`."""

    _fields_ = (
        ("panels", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("num_outputs", ctypes.c_int32),
        ("num_inputs", ctypes.c_int32),
        ("bits", ctypes.c_int32),
    )


class LayerStruct(ctypes.Structure):
    """`Layer` in `decoder.cpp`."""

    _fields_ = (
        ("input_norm", ctypes.c_void_p),
        ("qkv", LinearStruct),
        ("query_norm", ctypes.c_void_p),
        ("key_norm", ctypes.c_void_p),
        ("output", LinearStruct),
        ("mlp_norm", ctypes.c_void_p),
        ("gate_up", LinearStruct),
        ("down", LinearStruct),
        ("window", ctypes.c_int32),
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
        ("epsilon", ctypes.c_float),
        ("scaling", ctypes.c_float),
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


def expected_layout(group_size: int) -> list[int]:
    """What `superdraft_layout` must write: sizes of the structs in bytes, then the constants."""
    structs = (LinearStruct, LayerStruct, ModelStruct, BatchStruct)
    constants = (group_size, PANEL, INT4_BLOCK, INT8_BLOCK, LANES, MAX_SHARED, len(PHASES))
    return [*map(ctypes.sizeof, structs), *constants]
