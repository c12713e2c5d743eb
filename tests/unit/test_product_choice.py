"""The fastest right way to multiply a few rows by a matrix is taken."""

import functools

import pytest
import torch
from support.compilers import needs_cpp_compiler
from support.graph_steps import PROMPTS, fill, step_of
from support.models import tiny_model

from superdraft.decoding import fused_decoder
from superdraft.decoding.model_runner import ModelRunner
from superdraft.decoding.product_choice import CANDIDATES, ChosenLinear, ProductChoice, choose_product
from superdraft.decoding.quantisation import DenseLinear

LINEAR = torch.nn.functional.linear


def layers(count: int = 3, *, has_bias: bool = False, dtype: torch.dtype = torch.bfloat16) -> list[DenseLinear]:
    generator = torch.Generator().manual_seed(0)
    bias = torch.linspace(-1, 1, 40).to(dtype) if has_bias else None
    return [DenseLinear(torch.randn(40, 64, generator=generator).to(dtype), bias) for _ in range(count)]


def no_time(run) -> float:
    return float(len(run()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("num_rows", [1, 3])
def test_ways_are_right(num_rows, has_bias, dtype):
    eager = {name: CANDIDATES[name] for name in ("linear", "matrix and vector")}
    choice = choose_product(layers(has_bias=has_bias, dtype=dtype), num_rows, candidates=eager, timer=no_time)
    # The second is for one row.
    assert [trial.reason is None for trial in choice.trials] == [True, num_rows == 1]


@needs_cpp_compiler
def test_the_compiled_way_is_right():
    compiled = {"compiled sums": CANDIDATES["compiled sums"]}
    assert set(CANDIDATES) == {*compiled, "linear", "matrix and vector"}
    for num_rows, has_bias in [(1, True), (3, False)]:
        choice = choose_product(layers(has_bias=has_bias), num_rows, candidates=compiled, timer=no_time)
        assert choice.trials[0].reason is None


def test_the_fastest_right_one_is_taken_and_all_layers_are_read():
    spent, read = [0.0], []

    def candidate(rows, weight, bias, *, cost: float, factor: float = 1.0):
        spent[0] += cost
        read.append(weight.data_ptr())
        return factor * LINEAR(rows, weight, bias)

    def timer(run) -> float:
        before = spent[0]
        read.clear()
        run()
        return spent[0] - before

    candidates = {
        "slow": functools.partial(candidate, cost=3.0),
        "fast": functools.partial(candidate, cost=2.0),
        "wrong": functools.partial(candidate, cost=1.0, factor=1.1),
    }
    linears = layers()
    choice = choose_product(linears, 2, candidates=candidates, timer=timer)
    assert (choice.name, choice.product) == ("fast", candidates["fast"])
    assert [trial.time_ms for trial in choice.trials] == [3.0, 2.0, None]
    assert set(read) == {linear.weight.data_ptr() for linear in linears}


def test_away_from_a_gpu_it_is_torch_s_linear():
    choice = choose_product(layers(), 1)
    assert (choice.name, choice.product, choice.trials) == ("linear", LINEAR, ())


def test_a_layer_takes_the_product_for_its_number_of_rows():
    linear = layers(1, has_bias=True)[0]
    chosen = ChosenLinear(linear)
    chosen.products[2] = lambda *inputs: 2 * LINEAR(*inputs)
    rows = torch.ones(3, 64, dtype=torch.bfloat16)
    assert torch.equal(chosen(rows), linear(rows))
    assert torch.equal(chosen(rows[:2]), 2 * linear(rows[:2]))


@torch.inference_mode()
def test_a_decoder_chooses_once_for_each_shape_of_weights(monkeypatch):
    asked = {}

    def choose(linears, num_rows: int) -> ProductChoice:
        asked[tuple(linears[0].weight.shape)] = (len(linears), num_rows)
        return ProductChoice("doubled", lambda *inputs: 2 * LINEAR(*inputs))

    runner = ModelRunner(tiny_model("llama").double(), 64, 1_000_000, num_slots=4)
    embeddings, lengths = fill(runner, PROMPTS)
    expected = step_of(runner, embeddings, lengths)
    monkeypatch.setattr(fused_decoder, "choose_product", choose)
    assert set(runner._fused.choose_products(2)) == set(asked)
    # Two layers: queries, keys and values; output; gate and up; down. The head is alone.
    assert asked == {(64, 32): (2, 2), (32, 32): (2, 2), (96, 32): (2, 2), (32, 48): (2, 2), (300, 32): (1, 2)}
    assert torch.equal(step_of(runner, embeddings, lengths), expected)
    assert not torch.equal(step_of(runner, embeddings[:2], lengths[:2]), expected[:2])
    runner._fused.choose_products(3)
    assert not torch.equal(step_of(runner, embeddings, lengths), expected)


def test_quantised_layers_keep_their_product():
    runner = ModelRunner(tiny_model("llama").to(torch.bfloat16), 64, 1_000_000, num_slots=4, quantise=True)
    # Shapes without a 4-bit kernel are dense.
    assert set(runner._fused.choose_products(1)) == {(32, 48)}
