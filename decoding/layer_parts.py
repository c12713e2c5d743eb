"""What a decoder layer does between its matrix products, element by element.

Run as they are, these are several operations each; compiled, one or two. Each is compiled once and serves all layers:
weights and cache are arguments. Sums may then be rounded a little later than by torch's own operations.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Activation = Callable[[Tensor], Tensor]
_MAX_COMPILATIONS = 512  # of one function, for numbers of rows and shapes of weights; torch alone would stop at 8


def add_and_norm(hidden: Tensor, change: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """The residual stream after a change, and its RMS norm; all [N, D], the weight [D]."""
    hidden = hidden + change
    return hidden, torch.rms_norm(hidden, weight.shape, weight, epsilon)


def gate(gate_up: Tensor, activation: Activation) -> Tensor:
    """Gates and values side by side, [N, 2 F] -> [N, F]."""
    gates, values = gate_up.chunk(2, dim=-1)
    return activation(gates).mul_(values)


def rotate(
    qkv: Tensor, rotation: tuple[Tensor, Tensor], norms: tuple[Tensor, Tensor] | None, epsilon: float, num_heads: int
) -> Tensor:
    """Normalise, if the model does, and turn queries and keys by their positions.

    Args:
        qkv: queries, keys and values, shape [B, T, H + 2 Hkv, Dh]; may be overwritten.
        rotation: cosines and sines, shape [B, T, 1, Dh]; the first half of the sines negated.
        norms: weights [Dh] for queries and keys, or None.
        epsilon: of the norms.
        num_heads: H.

    Returns:
        As `qkv`.
    """
    _, _, num_all, head_dim = qkv.shape
    num_turning = (num_all + num_heads) // 2
    if norms is not None:
        queries = torch.rms_norm(qkv[:, :, :num_heads], (head_dim,), norms[0], epsilon)
        keys = torch.rms_norm(qkv[:, :, num_heads:num_turning], (head_dim,), norms[1], epsilon)
        qkv = torch.cat([queries, keys, qkv[:, :, num_turning:]], dim=2)
    turning, (cosines, sines) = qkv[:, :, :num_turning], rotation
    rolled = turning.roll(head_dim // 2, dims=-1)
    turning.mul_(cosines).addcmul_(rolled, sines)
    return qkv


def rotate_and_write(
    qkv: Tensor,
    rotation: tuple[Tensor, Tensor],
    norms: tuple[Tensor, Tensor] | None,
    epsilon: float,
    num_heads: int,
    pairs: Tensor,
    slots: Tensor,
    positions: Tensor,
) -> Tensor:
    """`rotate`, then write keys and values into the cache in one operation.

    Args:
        qkv: see `rotate`, and so the next four.
        rotation: cosines and sines.
        norms: weights for queries and keys, or None.
        epsilon: of the norms.
        num_heads: H.
        pairs: a layer's keys and values, shape [2, num_slots, Hkv, max_len, Dh]; written in place.
        slots: shape [B, 1].
        positions: shape [B, T].

    Returns:
        Queries, shape [B, T, H, Dh].
    """
    qkv = rotate(qkv, rotation, norms, epsilon, num_heads)
    num_rows, num_tokens, _, head_dim = qkv.shape
    pairs[:, slots, :, positions] = qkv[:, :, num_heads:].view(num_rows, num_tokens, 2, -1, head_dim)
    return qkv[:, :, :num_heads]


@dataclass(frozen=True, slots=True)
class LayerParts:
    """The functions of this module as they are, or compiled."""

    add_and_norm: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]] = add_and_norm
    gate: Callable[[Tensor, Activation], Tensor] = gate
    rotate_and_write: Callable[..., Tensor] = rotate_and_write


EAGER = LayerParts()


def allow_many_compilations() -> None:
    """Raise torch's limits of compilations of a function, which hold for the whole process."""
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, _MAX_COMPILATIONS)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, _MAX_COMPILATIONS)


def compiled_parts(backend: str = "inductor") -> LayerParts:
    """Compiled for the shapes that they are called with, each when it comes first."""
    allow_many_compilations()
    return LayerParts(
        torch.compile(add_and_norm, fullgraph=True, dynamic=False, backend=backend),
        torch.compile(gate, fullgraph=True, dynamic=False, backend=backend),
        torch.compile(_rotate_copy_and_write, fullgraph=True, dynamic=False, backend=backend),
    )


def _rotate_copy_and_write(qkv: Tensor, *rest: Any) -> Tensor:
    """Compiled, nothing is copied: queries are new memory, and `qkv` need not be written back."""
    return rotate_and_write(qkv.clone(), *rest)
