"""Checks whether Superposed Decoding can run on a model."""

import inspect

import transformers

from superdraft.decoding.errors import UnsupportedModelError

_ATTENTION_LAYERS = {"full_attention", "sliding_attention"}
# Decoders whose config says `is_decoder: false` nevertheless.
_UNMARKED_DECODERS = {"gpt_neox", "gpt_neox_japanese"}


def check_config(config: transformers.PretrainedConfig, name: str) -> None:
    """Refuse a model that its config alone rules out.

    Raises:
        UnsupportedModelError: names the architecture and the reason.
    """
    text = _text_config(config)
    odd_layers = sorted(set(getattr(text, "layer_types", None) or ()) - _ATTENTION_LAYERS)
    if config.is_encoder_decoder:
        raise _refusal(name, config, "an encoder-decoder model; a decoder-only model is needed")
    if getattr(text, "is_decoder", None) is False and config.model_type not in _UNMARKED_DECODERS:
        raise _refusal(name, config, "an encoder that reads text in both directions; a decoder is needed")
    if odd_layers:
        layers = ", ".join(odd_layers)
        raise _refusal(name, config, f"a model with {layers} layers; all layers must be full or sliding attention")
    if _has_alibi(text):
        raise _refusal(name, config, "a model with ALiBi position biases; rotary or learned positions are needed")
    if getattr(text, "hidden_size_per_layer_input", 0):
        raise _refusal(name, config, "a model whose layers read token ids in addition to the input embeddings")


def check_model_class(model_class: type, config: transformers.PretrainedConfig, name: str) -> None:
    """Refuse a model that its class rules out.

    Raises:
        UnsupportedModelError: names the architecture and the reason.
    """
    parameters = inspect.signature(model_class.forward).parameters  # type: ignore[attr-defined]
    if getattr(model_class, "_is_stateful", False):
        raise _refusal(
            name, config, "a state-space, recurrent or hybrid model; one with attention as its only memory is needed"
        )
    if "inputs_embeds" not in parameters:
        raise _refusal(name, config, "a model that accepts only token ids; one that accepts inputs_embeds is needed")
    if "past_key_values" not in parameters:
        raise _refusal(name, config, "a model without an attention key-value cache")


def _text_config(config: transformers.PretrainedConfig) -> transformers.PretrainedConfig:
    """The language part of a multimodal model's config; the config itself if there is no single language part."""
    try:
        return config.get_text_config()
    except ValueError:
        return config


def _has_alibi(config: transformers.PretrainedConfig) -> bool:
    attention = getattr(config, "attn_config", None)  # MPT nests it
    return (
        config.model_type == "bloom"
        or bool(getattr(config, "alibi", False))
        or bool(getattr(attention, "alibi", False))
    )


def _refusal(name: str, config: transformers.PretrainedConfig, what: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"Superposed Decoding cannot run on {name!r} ({config.model_type}): it is {what}.")
