"""Whether drafts on a device are those of the CPU. Runs before anything is timed.

In float32 the drafts must be the same: token ids, why they end, and scores within rounding. A choice between two
tokens may hang on the last bit of a logit, on any machine; such prompts are found on the CPU alone, as those whose
drafts change when the weights change by some millionths, and left out. In bfloat16, where rounding decides much
more, probabilities are compared along the same tokens.
"""

import copy
import itertools
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers

from superdraft.benchmarks.gpu_models import Scorer, Shape, make_engine, make_model
from superdraft.benchmarks.gpu_timing import Findings, one_thread
from superdraft.benchmarks.typing_texts import TEXTS
from superdraft.decoding.engine import Engine
from superdraft.decoding.outputs import GenerationOutput
from superdraft.decoding.params import GenerationParams

MAX_LEN = 96
MAX_TOKENS = 10
TOGETHER = 16
NUM_SLOTS = 3 * TOGETHER
SCORE_TOLERANCE = 6e-4
"""Of a draft's score, where tau is 1; the method divides logits, and their rounding, by tau."""

PERTURBATION = 4e-6
MAX_LEFT_OUT = 0.35
"""Share of prompts that may hang on rounding; more would mean that the check checks nothing."""

BFLOAT16_TOLERANCE = 0.1
"""Of a probability, along the same tokens. On a CPU the largest difference was a third of it."""

_CHECKED_SHAPES = {
    "8 heads": Shape(3, 64, 96, 8, 8, 1000, 256),
    "8 heads, 2 of keys": Shape(3, 64, 96, 8, 2, 1000, 256),
}
# Wide enough that so small a model listens to its whole prompt, narrow enough that rounding stays small over ten steps.
_WEIGHT_STD = 0.1
_END_OF_TEXT_GAIN = 2.0  # else a random model hardly ever ends a draft

CASES = {
    "greedy": GenerationParams(strategy="greedy", num_drafts=1, max_tokens=MAX_TOKENS),
    "superposed k=1": GenerationParams(num_drafts=1, candidates_per_draft=8, max_tokens=MAX_TOKENS),
    "superposed k=3": GenerationParams(num_drafts=3, max_tokens=MAX_TOKENS),
    "superposed k=8": GenerationParams(num_drafts=8, max_tokens=MAX_TOKENS),
    "superposed k=3, typed half": GenerationParams(num_drafts=3, max_tokens=MAX_TOKENS, token_healing=True),
    "distinct k=3": GenerationParams(
        num_drafts=3, selection="distinct", max_branches=3, alpha=0, tau=1, max_tokens=MAX_TOKENS
    ),
    "sample n=3": GenerationParams(num_drafts=3, strategy="sample", top_p=0.9, seed=7, max_tokens=MAX_TOKENS),
}

Prompt = str | list[int]
Draft = tuple[tuple[int, ...], str, float, tuple[float, ...]]
"""Token ids, finish reason, score, and the tokens' log-probabilities."""

Drafts = list[Draft]
"""Of one prompt, best first."""


@dataclass(frozen=True, slots=True)
class Compared:
    """How drafts of one case compare.

    Attributes:
        num_compared: prompts.
        num_equal: those with the same drafts.
        score_difference: the largest one between scores of the same drafts.
        tolerance: of it.
    """

    num_compared: int
    num_equal: int
    score_difference: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """All are equal, and there are some."""
        return self.num_equal == self.num_compared > 0 and self.score_difference <= self.tolerance


@one_thread()
def check(device: torch.device, scorer: Scorer | None, num_prompts: int) -> Findings:
    """Compare the device with the CPU in every case, alone, together and with cancelled requests in between.

    Args:
        device: what is checked.
        scorer: the n-gram model.
        num_prompts: of each case.
    """
    torch.set_float32_matmul_precision("highest")
    found = Findings()
    for name, shape in _CHECKED_SHAPES.items():
        on_cpu = _checked_model(shape)
        found.rows += _check_float32(name, on_cpu, device, scorer, num_prompts)
        found.rows.append(_check_bfloat16(name, on_cpu, device, num_prompts))
    found.passed = all(row["holds"] for row in found.rows)
    found.notes = [
        f"float32: the same token ids and finish reasons, scores within {SCORE_TOLERANCE} / tau. Left out: prompts "
        f"whose drafts change on the CPU when the weights change by {PERTURBATION:.0e}.",
        f"bfloat16: the largest difference of a probability along the same tokens is at most {BFLOAT16_TOLERANCE}, of "
        "any token when the CPU's are fed, and of the chosen ones in the engine; equal: drafts that are the CPU's in "
        "float32.",
    ]
    return found


