"""Decode steps of the fused decoder with another attention and with compiled layers equal the plain ones."""

import re

import pytest
import torch
from support.compilers import needs_cpp_compiler
from support.graph_steps import PROMPTS, READ_LENGTH, fill, step_of
from support.models import tiny_model
from torch._dynamo.utils import counters
from torch._inductor.utils import run_and_get_code

from superdraft.decoding import fused_decoder, layer_parts
from superdraft.decoding.attention_choice import AttentionChoice, AttentionShape
from superdraft.decoding.decode_attention import CANDIDATES, Attention, masked_sdpa
from superdraft.decoding.fused_decoder import FusedDecoder
from superdraft.decoding.model_runner import ModelRunner

NUM_LAYERS = 5


def runner_of(architecture: str) -> ModelRunner:
    model = tiny_model(architecture, num_hidden_layers=NUM_LAYERS).double()
    return ModelRunner(model, 64, 4_000_000, num_slots=4)


def decoder_of(runner: ModelRunner) -> FusedDecoder:
    assert runner._fused is not None
    return runner._fused


def step_with(runner: ModelRunner, attention: Attention, embeddings: torch.Tensor, lengths: torch.Tensor):
    return runner.decode_at(embeddings, lengths, READ_LENGTH, attention)


def by_lengths(queries, keys, values, lengths, _mask, scale):
    visible = torch.arange(keys.shape[2]) <= lengths[:, None, None, None]
    return torch.nn.functional.scaled_dot_product_attention(queries, keys, values, visible, scale=scale)


@pytest.mark.parametrize("attention", [by_lengths, CANDIDATES["matrix products"].attention])
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
@torch.inference_mode()
def test_a_chosen_attention_takes_the_place_of_torch_s(architecture, attention):
    runner = runner_of(architecture)
    embeddings, lengths = fill(runner, PROMPTS)
    expected = step_of(runner, embeddings, lengths)
    torch.testing.assert_close(step_with(runner, attention, embeddings, lengths), expected, atol=1e-9, rtol=0)
    doubled = step_with(runner, lambda *inputs: 2 * attention(*inputs), embeddings, lengths)
    assert float((doubled - expected).abs().max()) > 1e-3


@torch.inference_mode()
def test_prompts_do_not_take_the_attention_of_a_step():
    runner = runner_of("llama")
    positions = runner.cache.select([0, 1], [0, 0], 3)
    inputs = (runner.embed([5, 6, 7]).repeat(2, 1, 1), positions, runner._attention_mask(positions), runner.cache)

    def fails(*_: object) -> torch.Tensor:
        raise AssertionError("called for several tokens")

    expected = decoder_of(runner)(*inputs, None)
    assert torch.equal(decoder_of(runner)(*inputs, None, fails), expected)


def test_the_choice_is_asked_for_with_the_model_s_shape(monkeypatch):
    asked = []

    def choose(*args: object, **options: object) -> AttentionChoice:
        asked.append((args, options))
        return AttentionChoice("sdpa", masked_sdpa)

    decoder = decoder_of(runner_of("mistral"))  # a sliding window of 8
    assert decoder.choose_attention(3, 24).attention is masked_sdpa
    monkeypatch.setattr(fused_decoder, "choose_attention", choose)
    decoder.choose_attention(3, 8)
    decoder.choose_attention(1, 9, tries_all=False)
    cpu, scale = torch.device("cpu"), 8**-0.5
    assert asked == [
        (
            (AttentionShape(num_rows, 2, 2, 8, read_length), torch.float64, cpu),
            {"scale": scale, "has_window": has_window, "tries_all": tries_all},
        )
        for num_rows, read_length, has_window, tries_all in [(3, 8, False, True), (1, 9, True, False)]
    ]


@pytest.fixture
def compilation():
    """A process that has compiled nothing yet, and how often it did since."""
    torch._dynamo.reset()
    counters.clear()
    yield lambda: counters["stats"]["unique_graphs"]
    torch._dynamo.reset()
    counters.clear()


@needs_cpp_compiler
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
@torch.inference_mode()
def test_compiled_layers_equal_plain_ones_and_share_their_compilation(architecture, compilation):
    runner = runner_of(architecture)
    embeddings, lengths = fill(runner, PROMPTS)
    expected = step_of(runner, embeddings, lengths)
    written = runner.cache._slots[0].clone()
    slots, rows = torch.arange(len(PROMPTS)), runner.cache._slots[0]
    rows[:, slots, :, lengths] = 0.0
    decoder_of(runner).compile_layers()
    assert compilation() == 0
    torch.testing.assert_close(step_of(runner, embeddings, lengths), expected, atol=1e-9, rtol=0)
    assert compilation() == 3
    assert runner.cache._slots[0] is rows
    torch.testing.assert_close(rows, written, atol=1e-9, rtol=0)
    step_of(runner, embeddings, lengths - 1)
    runner.prefill([0], [PROMPTS[0]], [0])
    assert compilation() == 3


@needs_cpp_compiler
@torch.inference_mode()
def test_compiled_writing_copies_no_cache(compilation):
    pairs = torch.zeros(2, 4, 2, 128, 8)
    qkv, turn = torch.randn(3, 1, 8, 8), torch.randn(3, 1, 1, 8)
    slots, positions = torch.arange(3).unsqueeze(1), torch.tensor([[5], [0], [127]])
    write = layer_parts.compiled_parts().rotate_and_write
    _, (code,) = run_and_get_code(write, qkv, (turn, turn), None, 1e-6, 4, pairs, slots, positions)
    allocated = re.findall(r"= empty_strided_cpu\(\(([\d, ]+)\)", code)
    assert len(allocated) >= 1
    assert all(torch.Size(map(int, shape.split(", "))).numel() <= qkv.numel() for shape in allocated)
    assert int(pairs.any(-1).sum()) == 3 * 2 * 2


def test_many_numbers_of_rows_can_be_compiled(compilation):
    gate = layer_parts.compiled_parts(backend="eager").gate
    for num_rows in range(1, 20):
        assert gate(torch.ones(num_rows, 6), torch.nn.functional.silu).shape == (num_rows, 3)
    assert compilation() == 19


def no_compiler(*_: object, **__: object) -> None:
    raise RuntimeError("no working C compiler was found")


@pytest.mark.parametrize("spoiled", [no_compiler, lambda hidden, change, *_: (hidden, change)])
@torch.inference_mode()
def test_layers_that_cannot_be_compiled_or_come_out_wrong_stay_as_they_are(spoiled, monkeypatch, caplog):
    model = tiny_model("llama", num_hidden_layers=NUM_LAYERS).bfloat16()
    runner = ModelRunner(model, 64, 4_000_000, num_slots=4, num_scratch=1)
    embeddings, lengths = fill(runner, PROMPTS)
    expected = step_of(runner, embeddings, lengths)
    monkeypatch.setattr(fused_decoder, "compiled_parts", lambda: layer_parts.LayerParts(add_and_norm=spoiled))
    runner.compile_layers()
    assert "layers are not compiled" in caplog.text
    assert torch.equal(step_of(runner, embeddings, lengths), expected)


@torch.inference_mode()
def test_layers_that_come_out_right_are_used(monkeypatch, caplog):
    model = tiny_model("llama", num_hidden_layers=NUM_LAYERS).bfloat16()
    runner = ModelRunner(model, 64, 4_000_000, num_slots=4, num_scratch=1)
    parts = layer_parts.LayerParts()
    monkeypatch.setattr(fused_decoder, "compiled_parts", lambda: parts)
    runner.compile_layers()
    assert decoder_of(runner)._compiled is parts
    assert not caplog.records
