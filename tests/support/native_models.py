"""Small random models that the native decoder runs."""

import torch
import transformers
from torch import nn

from superdraft.decoding.model.linear_int4 import convert_int4
from superdraft.decoding.model.torch_runner import TorchRunner

COMMON = {
    "vocab_size": 300,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "initializer_range": 0.15,
    "pad_token_id": None,
    "bos_token_id": None,
}
MODELS = {
    "llama": (transformers.LlamaConfig, {"tie_word_embeddings": True, "attention_bias": True}),
    "llama, all heads": (transformers.LlamaConfig, {"num_key_value_heads": 6, "mlp_bias": True}),
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
}


def make_model(name: str) -> transformers.PreTrainedModel:
    kind, options = MODELS[name]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(kind(**COMMON | options))
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.data.normal_(std=0.2)
    return model.to(torch.bfloat16).eval().requires_grad_(False)


def make_runner(name: str, num_slots: int = 6) -> TorchRunner:
    """A runner of a model in 4 bits, with texts of up to 1,024 tokens."""
    runner = TorchRunner(make_model(name), 1024, 100_000_000, num_slots, convert=convert_int4)
    assert runner._native is not None
    return runner
