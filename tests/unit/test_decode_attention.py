"""The ways to compute the attention of one position a row."""

import pytest
import torch
from support.compilers import needs_cpp_compiler
from support.fake_cuda import OnlyOnDevice, fake_cuda

from superdraft.decoding.attention_choice import AttentionShape, choose_attention
from superdraft.decoding.decode_attention import CANDIDATES, as_one_sequence

EAGER = ("sdpa", "sdpa math", "matrix products")
COMPILED = ("flex", "flex, blocks", "compiled sums")
NEED_A_GPU = ("sdpa efficient", "sdpa cudnn", "flash, used lengths")


def kept_candidates(names: tuple[str, ...], shape: AttentionShape, dtype: torch.dtype) -> list[str]:
    """Those that are right; the choice compares them with plain arithmetic."""
    candidates = {name: CANDIDATES[name] for name in names}
    cpu = torch.device("cpu")
    choice = choose_attention(shape, dtype, cpu, scale=0.2, candidates=candidates, timer=lambda run: float(len(run())))
    return [trial.name for trial in choice.trials if trial.reason is None]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [AttentionShape(3, 2, 4, 16, 200), AttentionShape(1, 4, 1, 64, 96)])
def test_plain_ways_are_right_and_those_of_a_gpu_are_refused_elsewhere(shape, dtype):
    assert kept_candidates((*EAGER, *NEED_A_GPU), shape, dtype) == list(EAGER)


@needs_cpp_compiler
def test_compiled_ways_are_right():
    assert kept_candidates(COMPILED, AttentionShape(3, 2, 4, 16, 200), torch.float32) == list(COMPILED)


def test_every_way_is_tested():
    assert set(CANDIDATES) == {*EAGER, *COMPILED, *NEED_A_GPU}


@pytest.mark.parametrize("name", [*EAGER, "flash, used lengths"])
@torch.inference_mode()
def test_nothing_is_read_on_the_host(name):
    with fake_cuda():
        block = torch.zeros(2, 3, 2, 40, 16, dtype=torch.bfloat16, device="cuda")
        queries = torch.zeros(3, 2, 4, 16, dtype=torch.bfloat16, device="cuda")
        mask = torch.zeros(3, 1, 1, 32, dtype=torch.bfloat16, device="cuda")
        keys, values = block[:, :, :, :32].unbind(0)
        lengths = torch.zeros(3, dtype=torch.long, device="cuda")
        with OnlyOnDevice():
            mixed = CANDIDATES[name].attention(queries, keys, values, lengths, mask, 0.25)
    assert (mixed.shape, mixed.dtype, mixed.device.type) == (queries.shape, torch.bfloat16, "cuda")


def test_slots_as_one_sequence_are_the_same_memory():
    block = torch.arange(2 * 5 * 3 * 10 * 4).view(2, 5, 3, 10, 4)
    slots = block[1, :4, :, :7]
    sequence, apart = as_one_sequence(slots)
    assert sequence.data_ptr() == slots.data_ptr()
    for row in range(4):
        assert torch.equal(sequence[row * apart : row * apart + 7], slots[row].transpose(0, 1))
