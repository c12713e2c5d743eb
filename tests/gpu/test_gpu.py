"""Drafts on a GPU equal those on the CPU.

Without a GPU, the CPU cases still run, so that the checks themselves stay tested.

In float32 the drafts must be equal. On any machine, a choice between two tokens may depend on the last bit of a logit,
so prompts are left out if their drafts on the CPU change when the weights change by a few millionths. In bfloat16,
where rounding matters much more, probabilities are compared along the same tokens.
"""

import copy
import random
from dataclasses import replace

import pytest
import torch
from support.decoding import HashScorer
from support.models import VOCAB_SIZE, tiny_model, tiny_tokenizer
from transformers import PreTrainedModel

from superdraft.decoding.config import EngineConfig
from superdraft.decoding.engine.engine import Engine
from superdraft.decoding.model.torch_runner import TorchRunner
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.request import EngineRequest
from superdraft.decoding.text.tokenizer import Tokenizer

NUM_PROMPTS = 12
PERTURBATION = 4e-6
SCORE_TOLERANCE = 6e-4  # for tau 1; the method divides logits, and their rounding errors, by tau
BFLOAT16_TOLERANCE = 0.1  # absolute, of a probability

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_gpu)]
CASES = {
    "greedy": GenerationParams(strategy="greedy", num_drafts=1, max_tokens=10),
    "superposed k=3": GenerationParams(num_drafts=3, max_tokens=10),
    "superposed k=8": GenerationParams(num_drafts=8, max_tokens=10),
    "distinct k=3": GenerationParams(num_drafts=3, selection="distinct", max_branches=3, alpha=0, tau=1, max_tokens=10),
    "sample n=3": GenerationParams(num_drafts=3, strategy="sample", top_p=0.9, seed=7, max_tokens=10),
}

Drafts = list[tuple[tuple[int, ...], str, float]]
"""Token ids, finish reason and score of each draft of one prompt, best first."""


@pytest.fixture(autouse=True)
def _exact_products():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def engine_over(model: PreTrainedModel) -> Engine:
    runner = TorchRunner(model, 96, 64 * 1024**2, num_slots=24)
    return Engine(runner, Tokenizer(tiny_tokenizer(), VOCAB_SIZE), EngineConfig(max_prefill_tokens=64))


def make_prompts(count: int) -> list[list[int]]:
    rng = random.Random(3)
    return [[rng.randrange(3, VOCAB_SIZE) for _ in range(rng.randint(1, 40))] for _ in range(count)]


def drafts_of(engine: Engine, prompts: list[list[int]], params: GenerationParams, *, cancels: bool = False):
    """Drafts of all prompts, eight at a time; `cancels` adds requests that are cancelled, so that slots are reused."""
    waiting, found, num_running, doomed = list(enumerate(prompts))[::-1], {}, 0, []
    while waiting or num_running:
        while waiting and num_running < 8:
            index, prompt = waiting.pop()
            seeded = params if params.seed is None else replace(params, seed=params.seed + index)
            if cancels and index % 3 == 0:
                doomed.append(f"doomed {index}")
                engine.add_request(EngineRequest(doomed[-1], prompt, seeded, HashScorer()))
            engine.add_request(EngineRequest(str(index), prompt, seeded, HashScorer()))
            num_running += 1
        for _ in range(2):
            for output in engine.step():
                assert output.error is None
                if not output.request_id.startswith("doomed"):
                    found[output.request_id] = [(d.token_ids, d.finish_reason, d.score) for d in output.output.drafts]
                    num_running -= 1
        while doomed:
            engine.cancel(doomed.pop())
    return [found[str(index)] for index in range(len(prompts))]


def same(one: Drafts, two: Drafts) -> bool:
    return [draft[:2] for draft in one] == [draft[:2] for draft in two]


def perturbed(model: PreTrainedModel) -> PreTrainedModel:
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(1 + PERTURBATION * torch.randn(weight.shape, generator=generator))
    return other


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2"])
def test_drafts_equal_those_of_the_cpu(architecture, device):
    on_cpu = tiny_model(architecture)
    reference, other = engine_over(on_cpu), engine_over(perturbed(on_cpu))
    checked = engine_over(copy.deepcopy(on_cpu).to(device))
    prompts = make_prompts(NUM_PROMPTS)
    for params in CASES.values():
        expected, changed = drafts_of(reference, prompts, params), drafts_of(other, prompts, params)
        stable = [index for index in range(NUM_PROMPTS) if same(expected[index], changed[index])]
        assert len(stable) >= NUM_PROMPTS / 2  # otherwise the test checks little
        for cancels in (False, True):
            got = drafts_of(checked, prompts, params, cancels=cancels)
            for index in stable:
                assert same(got[index], expected[index])
                for ours, theirs in zip(got[index], expected[index], strict=True):
                    assert ours[2] == pytest.approx(theirs[2], abs=SCORE_TOLERANCE / min(params.tau, 1.0))


def probabilities(engine: Engine, prompt: list[int], token_ids: tuple[int, ...]) -> torch.Tensor:
    """Probabilities after the prompt and after each of these tokens except the last, shape [T, V]."""
    runner = engine._runner
    logits = [runner.prefill([0], [prompt], [0])]
    for number, token_id in enumerate(token_ids[:-1]):
        logits.append(runner.decode(runner.embed([token_id]), [len(prompt) + number]))
    return torch.softmax(torch.cat(logits).float(), dim=-1).cpu()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_bfloat16_is_close_along_the_same_tokens(architecture, device):
    rounded = tiny_model(architecture).to(torch.bfloat16)
    reference = engine_over(copy.deepcopy(rounded).float())
    checked = engine_over(rounded.to(device))
    for prompt in make_prompts(NUM_PROMPTS):
        (draft,) = reference.generate(prompt, CASES["greedy"]).drafts
        if draft.token_ids:
            got = probabilities(checked, prompt, draft.token_ids)
            expected = probabilities(reference, prompt, draft.token_ids)
            assert float((got - expected).abs().max()) < BFLOAT16_TOLERANCE
