"""A decode step as a CUDA graph holds it: recorded once, run again for other lengths and inputs, all on the device."""

import contextlib
from collections.abc import Callable

import pytest
import torch
from support.fake_cuda import OnlyOnDevice, fake_cuda, on_fake_cuda
from support.graph_steps import PROMPTS, fill, step_of
from support.models import tiny_model
from support.recorded_ops import RecordedOps

from superdraft.decoding.model_runner import ModelRunner
from superdraft.decoding.model_support import can_be_recorded

NUM_ROWS = 3
# In double precision Llama-like models run through the fused decoder, and rounding hides nothing.
CASES = [
    *[(name, torch.float64) for name in ("llama", "mistral", "qwen3")],
    *[(name, torch.float32) for name in ("llama", "gemma3_text", "gpt2", "gpt_neox")],
]


def runner_of(architecture: str, dtype: torch.dtype) -> ModelRunner:
    return ModelRunner(tiny_model(architecture).to(dtype), 64, 4_000_000, num_slots=4)


@pytest.mark.parametrize(("architecture", "dtype"), CASES)
@torch.inference_mode()
def test_a_recorded_step_is_right_for_other_inputs_and_lengths(architecture, dtype):
    runner = runner_of(architecture, dtype)
    embeddings, lengths = fill(runner, PROMPTS)
    with RecordedOps() as recorded:
        logits = step_of(runner, embeddings, lengths)
    others = (PROMPTS[1][:2], PROMPTS[0], [17, 200, 4, 4])
    for tensor, value in zip((embeddings, lengths), fill(runner, others), strict=True):
        tensor.copy_(value)
    recorded.replay()
    replayed = logits.log_softmax(-1)
    for row, exact in enumerate(runner.exact_logprobs(others)):
        torch.testing.assert_close(replayed[row].float(), exact[-1].float(), atol=2e-4, rtol=0)
    again, lengths = fill(runner, others)
    torch.testing.assert_close(replayed, runner.decode(again, lengths.tolist()).log_softmax(-1), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("architecture", "dtype"), [*CASES, ("llama", torch.bfloat16)])
@torch.inference_mode()
def test_a_step_stays_on_the_device(architecture, dtype):
    runner = runner_of(architecture, dtype)
    with fake_cuda():
        there = on_fake_cuda(runner)
        embeddings = torch.zeros(NUM_ROWS, runner.model.config.hidden_size, dtype=dtype, device="cuda")
        lengths = torch.zeros(NUM_ROWS, dtype=torch.long, device="cuda")
        with OnlyOnDevice():
            logits = step_of(there, embeddings, lengths)
    assert logits.device.type == "cuda"
    assert logits.shape == (NUM_ROWS, runner.vocab_size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["transformers", "fused"])
@pytest.mark.parametrize(
    ("rope", "can"),
    [
        ({"rope_type": "default"}, True),
        ({"rope_type": "linear", "factor": 2.0}, True),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}, True),
        ({"rope_type": "dynamic", "factor": 2.0}, False),
    ],
    ids=lambda value: value["rope_type"] if isinstance(value, dict) else "",
)
@torch.inference_mode()
def test_models_whose_rotary_angles_need_the_host_are_known(rope, can, dtype):
    model = tiny_model("llama", rope_parameters=rope | {"rope_theta": 10_000.0}).to(dtype)
    runner = ModelRunner(model, 64, 4_000_000, num_slots=4)
    assert can_be_recorded(model) is can
    expected = contextlib.nullcontext() if can else pytest.raises(AssertionError, match="needs the host")
    embeddings, lengths = torch.zeros(2, 32, dtype=dtype), torch.tensor([3, 5])
    with expected, RecordedOps():
        step_of(runner, embeddings, lengths)


def test_a_model_with_angles_for_each_kind_of_layer_can_be_recorded():
    assert can_be_recorded(tiny_model("gemma3_text"))
    longrope = tiny_model("llama")
    longrope.model.rotary_emb.rope_type = {"full_attention": "default", "sliding_attention": "longrope"}
    assert not can_be_recorded(longrope)


HOST_WORK: dict[str, Callable[[torch.Tensor], object]] = {
    "a value": lambda lengths: int(lengths[0]),
    "a condition": lambda lengths: bool(lengths.sum() > 0),
    "new data": lambda lengths: torch.tensor([1, 2, 3], device=lengths.device),
    "a shape": lambda lengths: torch.unique(lengths),
    "a mask": lambda lengths: lengths[lengths > 0],
}


@pytest.mark.parametrize("work", HOST_WORK.values(), ids=HOST_WORK)
def test_work_of_the_host_is_not_recorded(work):
    with pytest.raises(AssertionError, match="needs the host"), RecordedOps():
        work(torch.arange(3))


def run_on_device(work: Callable[[torch.Tensor], object]) -> None:
    with fake_cuda():
        lengths = torch.arange(3, device="cuda")
        with OnlyOnDevice():
            work(lengths)


@pytest.mark.parametrize("work", HOST_WORK.values(), ids=HOST_WORK)
def test_work_of_the_host_is_found_on_the_device(work):
    with pytest.raises(AssertionError, match="needs the host"):
        run_on_device(work)


@pytest.mark.parametrize("copied", [lambda lengths: lengths.cpu(), lambda lengths: torch.zeros(3, device="cpu")])
def test_tensors_of_the_host_are_found(copied):
    with pytest.raises(AssertionError, match="stay on the device uses cpu"):
        run_on_device(copied)


def test_lists_of_values_are_found():
    with pytest.raises(RuntimeError, match="tolist"):
        run_on_device(torch.Tensor.tolist)
