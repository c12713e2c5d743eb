"""4-bit and 8-bit layers on a GPU, with kernels replaced by plain operations; no GPU is needed."""

import types

import pytest
import torch
from support.fake_cuda import OnlyOnDevice, fake_cuda
from support.models import tiny_model

from superdraft.decoding.errors import UnsupportedModelError
from superdraft.decoding.model import linear_cuda
from superdraft.decoding.model.linear import Conversion, DenseLinear
from superdraft.decoding.model.linear_cuda import (
    GPU_MAX_ROWS,
    Int4GpuLinear,
    Int8GpuLinear,
    convert_int4_on_gpu,
    has_int8_kernel,
    inner_tiles,
    pack_levels,
)
from superdraft.decoding.model.linear_int4 import convert_int4
from superdraft.decoding.model.quantise import GROUP_SIZE, quantise_int4
from superdraft.decoding.model.torch_runner import TorchRunner
from superdraft.decoding.model.weight_formats import WEIGHT_FORMATS, choose_weight_format

ATEN = torch.ops.aten


def linear(num_outputs: int = 48, num_inputs: int = 96, *, has_bias: bool = False) -> DenseLinear:
    generator = torch.Generator().manual_seed(0)
    weight = (torch.randn(num_outputs, num_inputs, generator=generator) * 0.05).bfloat16()
    return DenseLinear(weight, torch.linspace(-1, 1, num_outputs).bfloat16() if has_bias else None)


