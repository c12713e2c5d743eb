"""Decode steps as CUDA graphs: recorded once, replayed with other lengths and inputs, entirely on the device."""

import contextlib
from collections.abc import Callable

import pytest
import torch
from support.decoding import run_all
from support.fake_cuda import OnlyOnDevice, fake_cuda, on_fake_cuda
from support.models import VOCAB_SIZE, tiny_model, tiny_tokenizer
from support.recorded_ops import CountedRecorder, RecordedOps

from superdraft.decoding.config import EngineConfig
from superdraft.decoding.engine.engine import Engine
from superdraft.decoding.model import runner as model_runner
from superdraft.decoding.model.linear import Conversion
from superdraft.decoding.model.linear_int4 import convert_int4
from superdraft.decoding.model.runner import ModelRunner
from superdraft.decoding.model.step_graphs import Operations, Recorder, can_be_recorded
from superdraft.decoding.outputs import GenerationOutput
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.request import EngineRequest
from superdraft.decoding.text.tokenizer import Tokenizer

NUM_ROWS = 3
READ_LENGTH = 24
PROMPTS = ([5, 80, 31, 7, 7, 99, 120, 18, 44, 3, 250], [3, 4, 5], [9] * 7)
# In double precision Llama-like models use the fused decoder, and rounding hides no difference.
CASES = [
    *[(name, torch.float64) for name in ("llama", "mistral", "qwen3")],
    *[(name, torch.float32) for name in ("llama", "gemma3_text", "gpt2", "gpt_neox")],
]


def runner_of(architecture: str, dtype: torch.dtype) -> ModelRunner:
    return ModelRunner(tiny_model(architecture).to(dtype), 64, 4_000_000, num_slots=4)


