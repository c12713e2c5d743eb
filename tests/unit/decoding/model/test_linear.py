import torch
from torch import nn

from superdraft.decoding.model.linear import DenseLinear


def parts(*, bias: bool) -> list[nn.Linear]:
    torch.manual_seed(0)
    return [nn.Linear(6, size, bias=bias).requires_grad_(False) for size in (4, 2, 3)]


def test_joined_layers_compute_what_their_parts_do():
    rows = torch.randn(5, 6)
    for bias in (False, True):
        wanted = torch.cat([part(rows) for part in parts(bias=bias)], dim=-1)
        torch.testing.assert_close(DenseLinear.joined(parts(bias=bias))(rows), wanted)


def test_weights_are_joined_when_they_are_needed_and_then_not_stored_twice():
    own = parts(bias=True)
    before = [part.weight for part in own]
    layer = DenseLinear.joined(own)
    assert [weight.data_ptr() for weight in layer.weights] == [weight.data_ptr() for weight in before]
    joined = layer.weight
    assert joined.shape == (9, 6)
    assert torch.equal(joined, torch.cat(before))
    assert layer.weights == (joined,)
    assert {part.weight.untyped_storage().data_ptr() for part in own} == {joined.untyped_storage().data_ptr()}
    assert all(torch.equal(part.weight, weight) for part, weight in zip(own, before, strict=True))


def test_one_layer_stays_as_it_is():
    (only, *_) = parts(bias=True)
    layer = DenseLinear.joined([only])
    assert layer.weight is only.weight
    assert layer.bias is only.bias
