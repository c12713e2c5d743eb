"""The description of a Llama-like decoder, which one forward, `native.decoder`, runs for every family."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from superdraft.decoding.model.native.matrix import Matrix
from superdraft.decoding.model.native.structs import Activation


@dataclass(frozen=True, slots=True, eq=False)
class Rotation:
    """Rotary position embeddings.

    Attributes:
        frequencies: angle per position of each pair of numbers, [rotary_dim / 2] float32.
        scale: of cosines and sines.
    """

    frequencies: Tensor
    scale: float = 1.0

    def tables(self, num_positions: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of positions [0, N), each [N, rotary_dim]; the first half of the sines negated."""
        angles = torch.outer(torch.arange(num_positions, dtype=torch.float32), self.frequencies)
        cosines, sines = angles.cos() * self.scale, angles.sin() * self.scale
        return torch.cat([cosines, cosines], dim=1).contiguous(), torch.cat([-sines, sines], dim=1).contiguous()


@dataclass(frozen=True, slots=True, eq=False)
class LayerSpec:
    """One layer. D is the model's width, F that of the gated layer, Dh a head's; norms are weights, float32.

    Attributes:
        input_norm: before attention, [D].
        qkv: queries, keys and values, [(H + 2 Hkv) Dh, D] in all.
        qkv_bias: [(H + 2 Hkv) Dh], or None.
        head_norms: of each query and of each key, [Dh], or None.
        output: [D, H Dh].
        output_bias: [D], or None.
        post_attention_norm: of what attention adds, [D], or None.
        mlp_norm: before the gated layer, [D].
        gate_up: gates, then what they multiply, [2 F, D] in all.
        down: [D, F].
        post_mlp_norm: of what the gated layer adds, [D], or None.
        window: positions that a position sees, itself included; None: all.
        rotation: number of its rotary embeddings; None: it has none.
    """

    input_norm: Tensor
    qkv: tuple[Matrix, ...]
    qkv_bias: Tensor | None
    head_norms: tuple[Tensor, Tensor] | None
    output: Matrix
    output_bias: Tensor | None
    post_attention_norm: Tensor | None
    mlp_norm: Tensor
    gate_up: tuple[Matrix, ...]
    down: Matrix
    post_mlp_norm: Tensor | None
    window: int | None
    rotation: int | None


@dataclass(frozen=True, slots=True, eq=False)
class DecoderSpec:
    """A decoder.

    Attributes:
        family: its name, for people.
        num_heads, num_kv_heads, head_dim: of attention.
        max_positions: positions that it was trained for.
        epsilon: of norms.
        attention_scale: factor of the scores.
        activation: of gates.
        embedding: one row per token, [V, D].
        embedding_scale: factor of the embeddings.
        residual_scale: factor of what a layer adds.
        layers: the layers.
        rotations: kinds of rotary embeddings that layers have, all of one dimension.
        norm: before the head, [D].
        head: [V, D].
        logit_scale: factor of the logits.
        logit_cap: logits become cap * tanh(logit / cap); None: they do not.
    """

    family: str
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    epsilon: float
    attention_scale: float
    activation: Activation
    embedding: Matrix
    embedding_scale: float
    residual_scale: float
    layers: tuple[LayerSpec, ...]
    rotations: tuple[Rotation, ...]
    norm: Tensor
    head: Matrix
    logit_scale: float
    logit_cap: float | None


def rotation_of(rope: Mapping[str, Any], dim: int, max_positions: int, num_positions: int) -> Rotation:
    """The rotary embeddings that a config's `rope_parameters` describe.

    Args:
        rope: `rope_type`, `rope_theta` and the parameters of the type, as in transformers.
        dim: numbers of a head that are rotated.
        max_positions: of the model.
        num_positions: of the longest text that will be run.

    Raises:
        ValueError: the type is unknown.
        KeyError: a parameter of the type is missing.
    """
    theta, kind = float(rope["rope_theta"]), rope.get("rope_type") or "default"
    frequencies = theta ** (-torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    if kind == "default":
        return Rotation(frequencies)
    if kind == "linear":
        return Rotation(frequencies / float(rope["factor"]))
    if kind == "llama3":
        return Rotation(_llama3(frequencies, rope))
    if kind == "yarn":
        return _yarn(frequencies, rope, theta, dim, max_positions)
    if kind == "longrope":
        return _longrope(frequencies, rope, max_positions, num_positions)
    raise ValueError(f"rotary embeddings of the type {kind!r} are unknown")


def _llama3(frequencies: Tensor, rope: Mapping[str, Any]) -> Tensor:
    """Slow rotations are slowed further: Llama 3.1."""
    factor, low, high = (float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    turns = float(rope["original_max_position_embeddings"]) * frequencies / (2 * math.pi)
    share = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - share) * frequencies / factor + share * frequencies


def _yarn(frequencies: Tensor, rope: Mapping[str, Any], theta: float, dim: int, max_positions: int) -> Rotation:
    """Peng et al., "YaRN: Efficient Context Window Extension of Large Language Models" (2023)."""
    factor, original = float(rope["factor"]), rope.get("original_max_position_embeddings") or max_positions

    def place(turns: float) -> float:  # the pair of numbers that turns so often over the original context
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = place(rope.get("beta_fast") or 32), place(rope.get("beta_slow") or 1)
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)).clamp(0, 1)

    def magnitude(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    given, all_dims, of_all = rope.get("attention_factor"), rope.get("mscale"), rope.get("mscale_all_dim")
    if given is None:
        given = magnitude(all_dims) / magnitude(of_all) if all_dims and of_all else magnitude(1.0)
    return Rotation(ramp * frequencies / factor + (1 - ramp) * frequencies, float(given))


def _longrope(frequencies: Tensor, rope: Mapping[str, Any], max_positions: int, num_positions: int) -> Rotation:
    """Ding et al., "LongRoPE" (2024): a factor per pair of numbers, one set for long texts and one for short ones."""
    original = int(rope.get("original_max_position_embeddings") or max_positions)
    factors = torch.tensor(rope["long_factor" if num_positions > original else "short_factor"], dtype=torch.float32)
    scale = rope.get("attention_factor")
    if scale is None:
        growth = float(rope.get("factor") or max_positions / original)
        scale = 1.0 if growth <= 1 else math.sqrt(1 + math.log(growth) / math.log(original))
    return Rotation(frequencies / factors, float(scale))
