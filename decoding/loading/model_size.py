"""Sizes of models: numbers of weights, and the memory that they take while they are loaded and while they serve.

The formulas::

    served  = 5/8 layers + 17/16 head + 4 others             int4 by the kernels: 4 bits, scale and minimum per 32
                                                             weights; 8 bits and a scale in the head; embeddings stay in
                                                             their file
            = 5/8 layers + 17/16 head + 2 (embedding + others)   int4 of other models
            = 2 or 4 weights                                 bfloat16 and float16, float32
    loading = 2 weights                                      int4 of other models: their layers are converted one by one
            = 2 x 2 or 4 weights                             bfloat16, float16, float32 from a GGUF file
            = served                                         all others
    cache   = slots x cells per slot x numbers per position x 2 (float32: 4)

`served` and `loading` do without `BASE_BYTES`, what the program itself takes.
"""

import math

from superdraft.decoding.config import EngineConfig
from superdraft.decoding.loading.catalogue import ModelSize
from superdraft.decoding.model.decoder_spec import DecoderSpec
from superdraft.decoding.model.kv_cache import MAX_DEFAULT_SLOTS, cells_per_slot

BASE_BYTES = 500_000_000
"""Python, torch and what else a server holds before it has a model."""

_INT4_BYTES = 5 / 8  # of a weight: 4 bits, and two numbers of 16 bits per group of 32
_HEAD_BYTES = 17 / 16  # 8 bits, and a number of 16 bits per group of 32


def size_of_spec(spec: DecoderSpec) -> ModelSize:
    """The size of a decoder of one of the kernels' families."""
    embedding, layers = math.prod(spec.embedding.shape), 0
    for layer in spec.layers:
        layers += sum(math.prod(matrix.shape) for matrix in (*layer.qkv, layer.output, *layer.gate_up, layer.down))
    return ModelSize(
        layers=layers,
        embedding=embedding,
        own_head=0 if spec.head is spec.embedding else math.prod(spec.head.shape),
        others=(2 * len(spec.layers) + 1) * spec.embedding.width,
        kv_numbers=2 * len(spec.layers) * spec.num_kv_heads * spec.head_dim,
        vocab_size=spec.head.shape[0],
    )


def served_bytes(size: ModelSize, dtype: str) -> int:
    """Memory of a model's weights while it serves in a weight format."""
    if dtype != "int4":
        return _dense_bytes(size, dtype)
    rest = 4 * size.others if size.is_native else 2 * (size.embedding + size.others)
    return int(_INT4_BYTES * size.layers + _HEAD_BYTES * size.head) + rest


def loading_bytes(size: ModelSize, dtype: str, *, is_gguf: bool = False) -> int:
    """Most memory that a model's weights take while they are loaded, from a GGUF file or safetensors."""
    if dtype == "int4":
        return served_bytes(size, dtype) if size.is_native else _dense_bytes(size, dtype)
    return (2 if is_gguf else 1) * _dense_bytes(size, dtype)


def cache_bytes(size: ModelSize, dtype: str, config: EngineConfig, *, max_slots: int = MAX_DEFAULT_SLOTS) -> int:
    """Memory of the KV cache when it is full; it has at most `max_slots` if the config does not say how many."""
    slot = size.kv_numbers * _item_bytes(dtype) * cells_per_slot(config.max_model_len)
    num_slots = config.num_slots or max(1, min(max_slots, config.kv_memory_bytes // max(1, slot)))
    return num_slots * slot


def needed_bytes(size: ModelSize, dtype: str, config: EngineConfig, *, is_gguf: bool = False) -> int:
    """Most memory that a server of a model needs, the program itself included: to load, or later with a full cache."""
    serving = served_bytes(size, dtype) + cache_bytes(size, dtype, config)
    return BASE_BYTES + max(loading_bytes(size, dtype, is_gguf=is_gguf), serving)


def _dense_bytes(size: ModelSize, dtype: str) -> int:
    return _item_bytes(dtype) * size.num_weights


def _item_bytes(dtype: str) -> int:
    return 4 if dtype == "float32" else 2
