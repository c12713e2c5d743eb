"""Decode steps on the device against the host's own, over tiny real models, on the CPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from support.decoding import HashScorer, run_all, texts, tiny_engine
from support.fake_cuda import OnlyOnDevice, fake_cuda, on_fake_cuda
from support.models import ARCHITECTURES
from support.ngram import shipped_scorer
from support.recorded_ops import RecordedOps

from superdraft.decoding.device_choice import StepShape
from superdraft.decoding.device_steps import DeviceSteps, rounded_up
from superdraft.decoding.engine import Engine
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.step_graphs import StepGraphs

PROMPTS = ["Thank you for your", "The quick brown", "a", "We're meeting at noon, aren't", "def add(a, b):\n    ret"]


def params(**options: object) -> GenerationParams:
    return GenerationParams(**({"max_tokens": 8, "tau": 0.5, "alpha": 0.5} | options))


VARIANTS = [
    params(num_drafts=3),
    params(num_drafts=8, max_tokens=6, tau=0.7),
    params(num_drafts=5, candidates_per_draft=6, alpha=1.0, tau=0.5),
    params(strategy="greedy", num_drafts=1),
    params(strategy="sample", num_drafts=2, seed=5),
    params(strategy="sample", num_drafts=2, seed=5, top_p=0.7, temperature=0.6),
    params(strategy="sample+superposed", num_branches=2, seed=5),
    params(selection="distinct", max_branches=3, alpha=0.0, tau=1.0),
    params(selection="distinct", max_branches=1, min_probability=0.01),
    params(num_drafts=3, stop=("e", "th")),
    params(num_drafts=3, reset_every=3, seed=1),
    params(num_drafts=3, frequency_penalty=1.0, logit_bias=((70, 3.0),)),
    params(num_drafts=3, token_healing=True),
    params(num_drafts=17, max_tokens=3),
]


def assert_alike(got: object, expected: object, tolerance: float = 1e-3) -> None:
    assert [(d.text, d.token_ids, d.finish_reason) for d in got.drafts] == [
        (d.text, d.token_ids, d.finish_reason) for d in expected.drafts
    ]
    assert [d.score for d in got.drafts] == pytest.approx([d.score for d in expected.drafts], abs=tolerance)
    assert got.usage.forward_rows == expected.usage.forward_rows


@pytest.mark.parametrize("ngram", ["none", "on the device", "on the host"])
def test_every_strategy_alone_and_together(ngram):
    scorer = {"none": None, "on the device": shipped_scorer(), "on the host": HashScorer()}[ngram]
    expected = {
        (prompt, number): tiny_engine(num_slots=5)[0].generate(prompt, variant, scorer)
        for prompt in PROMPTS[:3]
        for number, variant in enumerate(VARIANTS)
    }
    engine, _ = tiny_engine(num_slots=5, device_steps=True)
    if ngram == "on the device":
        engine.place_ngram(scorer)
    for (prompt, number), answer in expected.items():
        assert_alike(engine.generate(prompt, VARIANTS[number], scorer), answer)
    names = {f"{prompt} {number}": (prompt, number) for prompt, number in expected}
    for name, (prompt, number) in names.items():
        engine.add_request(name, prompt, VARIANTS[number], scorer)
    for name, output in run_all(engine).items():
        assert_alike(output.output, expected[names[name]])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture(architecture):
    expected = tiny_engine(architecture)[0].generate(PROMPTS[0], params(num_drafts=4))
    assert_alike(tiny_engine(architecture, device_steps=True)[0].generate(PROMPTS[0], params(num_drafts=4)), expected)


def test_a_request_that_fills_its_slot_ends_there_and_spoils_no_other():
    config = {"num_slots": 3, "max_model_len": 20}
    variants = [params(max_tokens=20 - len(PROMPTS[2]), num_drafts=2), params(max_tokens=4), params(max_tokens=9)]
    expected = [tiny_engine(**config)[0].generate("a", variant) for variant in variants]
    engine, _ = tiny_engine(**config, device_steps=True)
    for _ in range(2):
        for number, variant in enumerate(variants):
            engine.add_request(str(number), "a", variant)
        outputs = run_all(engine)
        for number, answer in enumerate(expected):
            assert_alike(outputs[str(number)].output, answer)


def test_a_step_that_fails_ends_those_in_it_and_the_engine_goes_on(monkeypatch):
    engine, _ = tiny_engine(device_steps=True)
    expected = engine.generate("abc", params())
    with monkeypatch.context() as patch:
        patch.setattr(engine._runner, "decode_at", lambda *_: (_ for _ in ()).throw(MemoryError()))
        engine.add_request("a", "abc", params())
        engine.add_request("b", "abc", params())
        outputs = run_all(engine)
        assert all(isinstance(outputs[name].error.__cause__, MemoryError) for name in "ab")
    assert_alike(engine.generate("abc", params()), expected)


def test_a_seed_gives_the_same_whoever_draws():
    """A nucleus that is too large for the device is drawn from by the host, with the same random numbers."""
    variant = params(strategy="sample", num_drafts=3, seed=3, top_p=0.999, temperature=2.0)
    expected = tiny_engine()[0].generate(PROMPTS[0], variant)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("superdraft.decoding.device_choice.NUCLEUS_SIZE", 40)
        engine, _ = tiny_engine(device_steps=True)
        given_back = []
        take_back = engine._ahead._for_host.add
        patch.setattr(engine._ahead._for_host, "add", lambda branch: (given_back.append(branch), take_back(branch)))
        assert_alike(engine.generate(PROMPTS[0], variant), expected)
    assert given_back


# Graphs


class RecordedSteps:
    """What `CudaGraphRecorder` does, with recorded operations: nothing has changed after the recording."""

    def __init__(self) -> None:
        self.num_graphs = self.num_replays = 0
        self.engine: Engine | None = None

    def __call__(self, operations: Callable[[], None]) -> Callable[[], None]:
        self.num_graphs += 1
        device = self.engine._device
        tensors = [device._rows.lines, device._rows.nodes, device._logits, *device._results.values()]
        tensors = [tensor for tensor in tensors if tensor is not None]
        before = [tensor.clone() for tensor in tensors]
        with RecordedOps() as recorded:
            operations()
        for tensor, value in zip(tensors, before, strict=True):
            tensor.copy_(value)

        def replay() -> None:
            self.num_replays += 1
            recorded.replay()

        return replay


@contextmanager
def recording(engine: Engine) -> Iterator[RecordedSteps]:
    recorder = RecordedSteps()
    recorder.engine = engine
    engine._device._graphs = StepGraphs(recorder)
    yield recorder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replayed_steps_are_the_steps_themselves(dtype):
    """What Python decided while a step was recorded must hold for every step of its shape."""
    scorer = shipped_scorer()
    plain, _ = tiny_engine(num_slots=5, device_steps=True, dtype=dtype)
    engine, _ = tiny_engine(num_slots=5, device_steps=True, dtype=dtype)
    plain.place_ngram(scorer)
    engine.place_ngram(scorer)
    with recording(engine) as recorder:
        for variant in VARIANTS:
            for prompt in PROMPTS:
                assert_alike(engine.generate(prompt, variant, scorer), plain.generate(prompt, variant, scorer))
        for one in (engine, plain):
            for number, variant in enumerate(VARIANTS):
                one.add_request(str(number), PROMPTS[number % 5], variant, scorer)
        together, expected = run_all(engine), run_all(plain)
        for name, output in together.items():
            assert_alike(output.output, expected[name].output)
        assert recorder.num_replays > 10 * recorder.num_graphs > 50
        engine.place_ngram(scorer)  # to which no older graph may lead
        again = engine.generate(PROMPTS[0], VARIANTS[0], scorer)
        assert_alike(again, plain.generate(PROMPTS[0], VARIANTS[0], scorer))


@pytest.mark.parametrize("samples_all", [True, False])
@pytest.mark.parametrize("with_ngram", [True, False])
def test_a_step_stays_on_the_device(samples_all, with_ngram):
    engine, _ = tiny_engine(num_slots=6, device_steps=True, dtype=torch.bfloat16)
    if with_ngram:
        engine.place_ngram(shipped_scorer())
        engine._device._scorer = None  # KenLM's states cannot be copied, and a step does not use them
    shape = StepShape(3, 64, 4, samples_all, samples_nucleus=True, with_ngram=with_ngram)
    engine._device._results[shape] = torch.zeros(3, 1 + 4 * shape.num_children, dtype=torch.float64)
    with fake_cuda():
        device: DeviceSteps = on_fake_cuda(engine._device)
        with torch.inference_mode(), OnlyOnDevice():
            device._step(shape)


def test_a_step_that_cannot_be_recorded_runs_as_it_is(caplog):
    def broken(_: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing")

    engine, _ = tiny_engine(device_steps=True)
    expected = engine.generate(PROMPTS[0], params())
    engine._device._graphs = StepGraphs(broken)
    assert_alike(engine.generate(PROMPTS[0], params()), expected)
    assert texts(expected)
    assert "cannot be recorded" in caplog.text
    assert len(caplog.records) == 1


def test_few_sizes_and_little_for_nothing():
    assert [rounded_up(n) for n in range(1, 14)] == [1, 2, 3, 4, 6, 6, 8, 8, 12, 12, 12, 12, 16]
    assert all(n <= rounded_up(n) <= 1.5 * n for n in range(2, 5000))
