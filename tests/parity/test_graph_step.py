"""Decode steps as CUDA graphs: recorded once, replayed with other trees and inputs, entirely on the device."""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from support.decoding import run_all
from support.fake_cuda import OnlyOnDevice, fake_cuda, on_fake_cuda
from support.models import VOCAB_SIZE, tiny_model, tiny_tokenizer
from support.recorded_ops import CountedRecorder, RecordedOps

from superdraft.decoding.config import EngineConfig
from superdraft.decoding.engine.engine import Engine
from superdraft.decoding.model import step_graphs, torch_runner
from superdraft.decoding.model.linear import Conversion
from superdraft.decoding.model.linear_int4 import convert_int4
from superdraft.decoding.model.segments import Segment, grid_of
from superdraft.decoding.model.step_graphs import (
    MAX_GRAPHS,
    Operations,
    Recorder,
    StepGraphs,
    StepTensors,
    can_be_recorded,
)
from superdraft.decoding.model.torch_runner import TorchRunner
from superdraft.decoding.outputs import GenerationOutput
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.request import EngineRequest
from superdraft.decoding.text.tokenizer import Tokenizer

READ_LENGTH = 24
PROMPTS = ([5, 80, 31, 7, 7, 99, 120, 18, 44, 3, 250], [3, 4, 5], [9] * 7)
# In double precision Llama-like models use the fused decoder, and rounding hides no difference.
CASES = [
    *[(name, torch.float64) for name in ("llama", "mistral", "qwen3")],
    *[(name, torch.float32) for name in ("llama", "gemma3_text", "gpt2", "gpt_neox")],
]


def runner_of(architecture: str, dtype: torch.dtype) -> TorchRunner:
    return TorchRunner(tiny_model(architecture).to(dtype), 64, 4_000_000, num_slots=4)


def step_of(runner: TorchRunner, segments: list[Segment], embeddings: torch.Tensor) -> tuple[StepTensors, list[int]]:
    """The inputs of a step of these rows, and where each row is among its outputs."""
    grid, slots, cells = grid_of(segments, runner.device, READ_LENGTH)
    inputs = StepTensors(
        runner._on_grid(grid, embeddings), torch.tensor(slots), torch.tensor(cells), grid.positions, grid.distances
    )
    return inputs, grid.places


def tree_of(runner: TorchRunner, texts: Sequence[Sequence[list[int]]], cells: Iterator[int]) -> list[Segment]:
    """For each slot texts with a common beginning; run all but their last tokens and return the rows of these.

    Args:
        runner: the model and its cache.
        texts: of each slot. The first one begins the others.
        cells: where to put what follows the first text's own tokens.
    """
    rows = []
    for slot, (first, *others) in enumerate(texts):
        base = len(first) - 1
        runner.forward([Segment.plain(slot, 0, base)], runner.embed(first[:-1]), [])
        for text in (first, *others):
            path = tuple(next(cells) for _ in text[base:])
            if len(path) > 1:
                segment = Segment(slot, base, len(path) - 1, base, path[:-1])
                runner.forward([segment], runner.embed(text[base:-1]), [])
            rows.append(Segment(slot, len(text) - 1, 1, base, path))
    return rows


@pytest.mark.parametrize(("architecture", "dtype"), CASES)
@torch.inference_mode()
def test_a_recorded_step_is_right_for_another_tree_of_the_same_shape(architecture, dtype):
    """Three slots with at most two rows, then other texts, one row less, and other cells."""
    runner = runner_of(architecture, dtype)
    trees = [[PROMPTS[0], [*PROMPTS[0][:-1], 6, 7]], [PROMPTS[1]], [PROMPTS[2], [*PROMPTS[2], 8, 9, 10]]]
    others = [[PROMPTS[1][:2], [3, 90, 91]], [PROMPTS[0]], [[17, 200, 4, 4]]]
    rows = tree_of(runner, trees, iter(range(12, 24)))
    inputs, _ = step_of(runner, rows, runner.embed([text[-1] for tree in trees for text in tree]))
    assert inputs.distances.shape == (4, 2, READ_LENGTH)
    with RecordedOps() as recorded:
        logits = runner._step(inputs)
    rows = tree_of(runner, others, iter(range(23, 11, -1)))
    embeddings = runner.embed([text[-1] for tree in others for text in tree])
    later, places = step_of(runner, rows, embeddings)
    for tensor, value in zip(inputs.all, later.all, strict=True):
        tensor.copy_(value)
    recorded.replay()
    replayed = logits.flatten(0, 1)[places].log_softmax(-1)
    for row, exact in zip(replayed, runner.exact_logprobs([text for tree in others for text in tree]), strict=True):
        torch.testing.assert_close(row.float(), exact[-1].float(), atol=2e-4, rtol=0)
    direct = runner.forward(rows, embeddings, range(len(rows))).log_softmax(-1)
    torch.testing.assert_close(replayed, direct, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("architecture", "dtype"), [*CASES, ("llama", torch.bfloat16)])
