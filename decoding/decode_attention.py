"""Attention of one new position a row over the slots: several ways to compute it, and the choice by measurement.

Which kernel is the fastest depends on the GPU, on torch, on the model's heads, on the rows and on the positions read.
So on a GPU every way is first compared with plain arithmetic and then timed; what is wrong or fails is left out. All
ways read nothing on the host, so that a CUDA graph can hold them.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from superdraft.decoding.layer_parts import allow_many_compilations

Attention = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, float], Tensor]
"""Attention of one query position a row.

Args:
    queries: shape [R, Hkv, G, Dh], G query heads share one head of keys and values.
    keys: shape [R, Hkv, C, Dh], a view of slots that may be longer than C.
    values: as `keys`.
    lengths: each row sees positions [0, lengths[r]], shape [R], int64.
    mask: the same as numbers to add, or a narrower one, shape [R, 1, 1, C].
    scale: the products of queries and keys are multiplied by it.

Returns:
    Shape [R, Hkv, G, Dh].
"""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to compute it.

    Attributes:
        attention: the function.
        reads_mask: it follows the mask; else the lengths alone, and then it is wrong for a sliding window.
        is_compiled: it goes through torch.compile, which takes seconds for a new shape.
    """

    attention: Attention
    reads_mask: bool = False
    is_compiled: bool = False


def masked_sdpa(queries: Tensor, keys: Tensor, values: Tensor, _lengths: Tensor, mask: Tensor, scale: float) -> Tensor:
    """The kernel that torch chooses. The queries of a group lie beside one another, as if they were positions."""
    return nn.functional.scaled_dot_product_attention(queries, keys, values, mask, scale=scale)


def efficient_sdpa(*inputs: Any) -> Tensor:
    """The memory-efficient kernel."""
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
        return masked_sdpa(*inputs)


def cudnn_sdpa(*inputs: Any) -> Tensor:
    """The kernel of cuDNN."""
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return masked_sdpa(*inputs)


def math_sdpa(*inputs: Any) -> Tensor:
    """Plain operations, as torch composes them."""
    with sdpa_kernel(SDPBackend.MATH):
        return masked_sdpa(*inputs)


def matrix_products(
    queries: Tensor, keys: Tensor, values: Tensor, _lengths: Tensor, mask: Tensor, scale: float
) -> Tensor:
    """Two batched products and a softmax in float32."""
    flat_queries, flat_keys = queries.flatten(0, 1), keys.flatten(0, 1).transpose(1, 2)
    if queries.is_cuda and queries.element_size() == 2:
        # Rounded to 16 bits, large scores would be off by some percent of a probability.
        scores = torch.bmm(flat_queries, flat_keys, out_dtype=torch.float32)
    else:
        scores = torch.bmm(flat_queries, flat_keys)
    scores = torch.add(mask, scores.view(*queries.shape[:3], -1), alpha=scale)
    return torch.bmm(scores.softmax(-1).to(values.dtype).flatten(0, 1), values.flatten(0, 1)).view(queries.shape)


def flash_used_lengths(
    queries: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, _mask: Tensor, scale: float
) -> Tensor:
    """The flash kernel for sequences of different lengths, told how much of each slot is used."""
    num_rows, num_kv_heads, group_size, head_dim = queries.shape
    flat_keys, stride = as_one_sequence(keys)
    flat_values, _ = as_one_sequence(values)
    count = torch.arange(num_rows + 1, dtype=torch.int32, device=queries.device)
    output: Tensor = torch.ops.aten._flash_attention_forward(
        queries.reshape(num_rows, num_kv_heads * group_size, head_dim),
        flat_keys,
        flat_values,
        count,
        count * stride,
        1,
        keys.shape[2],
        0.0,
        False,
        False,
        scale=scale,
        seqused_k=(lengths + 1).to(torch.int32),
    )[0]
    return output.view(queries.shape)


