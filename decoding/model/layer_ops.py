"""Element-wise operations of a decoder layer, between its matrix products."""

from collections.abc import Callable

import torch
from torch import Tensor

Activation = Callable[[Tensor], Tensor]


def add_and_norm(hidden: Tensor, change: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Add a layer's output to the residual stream; return the sum and its RMS norm, all [N, D]. `weight` is [D]."""
    hidden = hidden + change
    return hidden, torch.rms_norm(hidden, weight.shape, weight, epsilon)


def gate(gate_up: Tensor, activation: Activation) -> Tensor:
    """Gated activation: gates and values side by side, [N, 2 F] -> [N, F]."""
    gates, values = gate_up.chunk(2, dim=-1)
    return activation(gates).mul_(values)


def rotate(
    qkv: Tensor, rotation: tuple[Tensor, Tensor], norms: tuple[Tensor, Tensor] | None, epsilon: float, num_heads: int
) -> Tensor:
    """Apply rotary position embeddings to queries and keys, after their norms if the model has them.

    Args:
        qkv: queries, keys and values, shape [B, T, H + 2 Hkv, Dh]; may be overwritten.
        rotation: cosines and sines, shape [B, T, 1, Dh]; the first half of the sines negated.
        norms: weights [Dh] for queries and keys, or None.
        epsilon: of the norms.
        num_heads: H.

    Returns:
        Queries, keys and values, shaped like `qkv`.
    """
    _, _, num_all, head_dim = qkv.shape
    num_rotated = (num_all + num_heads) // 2
    if norms is not None:
        queries = torch.rms_norm(qkv[:, :, :num_heads], (head_dim,), norms[0], epsilon)
        keys = torch.rms_norm(qkv[:, :, num_heads:num_rotated], (head_dim,), norms[1], epsilon)
        qkv = torch.cat([queries, keys, qkv[:, :, num_rotated:]], dim=2)
    rotated, (cosines, sines) = qkv[:, :, :num_rotated], rotation
    rolled = rotated.roll(head_dim // 2, dims=-1)
    rotated.mul_(cosines).addcmul_(rolled, sines)
    return qkv


def rotate_and_write(
    qkv: Tensor,
    rotation: tuple[Tensor, Tensor],
    norms: tuple[Tensor, Tensor] | None,
    epsilon: float,
    num_heads: int,
    pairs: Tensor,
    slots: Tensor,
    cells: Tensor,
) -> Tensor:
    """`rotate`, then write keys and values into the cache in one operation.

    Args:
        qkv: see `rotate`, also for the next four.
        rotation: cosines and sines.
        norms: weights for queries and keys, or None.
        epsilon: of the norms.
        num_heads: H.
        pairs: a layer's keys and values, shape [2, num_slots, Hkv, num_cells, Dh]; written in place.
        slots: slots to write, shape [B, 1].
        cells: their cells to write, shape [B, T].

    Returns:
        Queries, shape [B, T, H, Dh].
    """
    qkv = rotate(qkv, rotation, norms, epsilon, num_heads)
    num_rows, num_tokens, _, head_dim = qkv.shape
    pairs[:, slots, :, cells] = qkv[:, :, num_heads:].view(num_rows, num_tokens, 2, -1, head_dim)
    return qkv[:, :, :num_heads]
