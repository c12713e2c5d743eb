"""Layers in 4 and 8 bits by torch's kernels, and which layers a conversion makes."""

import pytest
import torch
from torch import nn

from superdraft.decoding.model import linear_int4
from superdraft.decoding.model.linear import DenseLinear, LinearModule, convert_modules
from superdraft.decoding.model.linear_int4 import Int4Linear, Int8Linear, convert_int4
from superdraft.decoding.model.native.linear import NativeLinear
from superdraft.decoding.model.native.matrix import Matrix
from superdraft.decoding.model.quantise import GROUP_SIZE, quantise_int4


def weights(num_outputs: int = 48, num_inputs: int = 96) -> torch.Tensor:
    return torch.randn(num_outputs, num_inputs, generator=torch.Generator().manual_seed(0)) * 0.05


def expanded(weight: torch.Tensor) -> torch.Tensor:
    """The weights that the 4-bit form represents."""
    levels, scales, zeros = quantise_int4(weight)
    spread = [tensor.repeat_interleave(GROUP_SIZE, dim=1) for tensor in (scales, zeros)]
    return (levels - 8) * spread[0] + spread[1]


@pytest.mark.parametrize("kind", [Int4Linear, Int8Linear])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 96), (2, 3, 96), (40, 96)])
def test_products_are_close_to_dense_ones(kind, has_bias, shape):
    weight = weights().bfloat16()
    bias = torch.linspace(-1, 1, 48).bfloat16() if has_bias else None
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    got = kind(weight, bias)(rows)
    exact = expanded(weight.float()) if kind is Int4Linear else weight.float()
    expected = nn.functional.linear(rows.float(), exact, None if bias is None else bias.float())
    assert got.shape == (*shape[:-1], 48)
    assert got.dtype == torch.bfloat16
    # bfloat16 has 8 significant bits, in scales and in sums.
    assert float((got.float() - expected).abs().max()) <= 0.03 * float(expected.abs().max())


@pytest.mark.parametrize("kind", [Int4Linear, Int8Linear, NativeLinear])
def test_no_rows_give_no_rows(kind):
    if kind is NativeLinear and not linear_int4.has_kernels():
        pytest.skip("this machine has no native kernels")
    layer = NativeLinear([Matrix.of(weights())]) if kind is NativeLinear else kind(weights().bfloat16(), None)
    assert layer(torch.empty(0, 96).bfloat16()).shape == (0, 48)
    assert layer(torch.empty(2, 0, 96).bfloat16()).shape == (2, 0, 48)


@pytest.mark.parametrize("has_kernels", [True, False])
def test_the_kernels_of_this_machine_are_used_else_torchs(monkeypatch, has_kernels):
    if not has_kernels:
        monkeypatch.setattr(linear_int4, "has_kernels", lambda: False)
    dense = DenseLinear(weights().bfloat16(), None)
    kinds = (NativeLinear, NativeLinear) if linear_int4.has_kernels() else (Int4Linear, Int8Linear)
    assert (type(convert_int4(dense)), type(convert_int4(dense, is_head=True))) == kinds


def test_shapes_without_a_kernel_stay_dense(monkeypatch):
    odd = DenseLinear(weights(48, 40).bfloat16(), None)
    assert convert_int4(odd) is odd
    assert convert_int4(odd, is_head=True) is odd
    monkeypatch.setattr(linear_int4, "has_kernels", lambda: False)
    odd = DenseLinear(weights(40, 96).bfloat16(), None)
    assert convert_int4(odd) is odd


def test_modules_are_replaced_at_any_depth():
    model = nn.Sequential(nn.Linear(32, 32), nn.Sequential(nn.Linear(32, 16), nn.ReLU())).bfloat16()
    head = nn.Linear(16, 16).bfloat16()
    model.append(head)
    rows = torch.randn(3, 32).bfloat16()
    with torch.inference_mode():
        before = model(rows)
        convert_modules(model, head, convert_int4)
        after = model(rows)
    assert [type(m) for m in model.modules() if isinstance(m, nn.Linear)] == []
    converted = [m for m in model.modules() if isinstance(m, LinearModule)]
    assert [(m.weight.shape, m.weight.dtype) for m in converted[:2]] == [
        ((32, 32), torch.bfloat16),
        ((16, 32), torch.bfloat16),
    ]
    assert sum(m.weight.untyped_storage().nbytes() for m in converted[:2]) <= 4  # a number each, no weights
    assert float((after - before).abs().max()) <= 0.2 * float(before.abs().max())
