"""Requests of all kinds in one batch: the same drafts as alone, and faults that end one request only."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from support.decoding import HashScorer, counted_rows, run_all, tiny_engine

from superdraft.decoding.engine.engine import Engine
from superdraft.decoding.errors import InvalidRequestError, SequenceFailedError
from superdraft.decoding.outputs import GenerationOutput, StepOutput
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.request import EngineRequest

PROMPTS = [
    "Thank you for your",
    "The quick brown",
    "Please find",
    "We're meeting at noon, aren't",
    "def add(a, b):\n    ret",
]
LIMITS = {
    "max_num_drafts": 8,
    "max_candidates_per_draft": 1000,
    "num_slots": 24,
    "kv_memory_bytes": 2_000_000,
    "max_prefill_tokens": 1000,
}


class OtherScorer(HashScorer):
    """Another n-gram model than `HashScorer`, so that two requests of one shape have different scores."""

    def score(self, states: Sequence[int], candidates: Sequence[Sequence[int]]) -> list[list[float]]:
        return [
            [-0.1 - (state * 13 + x * 7) % 19 / 3 for x in row] for state, row in zip(states, candidates, strict=True)
        ]


def params(**options: object) -> GenerationParams:
    return GenerationParams(**({"max_tokens": 7, "tau": 0.5, "alpha": 0.0} | options))


BIAS = ((65, 30.0), (66, 29.0), (67, 28.5), (70, -100.0))
OTHER_BIAS = ((90, 30.0), (91, 29.5), (65, -100.0))
NGRAMS = {"num_drafts": 2, "candidates_per_draft": 5}
PENALTIES = {"logit_bias": BIAS, "frequency_penalty": 1.5}
SAMPLED = {"strategy": "sample", "num_drafts": 2, "seed": 3}
# Neighbours have equal k and m, so that they are scored in one array operation, and differ in everything else.
VARIANTS: list[tuple[GenerationParams, HashScorer | None]] = [
    (params(**NGRAMS, alpha=0.3), HashScorer()),
    (params(**NGRAMS, alpha=0.8, tau=1.5, penalty=3.0), OtherScorer()),
    (params(**NGRAMS, alpha=0.5, logit_bias=OTHER_BIAS), HashScorer()),
    (params(**NGRAMS, alpha=0.5, presence_penalty=2.0), OtherScorer()),
    (params(**NGRAMS, alpha=0.5, **PENALTIES), HashScorer()),
    (params(num_drafts=3), None),
    (params(num_drafts=3, tau=2.0, logit_bias=BIAS), None),
    (params(num_drafts=3, **PENALTIES), None),
    (params(num_drafts=3, logit_bias=OTHER_BIAS, frequency_penalty=-1.0, presence_penalty=0.5), None),
    (params(num_drafts=4, candidates_per_draft=1000), None),  # more than there are tokens
    (params(num_drafts=1, candidates_per_draft=1), None),
    (params(num_drafts=3, selection="distinct", max_branches=2, tau=1.0), None),
    (params(strategy="greedy", num_drafts=1, logit_bias=OTHER_BIAS), None),
    (params(**SAMPLED), None),
    (params(**SAMPLED, temperature=0.5, top_p=0.8, **PENALTIES), None),
    (
        params(strategy="sample+superposed", num_branches=2, num_drafts=2, seed=4, alpha=0.4, temperature=1.5),
        HashScorer(),
    ),
]


def answers_alone(variants: Sequence[tuple[GenerationParams, HashScorer | None]]) -> list[GenerationOutput]:
    """Each request on a new engine."""
    return [tiny_engine(**LIMITS)[0].generate(PROMPTS[i % 5], *variant) for i, variant in enumerate(variants)]


def assert_alike(got: GenerationOutput, expected: GenerationOutput) -> None:
    assert [draft.token_ids for draft in got.drafts] == [draft.token_ids for draft in expected.drafts]
    for ours, theirs in zip(got.drafts, expected.drafts, strict=True):
        assert ours.score == pytest.approx(theirs.score, abs=1e-3)
        assert ours.token_logprobs == pytest.approx(theirs.token_logprobs, abs=1e-3)


def test_every_kind_of_request_in_one_batch_gives_the_drafts_that_it_gives_alone(monkeypatch):
    alone = answers_alone(VARIANTS)
    assert len({tuple(draft.token_ids for draft in output.drafts) for output in alone}) == len(alone)
    engine, model = tiny_engine(**LIMITS)
    monkeypatch.setattr(engine.load, "chunk_tokens", lambda most: most)  # all prompts in one forward
    for warm in (False, True):  # in the second round the prompts are known, so no token of them is run
        num_tokens = engine.num_prefilled_tokens
        for number, (wanted, scorer) in enumerate(VARIANTS):
            engine.add_request(EngineRequest(str(number), PROMPTS[number % 5], wanted, scorer))
        outputs = engine.step()
        assert (engine.num_prefilled_tokens == num_tokens) is warm
        with counted_rows(model) as shapes:
            outputs += engine.step()
            if not warm:  # drafts on rows of their own would be known, too
                assert engine.last_step.num_rows == 20  # all branches of all requests
                assert shapes == [(16, 2)]  # in a slot per request
        together = {output.request_id: output for output in outputs} | run_all(engine)
        for number, expected in enumerate(alone):
            assert_alike(together[str(number)].output, expected)
            assert (together[str(number)].output.usage.cached_tokens > 0) is warm


class BrokenScorer(HashScorer):
    """A scorer that breaks after some calls of `score`: its scores are changed, or it cannot advance its state."""

    def __init__(self, num_good_calls: int, change: Callable[[list[list[float]]], object] | None) -> None:
        self._num_left = num_good_calls
        self._change = change

    def score(self, states: Sequence[int], candidates: Sequence[Sequence[int]]) -> list[list[float]]:
        self._num_left -= 1
        scores = super().score(states, candidates)
        return self._change(scores) if self._change is not None and self._num_left < 0 else scores

    def advance(self, state: int, token_id: int) -> int:
        if self._change is None and self._num_left < 0:
            raise KeyError(token_id)
        return token_id


FAULTS: dict[str, Callable[[list[list[float]]], object] | None] = {
    "raises": lambda scores: scores[99],
    "cannot advance": None,
    "a score is missing": lambda scores: [*scores[:-1], scores[-1][:-1]],
    "a draft is missing": lambda scores: scores[:-1],
    "one score for all candidates": lambda scores: [row[:1] for row in scores],
    "NaN": lambda scores: [[math.nan] * len(row) for row in scores],
    "infinite": lambda scores: [[math.inf] * len(row) for row in scores],
    "text": lambda scores: [["x"] * len(row) for row in scores],
    "None": lambda scores: None,
}


@pytest.mark.parametrize(
    ("num_good_calls", "token_healing"),
    [(0, False), (0, True), (2, False)],
    ids=["first tokens", "first tokens of a healed prompt", "third decode step"],
)
@pytest.mark.parametrize("change", FAULTS.values(), ids=FAULTS)
def test_a_faulty_scorer_ends_its_own_request_among_others_of_the_same_shape(change, num_good_calls, token_healing):
    variants = VARIANTS[:4]
    alone = answers_alone(variants)
    engine, _ = tiny_engine(**LIMITS)
    broken = params(**NGRAMS, alpha=0.5, token_healing=token_healing)
    engine.add_request(EngineRequest("broken", PROMPTS[0], broken, BrokenScorer(num_good_calls, change)))
    for number, (wanted, own) in enumerate(variants):
        engine.add_request(EngineRequest(str(number), PROMPTS[number], wanted, own))
    outputs = run_all(engine)
    assert isinstance(outputs.pop("broken").error, SequenceFailedError)
    for number, expected in enumerate(alone):
        assert_alike(outputs[str(number)].output, expected)


def run_poisoned(engine: Engine, at: int, row: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, StepOutput]:
    """Answer all variants; the forward with this number gives NaN in this row, if there is one."""
    forward, num_rows = engine._runner.forward, []
    monkeypatch.setattr(engine.load, "chunk_tokens", lambda most: most)  # all prompts in one forward

    def poisoned(*args: object) -> torch.Tensor:
        logits = forward(*args)
        if len(num_rows) == at:
            with torch.inference_mode():
                logits[row : row + 1] = math.nan
        num_rows.append(len(logits))
        return logits

    monkeypatch.setattr(engine._runner, "forward", poisoned)
    for number, (wanted, scorer) in enumerate(VARIANTS):
        engine.add_request(EngineRequest(str(number), PROMPTS[number % 5], wanted, scorer))
    outputs = run_all(engine)
    assert num_rows[at] == (16, 20)[at]
    return outputs


@pytest.mark.parametrize("row", range(0, 20, 3))
@pytest.mark.parametrize("at", [0, 1], ids=["prompts", "drafts"])
def test_a_row_of_nan_ends_its_own_request_whatever_its_neighbours_are(at, row, monkeypatch):
    alone = answers_alone(VARIANTS)
    engine, _ = tiny_engine(**LIMITS)
    failed = 0
    for number, output in run_poisoned(engine, at, row, monkeypatch).items():
        if output.error is not None:
            assert "not numbers" in str(output.error)
            failed += 1
        else:
            assert_alike(output.output, alone[int(number)])
    assert failed == (row < 16 or at == 1)


@pytest.mark.parametrize(
    "options",
    [
        {"num_drafts": 2},
        {"strategy": "greedy", "num_drafts": 1},
        {"strategy": "sample", "num_drafts": 2},
        {"selection": "distinct", "num_drafts": 2},
        {"num_drafts": 2, "token_healing": True},
        {"strategy": "sample", "num_drafts": 2, "token_healing": True},
    ],
)
def test_a_bias_that_forbids_every_token_is_the_requests_own_fault(options):
    engine, _ = tiny_engine(**LIMITS)
    engine.tokenizer.eos_token_ids = frozenset({0})
    bias = tuple((token_id, -100.0) for token_id in range(300))
    for number, (wanted, scorer) in enumerate(VARIANTS[:2]):
        engine.add_request(EngineRequest(str(number), PROMPTS[number], wanted, scorer))
    engine.add_request(EngineRequest("forbidden", PROMPTS[2], params(logit_bias=bias, **options)))
    outputs = run_all(engine)
    error = outputs.pop("forbidden").error
    assert isinstance(error, InvalidRequestError)
    assert error.param == "logit_bias"
    assert "forbids every token" in str(error)
    for number, expected in enumerate(answers_alone(VARIANTS[:2])):
        assert_alike(outputs[str(number)].output, expected)


def test_a_bias_that_leaves_one_token_gives_a_draft_of_it():
    engine, _ = tiny_engine(**LIMITS)
    bias = tuple((token_id, -100.0) for token_id in range(300) if token_id != 65)
    for scorer in (None, HashScorer()):
        output = engine.generate(PROMPTS[0], params(num_drafts=3, alpha=0.5, logit_bias=bias), scorer)
        assert [draft.token_ids for draft in output.drafts] == [(65,) * 7]