def as_one_sequence(slots: Tensor) -> tuple[Tensor, int]:
    """Slots [R, H, C, Dh] as positions [N, H, Dh] of one long sequence, as kernels for ragged sequences want them.

    In memory the heads of a slot follow one another, so the sequence's rows overlap: head h of row n is what lies n
    positions after the beginning of head h of the first slot.

    Returns:
        A view; and where in it the second slot begins: slot r has rows [r * that, r * that + C).
    """
    num_rows, num_heads, num_positions, head_dim = slots.shape
    slot_stride, head_stride, stride, _ = slots.stride()
    apart = slot_stride // stride
    size = ((num_rows - 1) * apart + num_positions, num_heads, head_dim)
    return slots.as_strided(size, (stride, head_stride, 1)), apart


@functools.cache
def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    allow_many_compilations()
    return torch.compile(function, fullgraph=True)


def flex(queries: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, _mask: Tensor, scale: float) -> Tensor:
    """FlexAttention, which splits the positions of a row among several blocks of threads."""
    return _compiled(_flex)(queries, keys, values, lengths, scale)


def flex_blocks(queries: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, _mask: Tensor, scale: float) -> Tensor:
    """The same; what lies beyond a row's length is not read, block by block."""
    return _compiled(_flex_blocks)(queries, keys, values, lengths, scale)


def compiled_sums(
    queries: Tensor, keys: Tensor, values: Tensor, _lengths: Tensor, mask: Tensor, scale: float
) -> Tensor:
    """Sums instead of products of matrices, in kernels made by torch.compile."""
    return _compiled(_sums)(queries, keys, values, mask, scale)


_FLEX_BLOCK = 128


def _flex(queries: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, scale: float) -> Tensor:
    def visible(score: Tensor, row: Tensor, _head: Tensor, _query: Tensor, position: Tensor) -> Tensor:
        return torch.where(position <= lengths[row], score, -float("inf"))

    heads = queries.flatten(1, 2).unsqueeze(2)
    output: Any = flex_attention(heads, keys, values, score_mod=visible, scale=scale, enable_gqa=True)
    return output.view(queries.shape)  # type: ignore[no-any-return]


def _flex_blocks(queries: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, scale: float) -> Tensor:
    def visible(row: Tensor, _head: Tensor, _query: Tensor, position: Tensor) -> Tensor:
        return position <= lengths[row]

    num_rows, num_positions = keys.shape[0], keys.shape[2]
    count = (num_positions + _FLEX_BLOCK - 1) // _FLEX_BLOCK
    blocks = BlockMask.from_kv_blocks(
        (lengths // _FLEX_BLOCK + 1).to(torch.int32).view(num_rows, 1, 1),
        torch.arange(count, dtype=torch.int32, device=keys.device).expand(num_rows, 1, 1, count),
        BLOCK_SIZE=_FLEX_BLOCK,
        mask_mod=visible,
        seq_lengths=(1, num_positions),
        compute_q_blocks=False,
    )
    heads = queries.flatten(1, 2).unsqueeze(2)
    output: Any = flex_attention(heads, keys, values, block_mask=blocks, scale=scale, enable_gqa=True)
    return output.view(queries.shape)  # type: ignore[no-any-return]


def _sums(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float) -> Tensor:
    scores = (queries.unsqueeze(3).float() * keys.unsqueeze(2).float()).sum(-1) * scale + mask
    weights = scores.softmax(-1).unsqueeze(-1)
    return (weights * values.unsqueeze(2).float()).sum(3).to(queries.dtype)


CANDIDATES: dict[str, Candidate] = {
    "sdpa": Candidate(masked_sdpa, reads_mask=True),
    "sdpa efficient": Candidate(efficient_sdpa, reads_mask=True),
    "sdpa cudnn": Candidate(cudnn_sdpa, reads_mask=True),
    "sdpa math": Candidate(math_sdpa, reads_mask=True),
    "matrix products": Candidate(matrix_products, reads_mask=True),
    "flash, used lengths": Candidate(flash_used_lengths),
    "flex": Candidate(flex, is_compiled=True),
    "flex, blocks": Candidate(flex_blocks, is_compiled=True),
    "compiled sums": Candidate(compiled_sums, reads_mask=True, is_compiled=True),
}
