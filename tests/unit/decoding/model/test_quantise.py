"""Rounding of weights to 4 and 8 bits."""

import pytest
import torch

from superdraft.decoding.model.quantise import GROUP_SIZE, quantise_int4, quantise_int8


def weights(num_outputs: int = 48, num_inputs: int = 96, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_outputs, num_inputs, generator=torch.Generator().manual_seed(seed)) * 0.05


def expanded(weight: torch.Tensor) -> torch.Tensor:
    """The weights that the 4-bit form represents."""
    levels, scales, zeros = quantise_int4(weight)
    assert 0 <= int(levels.min()) <= int(levels.max()) <= 15
    spread = [tensor.repeat_interleave(GROUP_SIZE, dim=1) for tensor in (scales, zeros)]
    return (levels - 8) * spread[0] + spread[1]


def test_no_weight_moves_by_more_than_half_a_step():
    weight = weights()
    groups = weight.view(48, -1, GROUP_SIZE)
    step = ((groups.amax(-1) - groups.amin(-1)) / 15).repeat_interleave(GROUP_SIZE, dim=1)
    assert bool(((expanded(weight) - weight).abs() <= step / 2 + 1e-6).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("highest", [15, 12, 8])
def test_weights_on_a_grid_are_recovered_exactly(dtype, highest):
    # As in GGUF files: Q4_1 uses the levels 0 and 15 in every group, Q4_0 the lowest and any other.
    generator = torch.Generator().manual_seed(highest)
    levels = torch.randint(0, highest + 1, (16, 2 * GROUP_SIZE), generator=generator)
    levels[:, ::GROUP_SIZE], levels[:, 1::GROUP_SIZE] = 0, highest
    scales = (0.01 + torch.rand(16, 2, generator=generator) / 50).repeat_interleave(GROUP_SIZE, dim=1)
    weight = (levels - 8) * scales
    rounding = 0.0 if dtype == torch.float32 else 2**-7
    error = (expanded(weight.to(dtype).float()) - weight).abs()
    assert bool((error <= 1e-6 + rounding * weight.abs().max()).all())
    found, _, _ = quantise_int4(weight.to(dtype).float())
    assert torch.equal(found, levels.int())


def test_weights_of_several_blocks_are_rounded_like_one_block():
    weight = weights(300, 9 * GROUP_SIZE).bfloat16()
    levels, scales = quantise_int8(weight)
    exact = weight.float()
    assert torch.equal(scales, exact.abs().amax(dim=1) / 127)
    assert torch.equal(levels, (exact / scales[:, None]).round().to(torch.int8))
    drawn = torch.randint(0, 11, (300, 9 * GROUP_SIZE), generator=torch.Generator().manual_seed(0))
    few_levels = ((drawn - 4) * 0.03125).bfloat16()
    assert torch.allclose(expanded(few_levels), few_levels.float(), atol=1e-6)


def test_a_constant_group_is_kept():
    assert torch.allclose(expanded(torch.full((16, GROUP_SIZE), 0.25)), torch.full((16, GROUP_SIZE), 0.25), atol=1e-6)
