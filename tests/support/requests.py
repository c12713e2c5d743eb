"""Random requests of all kinds, and a function that runs them together on one engine."""

import random

from support.decoding import HashScorer

from superdraft.decoding.engine.engine import Engine
from superdraft.decoding.outputs import GenerationOutput
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.request import EngineRequest

WORDS = [
    "thank",
    "you",
    "for",
    "the",
    "email",
    "I",
    "will",
    "be",
    "back",
    "soon",
    "with",
    "more",
    "of",
    "it",
    "naïve",
    "café",
    "日本",
]


def some_request(rng: random.Random) -> tuple[str, GenerationParams]:
    strategy = rng.choice(["superposed"] * 3 + ["sample", "greedy", "sample+superposed"])
    prompt = " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 8)))[: rng.randint(1, 60)]
    distinct = strategy == "superposed" and rng.random() < 0.5
    params = GenerationParams(
        strategy=strategy,
        selection="distinct" if distinct else "paper",
        max_branches=rng.randint(1, 4) if distinct else 1,
        min_probability=rng.choice([0.0, 0.001, 0.5]) if distinct else 0.0,
        whole_best=rng.random() < 0.5,
        num_drafts=rng.randint(1, 3),
        num_branches=rng.randint(1, 3) if strategy.startswith("sample") else None,
        max_tokens=rng.randint(0, 8),
        tau=0.5,
        alpha=rng.choice([0.0, 0.4]),
        seed=rng.randint(0, 9),
        reset_every=rng.choice([None, 2]) if strategy == "superposed" and not distinct else None,
        token_healing=rng.random() < 0.5,
        single_line=rng.random() < 0.2,
        trim=rng.choice(["none", "word", "sentence"]),
        snapshots=rng.random() < 0.3,
        frequency_penalty=rng.choice([0.0, 1.0]),
        logit_bias=rng.choice([(), ((65, 5.0), (66, -100.0))]),
    )
    return prompt, params


def run_together(
    engine: Engine, requests: dict[str, tuple[str, GenerationParams]], rng: random.Random
) -> dict[str, GenerationOutput]:
    """Add the requests a few at a time; return their answers. Fails if one is answered twice or a slot leaks."""
    waiting, answers = list(requests), {}
    while waiting or engine.has_unfinished:
        for _ in range(rng.randint(0, 2)):
            if waiting:
                name = waiting.pop()
                engine.add_request(EngineRequest(name, *requests[name], HashScorer()))
        for output in engine.step():
            if output.is_terminal:
                assert output.request_id not in answers
                answers[output.request_id] = output.output
    assert engine.num_used_slots == 0
    return answers