@torch.inference_mode()
def test_a_step_stays_on_the_device(architecture, dtype):
    runner = runner_of(architecture, dtype)
    with fake_cuda():
        there = on_fake_cuda(runner)
        width, numbers = runner.model.config.hidden_size, {"dtype": torch.long, "device": "cuda"}
        inputs = StepTensors(
            torch.zeros(4, 2, width, dtype=dtype, device="cuda"),
            torch.zeros(4, **numbers),
            torch.zeros(4, 2, **numbers),
            torch.zeros(4, 2, **numbers),
            torch.zeros(4, 2, READ_LENGTH, **numbers),
        )
        with OnlyOnDevice():
            logits = there._step(inputs)
    assert logits.device.type == "cuda"
    assert logits.shape == (4, 2, runner.vocab_size)


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
    runner = TorchRunner(model, 64, 4_000_000, num_slots=4)
    assert can_be_recorded(model) is can
    expected = contextlib.nullcontext() if can else pytest.raises(AssertionError, match="needs the host")
    rows = [Segment.plain(0, 3, 1), Segment.plain(1, 5, 1)]
    inputs, _ = step_of(runner, rows, torch.zeros(2, 32, dtype=dtype))
    with expected, RecordedOps():
        runner._step(inputs)


def test_a_model_with_different_angles_per_layer_type_can_be_recorded():
    assert can_be_recorded(tiny_model("gemma3_text"))
    longrope = tiny_model("llama")
    longrope.model.rotary_emb.rope_type = {"full_attention": "default", "sliding_attention": "longrope"}
    assert not can_be_recorded(longrope)


def engine_of(
    dtype: torch.dtype, recorder: Recorder | None, *, num_slots: int = 5, convert: Conversion | None = None
) -> Engine:
    model = tiny_model("llama").to(dtype)
    runner = TorchRunner(model, 96, 4_000_000, num_slots, convert=convert, recorder=recorder)
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
    monkeypatch.setattr(torch_runner, "_FEWEST_POSITIONS", 16)
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


@torch.inference_mode()
def test_the_number_of_recorded_shapes_stays_small(monkeypatch):
    """Slots, rows and cells are rounded up to powers of two, so most steps find a graph."""
    monkeypatch.setattr(torch_runner, "_FEWEST_POSITIONS", 16)
    recorder = CountedRecorder()
    runner = TorchRunner(tiny_model("llama"), 96, 10_000_000, 8, recorder=recorder)
    before, shapes, num_steps = recorder.num_graphs, set(), 0
    for num_slots, num_rows, base in itertools.product(range(1, 9), range(1, 9), (5, 16, 17, 40, 96)):
        rows = [Segment(slot, base, 1, base, (base + row,)) for slot in range(num_slots) for row in range(num_rows)]
        logits = runner.forward(rows, torch.zeros(len(rows), 32), range(len(rows)))
        assert logits.shape == (len(rows), runner.vocab_size)
        num_cells = max(16, 1 << (base + num_rows - 1).bit_length())
        shapes.add((1 << (num_slots - 1).bit_length(), 1 << (num_rows - 1).bit_length(), num_cells))
        num_steps += 1
    # The slot has 192 cells; the runner's own check has recorded (2, 2, 16).
    assert {cells for _, _, cells in shapes} == {16, 32, 64, 128}
    assert recorder.num_graphs - before == len(shapes - {(2, 2, 16)}) <= 4 * 4 * 4
    assert recorder.num_replays >= num_steps - len(shapes)
    runner.forward([Segment(0, 20, 1, 20, (150,))], torch.zeros(1, 32), [0])
    assert len(runner._graphs._graphs) == len(shapes | {(2, 2, 16)}) + 1 < MAX_GRAPHS
    assert (1, 1, 192) in runner._graphs._graphs  # no more cells than there are


def test_the_graphs_that_were_not_used_for_longest_are_dropped(monkeypatch):
    monkeypatch.setattr(step_graphs, "MAX_GRAPHS", 2)
    recorder = CountedRecorder()
    graphs = StepGraphs(recorder)

    def run(rows: int) -> list[float]:
        inputs = StepTensors(*(torch.full((rows,), 3.0 + i) for i in range(5)))
        return graphs.run(rows, inputs, lambda own: own.embeddings * own.distances).tolist()

    for rows, num_graphs in ((1, 1), (2, 2), (1, 2), (3, 3), (1, 3), (2, 4), (1, 4), (3, 5)):
        assert run(rows) == [21.0] * rows
        assert recorder.num_graphs == num_graphs


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
