"""What a decoder layer does between its matrix products, element by element."""

from collections.abc import Callable

import torch
from torch import Tensor

Activation = Callable[[Tensor], Tensor]


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
