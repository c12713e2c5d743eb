"""Numbers of weights, and the memory that follows from them."""

import dataclasses

import pytest
import torch
import transformers
from support.models import ARCHITECTURES, tiny_model

from superdraft.decoding.config import EngineConfig
from superdraft.decoding.loading.catalogue import ModelSize
from superdraft.decoding.loading.model_size import (
    BASE_BYTES,
    cache_bytes,
    loading_bytes,
    needed_bytes,
    served_bytes,
    size_of,
)
from superdraft.decoding.model.kv_cache import cells_per_slot, plan_cache, probe_layer_shapes
from superdraft.decoding.model.linear_int4 import convert_int4
from superdraft.decoding.model.native.library import has_kernels
from superdraft.decoding.model.native.linear import NativeLinear
from superdraft.decoding.model.torch_runner import TorchRunner

SIZE = ModelSize(layers=800, embedding=100, others=10, kv_numbers=6, vocab_size=10)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_config_tells_what_the_model_has(architecture):
    model = tiny_model(architecture)
    size = size_of(model.config)
    assert size.num_weights == sum(parameter.numel() for parameter in model.parameters())
    assert (size.own_head == 0) == (model.get_output_embeddings().weight is model.get_input_embeddings().weight)
    per_position = sum(shape.num_heads * (shape.key_dim + shape.value_dim) for shape in probe_layer_shapes(model))
    assert size.kv_numbers == per_position
    assert size.vocab_size == model.get_output_embeddings().weight.shape[0]
    assert size.is_fused == (architecture in ("llama", "mistral", "qwen3"))


def test_a_format_of_16_bits_takes_two_bytes_per_weight():
    assert served_bytes(SIZE, "bfloat16") == loading_bytes(SIZE, "bfloat16") == 2 * 910
    assert served_bytes(SIZE, "float32") == 4 * 910


def test_with_int4_all_layers_are_there_twice_while_they_are_converted():
    assert served_bytes(SIZE, "int4") == 500 + 100 + 2 * 110
    assert loading_bytes(SIZE, "int4") == 2 * 910 + 500 + 100
    assert loading_bytes(dataclasses.replace(SIZE, is_fused=False), "int4") == 2 * 910  # they go one by one


def test_a_gguf_file_is_expanded_beside_the_model():
    assert loading_bytes(SIZE, "bfloat16", is_gguf=True) == int(1.8 * 2 * 910)
    assert loading_bytes(SIZE, "float32", is_gguf=True) == int(1.8 * 4 * 910)
    # Converting takes more than expanding.
    heavy = ModelSize(layers=10, own_head=1000, embedding=10, others=0, kv_numbers=1, vocab_size=10)
    assert loading_bytes(heavy, "int4", is_gguf=True) == max(int(1.8 * 2 * 1020), 2 * 1020 + 1006)


def test_the_formula_is_that_of_the_converted_layers():
    if not has_kernels():
        pytest.skip("there are no kernels for this processor")
    model = tiny_model("llama", hidden_size=64, intermediate_size=96, vocab_size=320, head_dim=16).to(torch.bfloat16)
    size = size_of(model.config)
    kept = []

    def convert(linear, *, is_head=False):
        kept.append(convert_int4(linear, is_head=is_head))
        return kept[-1]

    TorchRunner(model, 32, 10**7, 1, convert=convert)
    panels = sum(linear._panels.nbytes for linear in kept if isinstance(linear, NativeLinear))
    assert panels == size.layers * 5 // 8 + size.head


def test_the_cache_has_the_slots_of_the_plan():
    model = tiny_model("llama")
    config = EngineConfig(max_model_len=64, kv_memory_bytes=1_000_000)
    plan = plan_cache(probe_layer_shapes(model), 4, config.kv_memory_bytes, config.max_model_len, None)
    assert plan.num_slots < 64
    planned = plan.num_slots * plan.num_cells * plan.bytes_per_position
    assert cache_bytes(size_of(model.config), "float32", config) == planned
    assert cache_bytes(SIZE, "int4", EngineConfig(num_slots=3)) == 3 * 12 * cells_per_slot(2048)


def test_a_server_needs_the_larger_of_loading_and_serving():
    few, many = EngineConfig(num_slots=1, max_model_len=1), EngineConfig(num_slots=64)
    assert needed_bytes(SIZE, "int4", few) == BASE_BYTES + loading_bytes(SIZE, "int4")
    serving = served_bytes(SIZE, "int4") + cache_bytes(SIZE, "int4", many)
    assert needed_bytes(SIZE, "int4", many) == BASE_BYTES + serving


def test_a_config_of_no_language_model_raises():
    with pytest.raises(Exception, match="ViT"):
        size_of(transformers.ViTConfig())