class Kernels:
    """The 4-bit kernels in plain operations. Each byte has the first of two weights in its upper half."""

    def __init__(self, *, is_swapped: bool = False) -> None:
        self.is_swapped = is_swapped
        self.num_products = 0

    def pack(self, packed: torch.Tensor, tiles: int) -> torch.Tensor:
        assert packed.dtype == torch.uint8
        assert packed.is_contiguous()
        assert 2 * packed.shape[1] % (16 * tiles) == packed.shape[0] % 8 == 0
        halves = [packed >> 4, packed & 15]
        return torch.stack(halves[::-1] if self.is_swapped else halves, dim=-1).flatten(1)

    def multiply(self, rows: torch.Tensor, levels: torch.Tensor, group: int, scales_and_zeros: torch.Tensor):
        assert rows.is_contiguous()
        assert scales_and_zeros.is_contiguous()
        assert scales_and_zeros.shape == (levels.shape[1] // group, levels.shape[0], 2)
        assert rows.dtype == scales_and_zeros.dtype == torch.bfloat16
        self.num_products += 1
        scales, zeros = (part.repeat_interleave(group, 0).t().float() for part in scales_and_zeros.unbind(-1))
        return (rows.float() @ ((levels.float() - 8) * scales + zeros).bfloat16().float().t()).bfloat16()


def use(monkeypatch: pytest.MonkeyPatch, kernels: Kernels) -> None:
    monkeypatch.setattr(ATEN, "_convert_weight_to_int4pack", kernels.pack)
    monkeypatch.setattr(ATEN, "_weight_int4pack_mm", kernels.multiply)


def test_packed_levels_equal_those_of_a_plain_loop():
    levels = torch.randint(0, 16, (5, 64), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    packed = pack_levels(levels)
    assert packed.dtype == torch.uint8
    assert packed.tolist() == [
        [16 * row[index] + row[index + 1] for index in range(0, 64, 2)] for row in levels.tolist()
    ]


@pytest.mark.parametrize(("num_inputs", "tiles"), [(4096, 8), (576, 4), (96, 2), (11008, 8), (1536, 8)])
def test_the_kernels_accept_the_shapes(num_inputs, tiles):
    assert inner_tiles(num_inputs) == tiles
    with fake_cuda():
        packed = ATEN._convert_weight_to_int4pack(
            pack_levels(torch.zeros(64, num_inputs, dtype=torch.int32, device="cuda")), tiles
        )
        assert packed.shape == (8, num_inputs // (16 * tiles), 32, tiles // 2)
        rows = torch.zeros(3, num_inputs, dtype=torch.bfloat16, device="cuda")
        scales_and_zeros = torch.zeros(num_inputs // GROUP_SIZE, 64, 2, dtype=torch.bfloat16, device="cuda")
        with OnlyOnDevice():
            product = ATEN._weight_int4pack_mm(rows, packed, GROUP_SIZE, scales_and_zeros)
    assert (product.shape, product.device.type) == ((3, 64), "cuda")


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 96), (2, 3, 96)])
def test_few_rows_use_four_bits_and_many_the_dense_weights(monkeypatch, shape, has_bias):
    kernels = Kernels()
    use(monkeypatch, kernels)
    dense = linear(has_bias=has_bias)
    layer = convert_int4_on_gpu(dense)
    assert type(layer) is Int4GpuLinear
    assert kernels.num_products == 1
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    got = layer(rows)
    assert kernels.num_products == 2
    levels, scales, zeros = quantise_int4(dense.weight)
    spread = [part.bfloat16().float().repeat_interleave(GROUP_SIZE, 1) for part in (scales, zeros)]
    bias = None if dense.bias is None else dense.bias.float()
    expected = torch.nn.functional.linear(rows.float(), (levels - 8) * spread[0] + spread[1], bias)
    assert (got.shape, got.dtype) == (expected.shape, torch.bfloat16)
    assert float((got.float() - expected).abs().max()) <= 0.02 * float(expected.abs().max())
    many = torch.randn(GPU_MAX_ROWS + 1, 96).bfloat16()
    assert torch.equal(layer(many), dense(many))
    assert kernels.num_products == 2


def test_weights_packed_in_the_wrong_order_are_refused(monkeypatch):
    use(monkeypatch, Kernels(is_swapped=True))
    with pytest.raises(UnsupportedModelError, match=r"Int4GpuLinear: torch .* does not multiply .*bfloat16"):
        convert_int4_on_gpu(linear())


def test_nan_results_are_refused(monkeypatch):
    kernels = Kernels()
    use(monkeypatch, kernels)
    monkeypatch.setattr(ATEN, "_weight_int4pack_mm", lambda *inputs: kernels.multiply(*inputs) * float("nan"))
    with pytest.raises(UnsupportedModelError, match="off by nan"):
        convert_int4_on_gpu(linear())


def test_the_error_of_a_kernel_is_explained():
    # On a CPU torch does not have this kernel.
    with pytest.raises(UnsupportedModelError, match=r"dtype int4 does not work on this GPU with torch .*bfloat16"):
        convert_int4_on_gpu(linear())


def test_the_head_uses_eight_bits_if_torch_has_a_kernel(monkeypatch):
    head = linear()
    monkeypatch.setattr(linear_cuda, "has_int8_kernel", lambda: False)
    assert convert_int4_on_gpu(head, is_head=True) is head
    monkeypatch.setattr(linear_cuda, "has_int8_kernel", lambda: True)
    layer = convert_int4_on_gpu(head, is_head=True)
    assert type(layer) is Int8GpuLinear
    many = torch.randn(GPU_MAX_ROWS + 1, 96).bfloat16()
    assert torch.equal(layer(many), head(many))
    assert not torch.equal(layer(many[:-1]), head(many[:-1]))
    if torch.version.cuda is None:
        monkeypatch.undo()
        assert not has_int8_kernel()


def test_wrong_eight_bit_products_are_refused(monkeypatch):
    real = torch._weight_int8pack_mm
    monkeypatch.setattr(torch, "_weight_int8pack_mm", lambda *inputs: real(*inputs) * 1.1)
    with pytest.raises(UnsupportedModelError, match="Int8GpuLinear: torch"):
        Int8GpuLinear(linear().weight, None)


def test_shapes_without_a_kernel_stay_dense():
    for odd in (linear(44, 96), linear(48, 40)):
        assert convert_int4_on_gpu(odd) is odd


def test_the_device_decides_the_conversion(monkeypatch):
    on_gpu = DenseLinear(types.SimpleNamespace(device=torch.device("cuda")), None)
    asked = []
    monkeypatch.setattr(linear_cuda, "convert_int4_on_gpu", lambda dense, is_head: asked.append((dense, is_head)))
    convert_int4(on_gpu)
    convert_int4(on_gpu, is_head=True)
    assert asked == [(on_gpu, False), (on_gpu, True)]


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "int4"])
def test_a_gpu_uses_four_bits_only_on_request(dtype):
    expected = WEIGHT_FORMATS["int4" if dtype == "int4" else "bfloat16"]
    assert choose_weight_format(dtype, torch.device("cuda")) is expected


@torch.inference_mode()
def test_a_whole_model_decodes_with_quantised_layers(monkeypatch):
    use(monkeypatch, Kernels())
    prompt = [5, 80, 31, 7, 7, 99, 120]

    def logits(convert: Conversion) -> torch.Tensor:
        model = tiny_model("llama", initializer_range=0.05, intermediate_size=64).to(torch.bfloat16)
        runner = TorchRunner(model, 64, 1_000_000, num_slots=4, convert=convert)
        runner.prefill([0], [prompt[:-1]], [0])
        return runner.decode(runner.embed(prompt[-1:]), [len(prompt) - 1])

    on_cpu = logits(convert_int4)
    monkeypatch.setattr(linear_cuda, "has_int8_kernel", lambda: True)
    # The same weights, but rounded at different places to the 8 bits of bfloat16.
    assert float((logits(convert_int4_on_gpu) - on_cpu).abs().max()) <= 0.05 * float(on_cpu.abs().max())
