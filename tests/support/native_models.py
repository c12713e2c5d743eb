"""Small random models that the native decoder runs."""

import torch
import transformers
from torch import nn

from superdraft.decoding.families import spec_of_config
from superdraft.decoding.model.decoder_spec import DecoderSpec
from superdraft.decoding.model.native.decoder import problem_of
from superdraft.decoding.model.native.runner import NativeRunner

MAX_LEN = 1024
COMMON = {
    "vocab_size": 300,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": MAX_LEN,
    "initializer_range": 0.15,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
ROPE = {"rope_theta": 10_000.0}
MODELS = {
    "llama": (transformers.LlamaConfig, {"tie_word_embeddings": True, "attention_bias": True}),
    "llama, all heads": (transformers.LlamaConfig, {"num_key_value_heads": 6}),
    "llama, scaled": (
        transformers.LlamaConfig,
        {
            "rope_parameters": ROPE
            | {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 256,
            }
        },
    ),
    "mistral, window": (
        transformers.MistralConfig,
        {"sliding_window": 70, "head_dim": 96, "num_attention_heads": 5, "num_key_value_heads": 1},
    ),
    "qwen2": (transformers.Qwen2Config, {"head_dim": 32, "num_attention_heads": 3, "num_key_value_heads": 1}),
    "qwen2, two windows": (
        transformers.Qwen2Config,
        {
            "head_dim": 32,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "use_sliding_window": True,
            "sliding_window": 50,
            "max_window_layers": 1,
        },
    ),
    "qwen3": (transformers.Qwen3Config, {"tie_word_embeddings": False}),
    "gemma3": (
        transformers.Gemma3TextConfig,
        {
            "num_hidden_layers": 7,  # the sixth sees the whole text
            "sliding_window": 50,
            "query_pre_attn_scalar": 40,
            "final_logit_softcapping": 30.0,
            "initializer_range": 0.08,
        },
    ),
    "smollm3": (transformers.SmolLM3Config, {"num_hidden_layers": 4, "no_rope_layer_interval": 4}),
    "granite": (
        transformers.GraniteConfig,
        {
            "head_dim": 32,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "embedding_multiplier": 4.0,
            "residual_multiplier": 0.4,
            "attention_multiplier": 0.1,
            "logits_scaling": 0.5,
        },
    ),
    "phi3": (
        transformers.Phi3Config,
        {"hidden_size": 192, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 64, "sliding_window": 60},
    ),
    "phi3, part of a head": (
        transformers.Phi3Config,
        {
            "hidden_size": 192,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": 64,
            "initializer_range": 0.1,
            "rope_parameters": ROPE | {"rope_type": "default", "partial_rotary_factor": 0.5},
        },
    ),
    "phi3, long": (
        transformers.Phi3Config,
        {
            "hidden_size": 192,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": 64,
            "original_max_position_embeddings": 256,
            "rope_parameters": ROPE
            | {
                "rope_type": "longrope",
                "long_factor": [1 + i / 8 for i in range(32)],
                "short_factor": [1.0] * 32,
                "original_max_position_embeddings": 256,
            },
        },
    ),
}


def make_model(name: str, **changes: object) -> transformers.PreTrainedModel:
    kind, options = MODELS[name]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(kind(**COMMON | options | changes))
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.data.normal_(std=0.2)
    for parameter in model.parameters():  # trained norms are not the ones and zeros that they begin as
        if parameter.dim() == 1:
            parameter.data += 0.2 * torch.randn(parameter.shape)
    return model.to(torch.bfloat16).eval().requires_grad_(False)


def spec_of(model: transformers.PreTrainedModel) -> DecoderSpec:
    tensors = model.state_dict()
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    spec = spec_of_config(model.config, tensors, MAX_LEN, "the model")
    assert spec is not None
    return spec


def make_runner(name: str, num_slots: int = 6) -> NativeRunner:
    """A runner of a model in 4 bits, with texts of up to 1,024 tokens."""
    spec = spec_of(make_model(name))
    assert problem_of(spec) is None
    return NativeRunner(spec, MAX_LEN, 100_000_000, num_slots)