def _checked_model(shape: Shape) -> transformers.PreTrainedModel:
    cpu = torch.device("cpu")
    model = make_model(shape, cpu, torch.float32, seed=1, weight_std=_WEIGHT_STD, end_of_text_id=0)
    with torch.no_grad():
        model.lm_head.weight[0] *= _END_OF_TEXT_GAIN
    return model


def _check_float32(
    name: str, on_cpu: transformers.PreTrainedModel, device: torch.device, scorer: Scorer | None, num_prompts: int
) -> list[dict[str, Any]]:
    reference, shaken = _engine(on_cpu), _engine(_shaken(on_cpu))
    on_device = copy.deepcopy(on_cpu).to(device)
    checked = {"host": _engine(on_device, device_steps=True)}
    if scorer is not None:
        checked["device"] = _engine(on_device, scorer, device_steps=True)
    rows = []
    for case, params in CASES.items():
        prompts = make_prompts(num_prompts, on_cpu.config.vocab_size, as_text=params.token_healing)
        expected = run_together(reference, prompts, params, scorer)
        other = run_together(shaken, prompts, params, scorer)
        firm = [i for i in range(num_prompts) if compare(expected[i : i + 1], other[i : i + 1], params).holds]
        few_left_out = num_prompts - len(firm) <= max(1, MAX_LEFT_OUT * num_prompts)
        for where, engine in checked.items():
            for way, indices, got in _ways(engine, prompts, params, scorer, firm):
                compared = compare(_picked(expected, indices), got, params)
                rows.append(
                    {
                        "model": name,
                        "dtype": "float32",
                        "case": case,
                        "n-gram": where,
                        "way": way,
                        "compared": compared.num_compared,
                        "left out": num_prompts - len(firm),
                        "equal": compared.num_equal,
                        "difference": round(compared.score_difference, 7),
                        "holds": compared.holds and few_left_out,
                    }
                )
    return rows


def _ways(
    engine: Engine, prompts: list[Prompt], params: GenerationParams, scorer: Scorer | None, firm: list[int]
) -> Iterator[tuple[str, list[int], list[Drafts]]]:
    """Ways to run the prompts of these indices: what each is called, whose drafts it gives, and the drafts."""
    some = firm[::3]  # they take longest
    alone = [engine.generate(prompts[index], _seeded(params, index), scorer) for index in some]
    yield "alone", some, [_drafts_of(output) for output in alone]
    yield "16 together", firm, _picked(run_together(engine, prompts, params, scorer), firm)
    yield "with cancelled ones", firm, _picked(run_together(engine, prompts, params, scorer, cancels=True), firm)


def _check_bfloat16(
    name: str, on_cpu: transformers.PreTrainedModel, device: torch.device, num_prompts: int
) -> dict[str, Any]:
    rounded = copy.deepcopy(on_cpu).to(torch.bfloat16)
    reference = _engine(copy.deepcopy(rounded).float())
    checked = _engine(rounded.to(device), device_steps=True)
    prompts = make_prompts(num_prompts, on_cpu.config.vocab_size, as_text=False)
    greedy = CASES["greedy"]
    expected = run_together(reference, prompts, greedy, None)
    got = run_together(checked, prompts, greedy, None)
    forced = [
        float((_along(reference, prompt, drafts[0][0]) - _along(checked, prompt, drafts[0][0])).abs().max())
        for prompt, drafts in zip(prompts, expected, strict=True)
        if drafts[0][0]
    ]
    chosen = [_chosen_difference(one[0], two[0]) for one, two in zip(expected, got, strict=True)]
    difference = max(forced + chosen)
    return {
        "model": name,
        "dtype": "bfloat16",
        "case": "greedy",
        "n-gram": "none",
        "way": "along the same tokens",
        "compared": num_prompts,
        "left out": 0,
        "equal": sum(_same(one, two) for one, two in zip(expected, got, strict=True)),
        "difference": round(difference, 5),
        "holds": difference <= BFLOAT16_TOLERANCE,
    }


def make_prompts(count: int, vocab_size: int, *, as_text: bool) -> list[Prompt]:
    """Prompts of 1 to 40 tokens, or beginnings of texts that mostly end inside a word; always the same ones."""
    chance = random.Random(5)  # noqa: S311 (not for secrets)
    if as_text:
        return [TEXTS[i % len(TEXTS)][: chance.randint(3, 60)] for i in range(count)]
    return [[chance.randrange(1, vocab_size) for _ in range(chance.randint(1, 40))] for _ in range(count)]


