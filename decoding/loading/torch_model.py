"""transformers' model of a decoder that a GGUF file describes, for torch's forward: on a GPU, or in other types."""

from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from superdraft.decoding.families import FAMILIES, hugging_face_name
from superdraft.decoding.loading.quiet import quiet_transformers
from superdraft.decoding.model.decoder_spec import DecoderSpec, LayerSpec


def torch_model_of(spec: DecoderSpec, dtype: torch.dtype) -> transformers.PreTrainedModel:
    """A decoder as transformers has it, with the dequantised weights.

    Args:
        spec: the decoder.
        dtype: the type of the weights.

    Raises:
        Exception: whatever transformers raises about a decoder that it cannot express.
    """
    config = _config(spec)
    with quiet_transformers():
        model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
            None, config=config, state_dict=_weights(spec), dtype=dtype
        )
    rotary, kinds = model.model.rotary_emb, getattr(config, "layer_types", None) or []
    for number, rotation in enumerate(spec.rotations):
        # Written over what follows from the config, because a file may have the factors alone.
        prefix = "" if hasattr(rotary, "inv_freq") else f"{kinds[_first_layer(spec, number)]}_"
        for name in ("inv_freq", "original_inv_freq"):
            getattr(rotary, prefix + name).copy_(rotation.frequencies)
        setattr(rotary, f"{prefix}attention_scaling", rotation.scale)
    return model


def _first_layer(spec: DecoderSpec, rotation: int) -> int:
    return next(index for index, layer in enumerate(spec.layers) if layer.rotation == rotation)


def _config(spec: DecoderSpec) -> transformers.PretrainedConfig:
    family = next(family for family in FAMILIES if family.name == spec.family)
    windows = [layer.window for layer in spec.layers]
    window = next((size for size in windows if size), None)
    facts: dict[str, Any] = {
        "vocab_size": spec.embedding.shape[0],
        "hidden_size": spec.embedding.width,
        "intermediate_size": spec.layers[0].down.width,
        "num_hidden_layers": len(spec.layers),
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_kv_heads,
        "head_dim": spec.head_dim,
        "max_position_embeddings": spec.max_positions,
        "rms_norm_eps": spec.epsilon,
        "tie_word_embeddings": spec.head is spec.embedding,
        "pad_token_id": None,
    }
    rotary_dim = 2 * len(spec.rotations[0].frequencies)
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": rotary_dim / spec.head_dim}
    facts["rope_parameters"] = rope
    if spec.family == "llama":
        facts["attention_bias"] = spec.layers[0].qkv_bias is not None
    if spec.family in ("llama", "phi3"):
        facts["sliding_window"] = window
    if spec.family == "gemma3":
        kinds = ["sliding_attention" if size else "full_attention" for size in windows]
        facts |= {
            "layer_types": kinds,
            "rope_parameters": dict.fromkeys(kinds, rope),
            "sliding_window": window,
            "query_pre_attn_scalar": round(spec.attention_scale**-2),
            "final_logit_softcapping": spec.logit_cap,
        }
    if spec.family == "smollm3":
        facts["no_rope_layers"] = [int(layer.rotation is not None) for layer in spec.layers]
    if spec.family == "granite":
        facts |= {
            "embedding_multiplier": spec.embedding_scale,
            "residual_multiplier": spec.residual_scale,
            "attention_multiplier": spec.attention_scale,
            "logits_scaling": 1 / spec.logit_scale,
        }
    model_type = "mistral" if spec.family == "llama" and window else family.model_types[0]
    return transformers.AutoConfig.for_model(model_type, **facts)


def _weights(spec: DecoderSpec) -> dict[str, Tensor]:
    """All weights by their names in transformers, float32."""
    has_post_norms = spec.layers[0].post_mlp_norm is not None
    offset = next(family.norm_offset for family in FAMILIES if family.name == spec.family)
    found: dict[str, Tensor] = {}

    def put(name: str, tensor: Tensor | None) -> None:
        full = hugging_face_name(name, has_post_norms=has_post_norms)
        if tensor is not None and full is not None:
            found[full] = tensor

    def put_norm(name: str, tensor: Tensor | None) -> None:
        put(name, None if tensor is None else tensor - offset)

    put("token_embd.weight", spec.embedding.numbers())
    put_norm("output_norm.weight", spec.norm)
    if spec.head is not spec.embedding:
        put("output.weight", spec.head.numbers())
    for index, layer in enumerate(spec.layers):
        block = f"blk.{index}."
        for name, norm in (
            ("attn_norm", layer.input_norm),
            ("ffn_norm", layer.mlp_norm),
            ("post_attention_norm", layer.post_attention_norm),
            ("post_ffw_norm", layer.post_mlp_norm),
            *zip(("attn_q_norm", "attn_k_norm"), layer.head_norms or (), strict=False),
        ):
            put_norm(f"{block}{name}.weight", norm)
        for name, matrix in _matrices(spec, layer).items():
            put(f"{block}{name}.weight", matrix)
        if layer.qkv_bias is not None:
            parts = torch.split(layer.qkv_bias, [part.shape[0] for part in layer.qkv])
            for name, bias in zip("qkv", parts, strict=True):
                put(f"{block}attn_{name}.bias", bias)
        put(f"{block}attn_output.bias", layer.output_bias)
    return found


def _matrices(spec: DecoderSpec, layer: LayerSpec) -> dict[str, Tensor]:
    qkv, gates = [part.numbers() for part in layer.qkv], [part.numbers() for part in layer.gate_up]
    found = {"attn_output": layer.output.numbers(), "ffn_down": layer.down.numbers()}
    if spec.family == "phi3":
        return found | {"attn_qkv": torch.cat(qkv), "ffn_gate_up": torch.cat(gates)}
    names = ("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up")
    return found | dict(zip(names, [*qkv, *gates], strict=True))
