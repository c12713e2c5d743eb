"""Configs of GGUF files, with what transformers leaves out: scaled rotary positions, Gemma's scale of attention."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import transformers
from numpy.typing import NDArray

from superdraft.decoding.errors import UnsupportedModelError
from superdraft.decoding.loading.quiet import quiet_transformers

_ROPE_FACTORS = "rope_freqs.weight"
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""What Llama 3.1, 3.2 and 3.3 have in common. Their files hold the factors that follow from it, not these numbers."""
_FACTOR_TOLERANCE = 1e-3  # relative
_LAYERS_OF_GEMMA3_27B = 62

_REMEDY = "Use --runner llamacpp, or the model's safetensors weights."


def gguf_config(path: Path) -> transformers.PretrainedConfig:
    """The config of a GGUF file's model.

    Args:
        path: the `.gguf` file.

    Raises:
        UnsupportedModelError: its positions are scaled in a way that cannot be expressed.
    """
    with quiet_transformers():
        config = transformers.AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    reader = gguf.GGUFReader(path)
    architecture = str(reader.fields["general.architecture"].contents())
    prefix = f"{architecture}."
    own = {key.removeprefix(prefix): field for key, field in reader.fields.items() if key.startswith(prefix)}
    values = {key: field.contents() for key, field in own.items()}
    factors = next((tensor.data for tensor in reader.tensors if tensor.name == _ROPE_FACTORS), None)
    if architecture == "gemma3":
        _complete_gemma3(config, values)
    scaling = _rope_scaling(config, values, factors, path)
    if scaling:
        rope = config.rope_parameters
        rope.get("full_attention", rope).update(scaling)  # Gemma's sliding layers see too little to need scaling
    return config


def _complete_gemma3(config: transformers.PretrainedConfig, values: Mapping[str, Any]) -> None:
    """The scale of attention and the base of the sliding layers' positions."""
    per_head = config.hidden_size // config.num_attention_heads
    config.query_pre_attn_scalar = per_head if config.num_hidden_layers == _LAYERS_OF_GEMMA3_27B else config.head_dim
    config.rope_parameters["sliding_attention"]["rope_theta"] = values.get("rope.freq_base_swa", 10_000.0)
    if "final_logit_softcapping" in values:
        config.final_logit_softcapping = values["final_logit_softcapping"]


def _rope_scaling(
    config: transformers.PretrainedConfig, values: Mapping[str, Any], factors: NDArray[np.float32] | None, path: Path
) -> dict[str, Any]:
    """The changes to the config's rotary positions; empty: they are not scaled."""
    if factors is not None:
        return _llama3_scaling(config, factors, path)
    kind = values.get("rope.scaling.type", "none")
    # Files from before 2024 have a factor for linear scaling alone.
    factor = values.get("rope.scaling.factor", values.get("rope.scale_linear"))
    if kind == "none" or (kind == "linear" and factor in (None, 1.0)):
        return {}
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn" and factor is not None:
        original = values.get("rope.scaling.original_context_length", config.max_position_embeddings)
        return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    raise UnsupportedModelError(f"{path.name} scales its positions in an unknown way ({kind}). {_REMEDY}")


def _llama3_scaling(config: transformers.PretrainedConfig, factors: NDArray[np.float32], path: Path) -> dict[str, Any]:
    """Llama 3's scaling, if the factors in the file are those that follow from it."""
    scaling = {"rope_type": "llama3", "factor": float(factors.max()), **_LLAMA3}
    expected = llama3_factors(config.rope_parameters["rope_theta"], 2 * len(factors), scaling)
    if len(factors) * 2 != config.head_dim or not np.allclose(factors, expected, rtol=_FACTOR_TOLERANCE):
        raise UnsupportedModelError(
            f"{path.name} scales its positions by factors of its own ({_ROPE_FACTORS}), not by Llama 3's. {_REMEDY}"
        )
    return scaling


def llama3_factors(base: float, dim: int, scaling: Mapping[str, Any]) -> NDArray[np.float32]:
    """By what Llama 3's scaling divides each frequency.

    Args:
        base: of the frequencies.
        dim: size of a head.
        scaling: as in a config: `factor` and the entries of `_LLAMA3`.

    Returns:
        Shape [dim / 2].
    """
    lengths = 2 * math.pi * base ** (np.arange(0, dim, 2) / dim)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    # Positions further apart than one original context are scaled by `factor`, near ones are not, others in between.
    share = np.clip((scaling["original_max_position_embeddings"] / lengths - low) / (high - low), 0, 1)
    factors: NDArray[np.float32] = (1 / ((1 - share) / scaling["factor"] + share)).astype(np.float32)
    return factors
