"""Numbers of weights, and the memory that follows from them."""

import dataclasses

import pytest
import transformers
from support.models import ARCHITECTURES, tiny_model
from support.native_models import make_model, spec_of

from superdraft.decoding.config import EngineConfig
from superdraft.decoding.loading.catalogue import ModelSize
from superdraft.decoding.loading.hugging_face import size_of
from superdraft.decoding.loading.model_size import (
    BASE_BYTES,
    cache_bytes,
    loading_bytes,
    needed_bytes,
    served_bytes,
    size_of_spec,
)
from superdraft.decoding.model.kv_cache import cells_per_slot, plan_cache
from superdraft.decoding.model.native.decoder import num_weight_bytes
from superdraft.decoding.model.native.library import has_kernels
from superdraft.decoding.model.transformers_cache import probe_layer_shapes

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
    assert size.is_native == (architecture in ("llama", "mistral", "qwen3", "gemma3_text"))


def test_a_format_of_16_bits_takes_two_bytes_per_weight():
    assert served_bytes(SIZE, "bfloat16") == loading_bytes(SIZE, "bfloat16") == 2 * 910
    assert served_bytes(SIZE, "float32") == 4 * 910


def test_with_int4_embeddings_stay_in_the_file_of_a_native_model():
    assert served_bytes(SIZE, "int4") == loading_bytes(SIZE, "int4") == 500 + 106 + 4 * 10
    other = dataclasses.replace(SIZE, is_native=False)
    assert served_bytes(other, "int4") == 500 + 106 + 2 * 110
    assert loading_bytes(other, "int4") == 2 * 910  # the layers are converted one by one


def test_a_gguf_file_is_dequantised_beside_the_model():
    assert loading_bytes(SIZE, "bfloat16", is_gguf=True) == 2 * 2 * 910
    assert loading_bytes(SIZE, "float32", is_gguf=True) == 2 * 4 * 910
    assert loading_bytes(SIZE, "int4", is_gguf=True) == loading_bytes(SIZE, "int4")


@pytest.mark.skipif(not has_kernels(), reason="there are no kernels for this processor")
def test_the_formula_is_that_of_the_packed_weights():
    model = make_model("llama, all heads")
    size, spec = size_of(model.config), spec_of(model)
    assert size == dataclasses.replace(size_of_spec(spec), others=size.others)
    panels = num_weight_bytes(spec)
    padded = 304 / 300  # rows of the head
    assert size.layers * 5 / 8 + size.head <= panels <= size.layers * 5 / 8 + size.head * 17 / 16 * padded


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
    other = dataclasses.replace(SIZE, is_native=False)
    assert needed_bytes(other, "int4", few) == BASE_BYTES + loading_bytes(other, "int4")
    serving = served_bytes(SIZE, "int4") + cache_bytes(SIZE, "int4", many)
    assert needed_bytes(SIZE, "int4", many) == BASE_BYTES + serving


def test_a_config_of_no_language_model_raises():
    with pytest.raises(Exception, match="ViT"):
        size_of(transformers.ViTConfig())
