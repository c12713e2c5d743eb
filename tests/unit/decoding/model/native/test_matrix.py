"""Every type of a GGUF file against gguf-py's dequantisation, to the last bit, and in the kernels' products."""

import gguf
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from superdraft.decoding.model.native.linear import NativeLinear, packed_bytes
from superdraft.decoding.model.native.matrix import MATRIX_TYPES, Matrix, MatrixType
from superdraft.decoding.model.native.structs import Format

NUM_ROWS, WIDTH = 48, 512
FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
QUANTISED = [about for about in MATRIX_TYPES.values() if about.name not in FLOATS]
# Where blocks have their numbers in float16. All other bits may be anything.
SCALES = {
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "Q4_1": (0, 2),
    "Q5_1": (0, 2),
}


def random_blocks(about: MatrixType, seed: int = 0) -> NDArray[np.uint8]:
    random = np.random.default_rng(seed)
    num_blocks = WIDTH // about.block_size
    blocks = random.integers(0, 256, (NUM_ROWS, num_blocks, about.block_bytes), dtype=np.uint8)
    for place in SCALES.get(about.name, (0,)):
        numbers = random.uniform(-0.03, 0.07, (NUM_ROWS, num_blocks)).astype(np.float16)
        blocks[:, :, place : place + 2] = numbers.view(np.uint8).reshape(NUM_ROWS, num_blocks, 2)
    return blocks.reshape(NUM_ROWS, -1)


def matrix_of(about: MatrixType, seed: int = 0) -> tuple[Matrix, torch.Tensor]:
    """A matrix, and its numbers by gguf-py."""
    blocks = random_blocks(about, seed)
    numbers = gguf.dequantize(blocks, gguf.GGMLQuantizationType(about.number))
    return Matrix(torch.from_numpy(blocks).flatten(), about, NUM_ROWS, WIDTH), torch.from_numpy(numbers)


def test_the_types_are_those_of_gguf_py():
    for number, about in MATRIX_TYPES.items():
        kind = gguf.GGMLQuantizationType(number)
        assert (about.name, about.number) == (kind.name, number)
        assert (about.block_size, about.block_bytes) == gguf.GGML_QUANT_SIZES[kind]


@pytest.mark.usefixtures("_variant")
@pytest.mark.parametrize("about", QUANTISED, ids=lambda about: about.name)
def test_numbers_are_those_of_gguf_py_to_the_last_bit(about):
    matrix, expected = matrix_of(about)
    assert torch.equal(matrix.numbers(), expected)
    assert torch.equal(matrix.numbers([7, 0, 7]), expected[[7, 0, 7]])
    assert float(expected.std()) > 0.01


@pytest.mark.parametrize("name", FLOATS)
def test_floating_point_is_exact(name):
    tensor = torch.randn(NUM_ROWS, WIDTH, generator=torch.Generator().manual_seed(0)).to(FLOATS[name])
    assert Matrix.of(tensor).type.name == name
    assert torch.equal(Matrix.of(tensor).numbers(), tensor.float())


@pytest.mark.usefixtures("_variant")
@pytest.mark.parametrize("about", QUANTISED, ids=lambda about: about.name)
def test_the_kernels_multiply_the_same_numbers(about):
    """A row with one number, which is rounded to itself, picks one weight of every output."""
    matrix, numbers = matrix_of(about)
    layer = NativeLinear([matrix])
    picked = layer(torch.eye(WIDTH) * 127) / 127
    torch.testing.assert_close(picked.T, numbers, atol=1e-6, rtol=1e-6)
    rows = torch.randint(-127, 128, (11, WIDTH), generator=torch.Generator().manual_seed(1)).float()
    rows[:, ::32] = 127  # so that every group has a scale of one
    torch.testing.assert_close(layer(rows), rows @ numbers.T, atol=2e-2, rtol=1e-4)


def test_parts_of_several_types_make_one_layer():
    parts = [matrix_of(about, seed) for seed, about in enumerate(QUANTISED[-3:])]
    rows = torch.randint(-127, 128, (5, WIDTH), generator=torch.Generator().manual_seed(1)).float()
    rows[:, ::32] = 127
    bias = torch.linspace(-9, 9, 3 * NUM_ROWS)
    layer = NativeLinear([matrix for matrix, _ in parts], bias)
    expected = rows @ torch.cat([numbers for _, numbers in parts]).T + bias
    torch.testing.assert_close(layer(rows), expected, atol=2e-2, rtol=1e-4)
    assert layer.num_bytes == sum(packed_bytes(matrix) for matrix, _ in parts)


def test_rows_in_another_order():
    matrix, numbers = matrix_of(MATRIX_TYPES[8])
    order = torch.tensor([5, 3, 40, 3], dtype=torch.int32)
    some = matrix.rows_in(order)
    assert some.shape == (4, WIDTH)
    assert torch.equal(some.numbers(), numbers[order.long()])
    assert torch.equal(some.rows_in(torch.tensor([2])).numbers(), numbers[40:41])
    first, second = matrix.split([16, 32])
    assert torch.equal(torch.cat([first.numbers(), second.numbers()]), numbers)
    assert torch.equal(
        NativeLinear([some])(torch.eye(WIDTH)), NativeLinear([matrix])(torch.eye(WIDTH))[:, order.long()]
    )


def test_the_formats_take_what_their_bits_take():
    taken = {about.name: packed_bytes(matrix_of(about)[0]) * 8 / (NUM_ROWS * WIDTH) for about in QUANTISED}
    in_file = {about.name: about.block_bytes * 8 / about.block_size for about in QUANTISED}
    wider = {"Q4_0": 0.5, "Q2_K": 2.5, "Q3_K": 1.13, "IQ4_NL": 4.0}  # held in more bits than the file has
    for name, bits in taken.items():
        assert bits <= in_file[name] + wider.get(name, 0.13), name
    assert len(Format) == len({about.name for about in QUANTISED} - {"Q4_1", "IQ4_NL"})
