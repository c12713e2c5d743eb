"""Products of the native kernels, of every variant that this processor can run, against products in plain torch."""

import pytest
import torch
from support.rounded_weights import GROUP_SIZE, rounded_weight
from torch import nn

from superdraft.decoding.model.native.linear import NativeLinear
from superdraft.decoding.model.native.matrix import Matrix


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rounded(rows: torch.Tensor) -> torch.Tensor:
    """Rows as the kernels see them: 255 levels in each group of 32."""
    groups = rows.view(*rows.shape[:-1], -1, GROUP_SIZE)
    scales = groups.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
    return ((groups / scales).round() * scales).view(rows.shape)


@pytest.mark.usefixtures("_variant")
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("num_outputs", [48, 37])  # 37 fills no whole panel of 16
@pytest.mark.parametrize("num_rows", [1, 3, 8, 29])
def test_products_are_those_of_the_rounded_numbers(bits, has_bias, num_outputs, num_rows):
    weight, rows = random(num_outputs, 96) * 0.05, random(num_rows, 96, seed=1)
    rows[:, 40] = 60.0  # an outlier spoils its own group only
    bias = torch.linspace(-1, 1, num_outputs) if has_bias else None
    got = NativeLinear([Matrix.of(weight)], bias, bits=bits)(rows)
    expected = nn.functional.linear(rounded(rows), rounded_weight(weight, bits), bias)
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.usefixtures("_variant")
@pytest.mark.parametrize("bits", [4, 8])
def test_extreme_numbers_do_not_overflow(bits):
    """Weights and activations at the ends of their ranges give the largest sums that the kernels must hold."""
    for signs in (torch.ones(64), torch.tensor([1.0, -1.0]).repeat(32)):
        weight = signs.repeat(16, 1)
        rows = torch.stack([signs, -signs, torch.full((64,), 1e4), torch.zeros(64)])
        got = NativeLinear([Matrix.of(weight)], None, bits=bits)(rows)
        expected = nn.functional.linear(rounded(rows), rounded_weight(weight, bits))
        torch.testing.assert_close(got, expected, atol=1e-2, rtol=1e-3)


@pytest.mark.usefixtures("_variant")
@pytest.mark.parametrize("bits", [4, 8])
def test_a_row_does_not_depend_on_the_others(bits):
    layer = NativeLinear([Matrix.of(random(48, 96))], None, bits=bits)
    rows = random(21, 96, seed=1)
    together = layer(rows)
    assert all(torch.equal(layer(rows[i : i + 1])[0], together[i]) for i in range(21))
    assert torch.equal(layer(rows[5:14]), together[5:14])


def test_any_leading_shape_and_type():
    layer = NativeLinear([Matrix.of(random(48, 96))], None, bits=4)
    rows = random(2, 3, 96).bfloat16()
    got = layer(rows)
    assert (got.shape, got.dtype) == ((2, 3, 48), torch.bfloat16)
    assert torch.equal(got.view(6, 48), layer(rows.float().view(6, 96)).bfloat16())
