"""Sizes of models: numbers of weights, and the memory that they take while they are loaded and while they serve.

The formulas::

    served  = 5/8 layers + head + 2 (embedding + others)     int4: 4 bits and a scale and a minimum per 32 weights;
                                                             the output head in 8 bits, the rest in bfloat16
            = 2 or 4 weights                                 bfloat16 and float16, float32
    loading = 2 weights + 5/8 layers + head                  int4: all layers are there twice for a moment
            = 2 weights                                      int4, of a model that transformers' own forward runs
            = served                                         other formats
            = at least 1.8 x 2 (float32: 4) weights          from a GGUF file, as transformers expands it
    cache   = slots x cells per slot x numbers per position x 2 (float32: 4)

`served` and `loading` do without `BASE_BYTES`, what the program itself takes.
"""

import torch
import transformers
from torch import nn

from superdraft.decoding.config import EngineConfig
from superdraft.decoding.loading.catalogue import ModelSize
from superdraft.decoding.loading.quiet import quiet_transformers
from superdraft.decoding.model.fused_decoder import FusedDecoder
from superdraft.decoding.model.kv_cache import MAX_DEFAULT_SLOTS, cells_per_slot

BASE_BYTES = 500_000_000
"""Python, torch and what else a server holds before it has a model."""

_INT4_BYTES = 5 / 8  # of a weight: 4 bits, and two numbers of 16 bits per group of 32
_EXPANDING = 1.8  # measured: 2.3 GB for a file whose weights take 1.26 GB as bfloat16


def size_of(config: transformers.PretrainedConfig) -> ModelSize:
    """The size of a model with this config, from its modules without any memory for weights.

    Raises:
        Exception: whatever transformers raises about a config that does not describe a causal language model.
    """
    with quiet_transformers(), torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    layers = [module for module in model.modules() if type(module) is nn.Linear and module is not head]
    num_layers, num_embedding = sum(layer.weight.numel() for layer in layers), embedding.weight.numel()
    own_head = 0 if head is None or head.weight is embedding.weight else head.weight.numel()
    return ModelSize(
        layers=num_layers,
        embedding=num_embedding,
        own_head=own_head,
        others=sum(parameter.numel() for parameter in model.parameters()) - num_layers - num_embedding - own_head,
        kv_numbers=_kv_numbers(config.get_text_config()),
        vocab_size=(embedding if head is None else head).weight.shape[0],
        is_fused=FusedDecoder.supports(model),
    )


def served_bytes(size: ModelSize, dtype: str) -> int:
    """Memory of a model's weights while it serves in a weight format."""
    return _int4_bytes(size) + 2 * (size.embedding + size.others) if dtype == "int4" else _dense_bytes(size, dtype)


def loading_bytes(size: ModelSize, dtype: str, *, is_gguf: bool = False) -> int:
    """Most memory that a model's weights take while they are loaded, expanded from a GGUF file or as they are."""
    dense = _dense_bytes(size, dtype)
    converted = _int4_bytes(size) if dtype == "int4" and size.is_fused else 0
    return max(dense + converted, int(_EXPANDING * dense) if is_gguf else 0)


def cache_bytes(size: ModelSize, dtype: str, config: EngineConfig, *, max_slots: int = MAX_DEFAULT_SLOTS) -> int:
    """Memory of the KV cache when it is full; it has at most `max_slots` if the config does not say how many."""
    slot = size.kv_numbers * _item_bytes(dtype) * cells_per_slot(config.max_model_len)
    num_slots = config.num_slots or max(1, min(max_slots, config.kv_memory_bytes // max(1, slot)))
    return num_slots * slot


def needed_bytes(size: ModelSize, dtype: str, config: EngineConfig, *, is_gguf: bool = False) -> int:
    """Most memory that a server of a model needs, the program itself included: to load, or later with a full cache."""
    serving = served_bytes(size, dtype) + cache_bytes(size, dtype, config)
    return BASE_BYTES + max(loading_bytes(size, dtype, is_gguf=is_gguf), serving)


def _int4_bytes(size: ModelSize) -> int:
    """Of the converted layers alone."""
    return int(_INT4_BYTES * size.layers + size.head)


def _dense_bytes(size: ModelSize, dtype: str) -> int:
    return _item_bytes(dtype) * size.num_weights


def _item_bytes(dtype: str) -> int:
    return 4 if dtype == "float32" else 2


def _kv_numbers(config: transformers.PretrainedConfig) -> int:
    heads = int(getattr(config, "num_attention_heads", 0) or 0)
    width = getattr(config, "head_dim", None) or (int(config.hidden_size) // heads if heads else 0)
    return 2 * int(config.num_hidden_layers) * int(getattr(config, "num_key_value_heads", None) or heads) * int(width)