def step_of(runner: ModelRunner, embeddings: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Logits of one step of slots [0, R), shape [R, V]."""
    return runner._decode_at(embeddings, lengths, READ_LENGTH)


def fill(runner: ModelRunner, prompts: tuple[list[int], ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Prefill prompts without their last tokens; return these tokens' embeddings and the lengths before them."""
    for slot, prompt in enumerate(prompts):
        runner.prefill([slot], [prompt[:-1]], [0])
    return runner.embed([prompt[-1] for prompt in prompts]), torch.tensor([len(prompt) - 1 for prompt in prompts])


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
def test_models_whose_rotary_angles_need_the_host_are_recognised(rope, can, dtype):
    model = tiny_model("llama", rope_parameters=rope | {"rope_theta": 10_000.0}).to(dtype)
    runner = ModelRunner(model, 64, 4_000_000, num_slots=4)
    assert can_be_recorded(model) is can
    expected = contextlib.nullcontext() if can else pytest.raises(AssertionError, match="needs the host")
    embeddings, lengths = torch.zeros(2, 32, dtype=dtype), torch.tensor([3, 5])
    with expected, RecordedOps():
        step_of(runner, embeddings, lengths)


def test_a_model_with_different_angles_per_layer_type_can_be_recorded():
    assert can_be_recorded(tiny_model("gemma3_text"))
    longrope = tiny_model("llama")
    longrope.model.rotary_emb.rope_type = {"full_attention": "default", "sliding_attention": "longrope"}
    assert not can_be_recorded(longrope)


def engine_of(
    dtype: torch.dtype, recorder: Recorder | None, *, num_slots: int = 5, convert: Conversion | None = None
) -> Engine:
    model = tiny_model("llama").to(dtype)
    runner = ModelRunner(model, 96, 4_000_000, num_slots, convert=convert, recorder=recorder)
    return Engine(runner, Tokenizer(tiny_tokenizer(), VOCAB_SIZE), EngineConfig())


TEXTS = ["Thank you for your", "The quick brown", "a", "We're meeting at noon, aren't"]
VARIANTS = [
    GenerationParams(tau=0.5, num_drafts=3, max_tokens=8),
    GenerationParams(strategy="greedy", num_drafts=1, max_tokens=60),
    GenerationParams(strategy="sample", num_drafts=2, seed=5, max_tokens=8),
    GenerationParams(selection="distinct", max_branches=3, alpha=0.0, tau=1.0, max_tokens=8),
]


def assert_alike(got: GenerationOutput, expected: GenerationOutput, tolerance: float) -> None:
    assert [(d.token_ids, d.finish_reason) for d in got.drafts] == [
        (d.token_ids, d.finish_reason) for d in expected.drafts
    ]
    assert [d.score for d in got.drafts] == pytest.approx([d.score for d in expected.drafts], abs=tolerance)


# In double precision the different read lengths of the steps do not show in rounding.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["transformers", "fused"])
def test_replayed_steps_equal_direct_ones(dtype, monkeypatch):
    """Decisions that Python made while a step was recorded must hold for every step of the same shape."""
    monkeypatch.setattr(model_runner, "_FEWEST_POSITIONS", 16)
    recorder = CountedRecorder()
    engine, plain = engine_of(dtype, recorder), engine_of(dtype, None)
    for variant in VARIANTS:
        for text in TEXTS:
            assert_alike(engine.generate(text, variant), plain.generate(text, variant), 1e-3)
    for one in (engine, plain):
        for number, variant in enumerate(VARIANTS):
            one.add_request(EngineRequest(str(number), TEXTS[number], variant))
    together, expected = run_all(engine), run_all(plain)
    for name, output in together.items():
        assert_alike(output.output, expected[name].output, 1e-3)
    assert recorder.num_replays > 5 * recorder.num_graphs > 20


def test_graphs_are_dropped_when_the_weights_are_converted():
    def step(engine: Engine) -> torch.Tensor:
        runner = engine._runner
        runner.prefill([0], [[3, 4, 5]], [0])
        return runner.decode(runner.embed([6]), [3]).float()

    recorder = CountedRecorder()
    quantised = step(engine_of(torch.bfloat16, recorder, num_slots=1, convert=convert_int4))
    # One graph before the weights are converted, for the runner's check, and another one afterwards.
    assert (recorder.num_graphs, recorder.num_replays) == (2, 1)
    expected = step(engine_of(torch.bfloat16, None, num_slots=1, convert=convert_int4))
    exact = step(engine_of(torch.bfloat16, None, num_slots=1))
    assert float((quantised - expected).abs().max()) < 0.1 * float((exact - expected).abs().max())


def test_a_step_that_cannot_be_recorded_runs_directly(caplog):
    def broken(_: Operations) -> Operations:
        raise RuntimeError("operation not permitted when stream is capturing")

    engine = engine_of(torch.float32, broken)
    expected = engine_of(torch.float32, None).generate(TEXTS[0], VARIANTS[0])
    assert_alike(engine.generate(TEXTS[0], VARIANTS[0]), expected, 1e-3)
    assert "cannot be recorded" in caplog.text
    assert len(caplog.records) == 1


HOST_WORK: dict[str, Callable[[torch.Tensor], object]] = {
    "a value": lambda lengths: int(lengths[0]),
    "a condition": lambda lengths: bool(lengths.sum() > 0),
    "new data": lambda lengths: torch.tensor([1, 2, 3], device=lengths.device),
    "a shape": lambda lengths: torch.unique(lengths),
    "a mask": lambda lengths: lengths[lengths > 0],
}


@pytest.mark.parametrize("work", HOST_WORK.values(), ids=HOST_WORK)
def test_host_work_is_not_recorded(work):
    with pytest.raises(AssertionError, match="needs the host"), RecordedOps():
        work(torch.arange(3))


def run_on_device(work: Callable[[torch.Tensor], object]) -> None:
    with fake_cuda():
        lengths = torch.arange(3, device="cuda")
        with OnlyOnDevice():
            work(lengths)


@pytest.mark.parametrize("work", HOST_WORK.values(), ids=HOST_WORK)
def test_host_work_is_found_on_the_device(work):
    with pytest.raises(AssertionError, match="needs the host"):
        run_on_device(work)


@pytest.mark.parametrize("copied", [lambda lengths: lengths.cpu(), lambda lengths: torch.zeros(3, device="cpu")])
def test_host_tensors_are_found(copied):
    with pytest.raises(AssertionError, match="uses cpu in a step that should stay on the device"):
        run_on_device(copied)


def test_lists_of_values_are_found():
    with pytest.raises(RuntimeError, match="tolist"):
        run_on_device(torch.Tensor.tolist)