def run_together(
    engine: Engine, prompts: Sequence[Prompt], params: GenerationParams, scorer: Scorer | None, *, cancels: bool = False
) -> list[Drafts]:
    """Drafts of every prompt, `TOGETHER` of them in the engine at a time.

    Args:
        engine: with nothing unfinished.
        prompts: one a request.
        params: of all of them, each with a seed of its own.
        scorer: the n-gram model.
        cancels: after every third prompt one that is cancelled two steps later, so that slots change hands.
    """
    waiting = list(enumerate(prompts))[::-1]
    doomed: dict[str, int] = {}
    drafts: dict[str, Drafts] = {}
    step = num_running = 0
    while waiting or num_running:
        while waiting and num_running < TOGETHER:
            index, prompt = waiting.pop()
            if cancels and index % 3 == 0:
                engine.add_request(f"doomed {index}", prompt, _seeded(params, index + 1000), scorer)
                doomed[f"doomed {index}"] = step + 2
            engine.add_request(str(index), prompt, _seeded(params, index), scorer)
            num_running += 1
        for output in engine.step():
            if output.error is not None:
                raise output.error
            if output.output is not None and output.request_id not in doomed:
                drafts[output.request_id] = _drafts_of(output.output)
                num_running -= 1
        step += 1
        for request_id in [name for name, due in doomed.items() if due <= step]:
            engine.cancel(request_id)
            del doomed[request_id]
    for request_id in doomed:
        engine.cancel(request_id)
    return [drafts[str(index)] for index in range(len(prompts))]


def compare(expected: Sequence[Drafts], got: Sequence[Drafts], params: GenerationParams) -> Compared:
    """Count the prompts whose drafts are the same, and how far scores of the same drafts are apart."""
    equal = [(one, two) for one, two in zip(expected, got, strict=True) if _same(one, two)]
    differences = [abs(a[2] - b[2]) for one, two in equal for a, b in zip(one, two, strict=True)]
    tau = params.tau if params.strategy == "superposed" else 1.0
    return Compared(len(expected), len(equal), max(differences, default=0.0), SCORE_TOLERANCE / tau)


def _same(one: Drafts, two: Drafts) -> bool:
    return [draft[:2] for draft in one] == [draft[:2] for draft in two]


def _drafts_of(output: GenerationOutput) -> Drafts:
    return [(draft.token_ids, draft.finish_reason, draft.score, draft.token_logprobs) for draft in output.drafts]


def _picked(drafts: list[Drafts], indices: Iterable[int]) -> list[Drafts]:
    return [drafts[index] for index in indices]


def _seeded(params: GenerationParams, index: int) -> GenerationParams:
    return params if params.seed is None else replace(params, seed=params.seed + index)


def _shaken(model: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    shaken = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in shaken.parameters():
            weight.mul_(1 + PERTURBATION * torch.randn(weight.shape, generator=generator))
    return shaken


def _engine(model: transformers.PreTrainedModel, scorer: Scorer | None = None, *, device_steps: bool = False) -> Engine:
    return make_engine(
        model,
        scorer,
        device_steps=device_steps,
        max_model_len=MAX_LEN,
        num_slots=NUM_SLOTS,
        kv_memory_bytes=64 * 1024**2,
        max_prefill_tokens=64,
    )


def _chosen_difference(one: Draft, two: Draft) -> float:
    """The largest difference of a token's probability as long as both drafts have the same tokens."""
    common = itertools.takewhile(lambda pair: pair[0][0] == pair[1][0], zip(_tokens(one), _tokens(two), strict=False))
    return max((abs(math.exp(a[1]) - math.exp(b[1])) for a, b in common), default=0.0)


def _tokens(draft: Draft) -> list[tuple[int, float]]:
    return list(zip(draft[0], draft[3], strict=True))


@torch.inference_mode()
def _along(engine: Engine, prompt: Prompt, token_ids: Sequence[int]) -> torch.Tensor:
    """Probabilities after the prompt and after each of these tokens but the last, shape [T, V], float32, on the CPU."""
    runner = engine._runner
    assert isinstance(prompt, list)
    logits = [runner.prefill([0], [prompt], [0])]
    for number, token_id in enumerate(token_ids[:-1]):
        logits.append(runner.decode(runner.embed([token_id]), [len(prompt) + number]))
    return torch.softmax(torch.cat(logits).float(), dim=-1).cpu()
