import pytest
import torch

from superdraft.decoding.loading.stored_layers import StoredConversion
from superdraft.decoding.model.linear import DenseLinear
from superdraft.decoding.model.linear_int4 import convert_int4
from superdraft.decoding.model.native.library import has_kernels
from superdraft.decoding.model.native.linear import NativeLinear

pytestmark = pytest.mark.skipif(not has_kernels(), reason="there are no kernels for this machine")


class Counted:
    """`convert_int4`, counted."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, linear: DenseLinear, *, is_head: bool = False):
        self.calls += 1
        return convert_int4(linear, is_head=is_head)


def layer(seed: int = 0, outputs: int = 50, *, bias: bool = True) -> DenseLinear:
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, 64, generator=random).bfloat16()
    return DenseLinear(weight, torch.randn(outputs, generator=random).bfloat16() if bias else None)


def same(one: NativeLinear, other: NativeLinear) -> bool:
    left, right = one.parts(), other.parts()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("is_head", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_is_converted_once_and_then_read(tmp_path, is_head, bias):
    counted = Counted()
    first, second = (StoredConversion(counted, tmp_path)(layer(bias=bias), is_head=is_head) for _ in range(2))
    assert counted.calls == 1
    assert same(first, second)
    assert same(second, convert_int4(layer(bias=bias), is_head=is_head))
    rows = torch.randn(3, 64)
    assert torch.equal(first(rows), second(rows))


def test_layers_are_told_apart(tmp_path):
    counted = Counted()
    convert = StoredConversion(counted, tmp_path)
    other_bias = layer()
    other_bias.bias = other_bias.bias + 1
    variants = [layer(), layer(1), layer(outputs=49), layer(bias=False), other_bias]
    for variant in variants:
        convert(variant)
    convert(variants[0], is_head=True)
    assert counted.calls == 6
    for variant in reversed(variants):
        assert same(convert(variant), convert_int4(variant))
    assert counted.calls == 6


def test_a_joined_layer_is_found_before_and_after_it_is_joined(tmp_path):
    counted = Counted()
    parts = [torch.nn.Linear(64, size).bfloat16().requires_grad_(False) for size in (48, 16, 16)]
    layers = [DenseLinear.joined(parts), DenseLinear.joined(parts)]
    first = StoredConversion(counted, tmp_path)(layers[0])  # joins the parts, which the second one sees as views
    assert len(layers[1].weights) == 3
    assert same(StoredConversion(counted, tmp_path)(layers[1]), first)
    assert len(layers[1].weights) == 3  # nothing was joined for it
    assert counted.calls == 1


def test_the_check_is_remembered_for_this_code_and_with_the_layers(tmp_path, monkeypatch):
    convert = StoredConversion(convert_int4, tmp_path)
    convert.record_pass()
    assert not convert.has_passed  # no layer was stored
    convert(layer())
    assert not convert.has_passed
    convert.record_pass()
    assert StoredConversion(convert_int4, tmp_path).has_passed
    monkeypatch.setattr("superdraft.decoding.loading.stored_layers._checked_code", lambda: "other")
    assert not StoredConversion(convert_int4, tmp_path).has_passed


def _cut(data: bytes) -> bytes:
    return data[:-10]


def _flip(data: bytes) -> bytes:
    return data[:-10] + bytes([data[-10] ^ 1]) + data[-9:]


@pytest.mark.parametrize("damage", [_cut, _flip, lambda _: b"", lambda _: b"not tensors"])
def test_a_damaged_layer_is_converted_and_stored_again(tmp_path, damage):
    counted = Counted()
    convert = StoredConversion(counted, tmp_path)
    convert(layer())
    (stored,) = tmp_path.glob("layers-*/*")
    stored.write_bytes(damage(stored.read_bytes()))
    assert same(convert(layer()), convert_int4(layer()))
    assert counted.calls == 2
    convert(layer())
    assert counted.calls == 2
    assert list(tmp_path.glob("layers-*/*")) == [stored]


def test_other_code_does_not_read_what_this_code_wrote(tmp_path, monkeypatch):
    counted = Counted()
    StoredConversion(counted, tmp_path)(layer())
    monkeypatch.setattr("superdraft.decoding.loading.stored_layers._layout", lambda: "other")
    StoredConversion(counted, tmp_path)(layer())
    assert counted.calls == 2
    assert [folder.name for folder in tmp_path.iterdir()] == ["layers-other"]


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(tmp_path):
    convert = StoredConversion(convert_int4, tmp_path / "missing")
    assert same(convert(layer()), convert_int4(layer()))
    assert list(tmp_path.iterdir()) == []


def test_layers_that_stay_dense_are_not_stored(tmp_path):
    odd = DenseLinear(torch.randn(8, 20), None)
    assert StoredConversion(convert_int4, tmp_path)(odd) is odd
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["panels", "scales", "bias", "sizes"])
def test_parts_that_do_not_belong_together_are_refused(name):
    parts = convert_int4(layer(), is_head=True).parts()
    other = convert_int4(layer(outputs=90), is_head=True).parts()
    with pytest.raises(ValueError, match="do not make a layer"):
        NativeLinear.from_parts(parts | {name: other[name]})
