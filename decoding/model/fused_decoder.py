"""Fused forward pass for Llama-like decoders, with fewer and larger operations than transformers' own.

With a few rows and small matrices, most of a decode step is the cost of launching operations. Here one product computes
queries, keys and values, and one computes gate and up; grouped queries share their keys without copies. The model
runner checks it against transformers' own forward when it is built.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from superdraft.decoding.model.kv_cache import LayerShape, SlotKVCache
from superdraft.decoding.model.linear import Conversion, DenseLinear, Linear

Activation = Callable[[Tensor], Tensor]

SUPPORTED = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


@dataclass(slots=True)
class DecoderLayer:
    """One decoder layer. Norms are weights [D]; `norms` holds those of queries and keys, each [Dh], or None."""

    input_norm: Tensor
    qkv: Linear
    norms: tuple[Tensor, Tensor] | None
    output: Linear
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear
    mask_type: str


@dataclass(slots=True)
class _Step:
    """Inputs shared by all layers of one forward; `masks` has one per layer."""

    num_rows: int
    num_tokens: int
    rotation: tuple[Tensor, Tensor]
    masks: list[Tensor]
    cache: SlotKVCache


class FusedDecoder:
    """A Llama-like model's forward over the slots of a KV cache.

    The separate weights of `model` become views of the fused ones, see `DenseLinear.joined`.

    Args:
        model: one of `SUPPORTED`.

    Attributes:
        layers: the decoder layers.
        norm: weight of the last norm, [D].
        head: the output head.
        num_heads, num_kv_heads, head_dim, scaling, epsilon, rotary, activation: as in the model.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        decoder, config = model.model, model.config
        first = decoder.layers[0].self_attn
        self.head_dim: int = first.head_dim
        self.num_heads: int = config.num_attention_heads
        self.num_kv_heads: int = config.num_key_value_heads
        self.scaling: float = first.scaling
        self.epsilon: float = config.rms_norm_eps
        activation = decoder.layers[0].mlp.act_fn
        self.activation: Activation = nn.functional.silu if type(activation).__name__.startswith("SiLU") else activation
        self.rotary: nn.Module = decoder.rotary_emb
        self.layers: list[DecoderLayer] = [_fuse(layer) for layer in decoder.layers]
        self.norm: Tensor = decoder.norm.weight
        self.head: Linear = DenseLinear(model.lm_head.weight, model.lm_head.bias)

    @staticmethod
    def supports(model: PreTrainedModel) -> bool:
        """Whether this class implements the model's architecture."""
        return type(model).__name__ in SUPPORTED

    @staticmethod
    def layer_shapes(model: PreTrainedModel) -> list[LayerShape]:
        """Keys and values of one position, layer by layer, of one of `SUPPORTED`."""
        num_heads, layers = model.config.num_key_value_heads, model.model.layers
        return [LayerShape(num_heads, layer.self_attn.head_dim, layer.self_attn.head_dim) for layer in layers]

    def convert(self, convert: Conversion) -> None:
        """Convert all linear layers to another weight format; once."""

        def converted(linear: Linear, *, is_head: bool = False) -> Linear:
            assert isinstance(linear, DenseLinear)
            return convert(linear, is_head=is_head)

        for layer in self.layers:
            layer.qkv, layer.output = converted(layer.qkv), converted(layer.output)
            layer.gate_up, layer.down = converted(layer.gate_up), converted(layer.down)
        self.head = converted(self.head, is_head=True)

    def __call__(
        self,
        hidden: Tensor,
        positions: Tensor,
        masks: Tensor | dict[str, Tensor],
        cache: SlotKVCache,
        kept: Tensor,
    ) -> Tensor:
        """Run one forward.

        Args:
            hidden: input embeddings, shape [B, T, D].
            positions: shape [B, T].
            masks: additive attention mask, shape [B, 1, T, C], or one per layer type.
            cache: the KV cache, with the rows' cells selected.
            kept: indices b * T + t of the rows whose logits to return, shape [N].

        Returns:
            Logits, shape [N, V].
        """
        width = hidden.shape[-1]
        step = self._step(hidden, positions, masks, cache)
        hidden = hidden.reshape(-1, width)
        normed = torch.rms_norm(hidden, (width,), self.layers[0].input_norm, self.epsilon)
        next_norms = [layer.input_norm for layer in self.layers[1:]]
        for index, layer in enumerate(self.layers):
            change = layer.output(self._attended(index, layer.qkv(normed), step))
            hidden, normed = _add_and_norm(hidden, change, layer.mlp_norm, self.epsilon)
            change = layer.down(_gate(layer.gate_up(normed), self.activation))
            if index < len(next_norms):
                hidden, normed = _add_and_norm(hidden, change, next_norms[index], self.epsilon)
        normed = torch.rms_norm((hidden + change)[kept], (width,), self.norm, self.epsilon)
        return self.head(normed)

    def _step(self, hidden: Tensor, positions: Tensor, masks: Tensor | dict[str, Tensor], cache: SlotKVCache) -> _Step:
        num_rows, num_tokens, _ = hidden.shape
        groups = self.num_heads // self.num_kv_heads
        masks = masks if isinstance(masks, dict) else {"": masks}
        if num_tokens > 1:
            masks = {name: mask.repeat(1, 1, groups, 1) for name, mask in masks.items()}
        default = next(iter(masks.values()))
        return _Step(
            num_rows=num_rows,
            num_tokens=num_tokens,
            rotation=self._rotation(hidden, positions),
            masks=[masks.get(layer.mask_type, default) for layer in self.layers],
            cache=cache,
        )

    def _attended(self, index: int, qkv: Tensor, step: _Step) -> Tensor:
        """Attention of one layer: projections [B T, (H + 2 Hkv) Dh] -> outputs of all heads, [B T, H Dh]."""
        norms, num_heads = self.layers[index].norms, self.num_heads
        heads = qkv.view(step.num_rows, step.num_tokens, -1, self.head_dim)
        heads = self._rotated(heads, step.rotation, norms).transpose(1, 2)
        queries, keys, values = torch.split(heads, [num_heads, self.num_kv_heads, self.num_kv_heads], dim=1)
        keys, values = step.cache.layers[index].update(keys, values)
        # Queries that share keys and values are stacked as if they were further positions.
        queries = queries.reshape(step.num_rows, self.num_kv_heads, -1, self.head_dim)
        mixed = nn.functional.scaled_dot_product_attention(queries, keys, values, step.masks[index], scale=self.scaling)
        mixed = mixed.reshape(step.num_rows, num_heads, step.num_tokens, -1).transpose(1, 2)
        return mixed.reshape(step.num_rows * step.num_tokens, -1)

    def _rotated(self, heads: Tensor, rotation: tuple[Tensor, Tensor], norms: tuple[Tensor, Tensor] | None) -> Tensor:
        """Apply rotary position embeddings to queries and keys, after their norms if the model has them.

        Args:
            heads: queries, keys and values, shape [B, T, H + 2 Hkv, Dh]; may be overwritten.
            rotation: cosines and sines, shape [B, T, 1, Dh]; the first half of the sines negated.
            norms: weights [Dh] for queries and keys, or None.
        """
        num_rotated = self.num_heads + self.num_kv_heads
        if norms is not None:
            queries, keys, values = torch.split(heads, [self.num_heads, self.num_kv_heads, self.num_kv_heads], dim=2)
            parts = [
                torch.rms_norm(part, (self.head_dim,), norm, self.epsilon)
                for part, norm in zip((queries, keys), norms, strict=True)
            ]
            heads = torch.cat([*parts, values], dim=2)
        rotated, (cosines, sines) = heads[:, :, :num_rotated], rotation
        rolled = rotated.roll(self.head_dim // 2, dims=-1)
        rotated.mul_(cosines).addcmul_(rolled, sines)
        return heads

    def _rotation(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines, shape [B, T, 1, Dh]; the sines include the sign of rotate-half."""
        cosines, sines = self.rotary(hidden, positions)
        sines[..., : self.head_dim // 2].neg_()
        return cosines.unsqueeze(2), sines.unsqueeze(2)


def _fuse(layer: Any) -> DecoderLayer:
    attention, mlp = layer.self_attn, layer.mlp
    query_norm, key_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
    return DecoderLayer(
        input_norm=layer.input_layernorm.weight,
        qkv=DenseLinear.joined((attention.q_proj, attention.k_proj, attention.v_proj)),
        norms=None if query_norm is None or key_norm is None else (query_norm.weight, key_norm.weight),
        output=DenseLinear.joined((attention.o_proj,)),
        mlp_norm=layer.post_attention_layernorm.weight,
        gate_up=DenseLinear.joined((mlp.gate_proj, mlp.up_proj)),
        down=DenseLinear.joined((mlp.down_proj,)),
        mask_type=str(getattr(attention, "layer_type", None) or getattr(layer, "attention_type", "")),
    )


def _add_and_norm(hidden: Tensor, change: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Add a layer's output to the residual stream; return the sum and its RMS norm, all [N, D]. `weight` is [D]."""
    hidden = hidden + change
    return hidden, torch.rms_norm(hidden, weight.shape, weight, epsilon)


def _gate(gate_up: Tensor, activation: Activation) -> Tensor:
    """Gated activation: gates and values side by side, [N, 2 F] -> [N, F]."""
    gates, values = gate_up.chunk(2, dim=-1)
    return activation(gates).mul_(values)
