"""A typist's key presses on warm trees: the same drafts as on an engine that remembers nothing."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.decoding import tiny_engine

from superdraft.decoding.engine.engine import Engine
from superdraft.decoding.outputs import GenerationOutput
from superdraft.decoding.params import GenerationParams

WORDS = ["thank", "you", "for", "the", "email", "meeting", "noon", "café", "report", "attached", "numbers", "def add("]
PASTED = "Please find the report attached; the numbers for 2024 are on page 3."
ARCHITECTURES = ["llama", "gpt2", "gemma3_text", "mistral"]
MAX_CHARACTERS = 120


@pytest.fixture(scope="module", params=ARCHITECTURES)
def engines(request) -> tuple[Engine, Engine]:
    return tuple(tiny_engine(request.param, num_slots=2, max_model_len=128)[0] for _ in range(2))


def params(**options: object) -> GenerationParams:
    return GenerationParams(num_drafts=3, max_tokens=5, tau=1.0, alpha=0.0, token_healing=True, **options)


KINDS = {
    "a row per draft": params(selection="distinct", max_branches=3),
    "ends early": params(selection="distinct", max_branches=3, min_probability=0.2),
    "two rows": params(selection="distinct", max_branches=2),
    "paper": params(),
    "samples": params(strategy="sample", seed=1),
}


def next_text(rng: random.Random, text: str, answer: GenerationOutput | None) -> str:
    """The text after one more action: typing, deleting, accepting a draft or a part of one, pasting, going back."""
    action = rng.random()
    if action < 0.35 or not text:
        text += rng.choice([" ", ""]) + rng.choice(WORDS)[: rng.randint(1, 9)]
    elif action < 0.55:
        text = text[: -rng.randint(1, 5)]
    elif action < 0.85 and answer is not None and answer.drafts:
        accepted = rng.choice(answer.drafts).text.replace("\ufffd", "")
        text += accepted[: rng.choice([len(accepted), rng.randint(0, len(accepted))])]
    elif action < 0.92:
        text += PASTED[: rng.randint(5, len(PASTED))]
    else:
        text = rng.choice(WORDS) + text[rng.randint(0, 20) :]
    return text[-MAX_CHARACTERS:] or "a"


@pytest.mark.parametrize("kind", KINDS)
@settings(
    max_examples=4, deadline=None, derandomize=True
)  # two tokens may be as probable as each other, except for rounding
@given(seed=st.integers(0, 10**9))
def test_every_key_press_gives_the_drafts_of_a_cold_run(engines, kind, seed):
    warm, cold = engines
    warm.forget_prompts()
    rng, text, answer = random.Random(seed), "", None
    num_run, num_run_cold = warm.num_prefilled_tokens, cold.num_prefilled_tokens
    for _ in range(10):
        text = next_text(rng, text, answer)
        cold.forget_prompts()
        expected = cold.generate(text, KINDS[kind])
        assert expected.usage.cached_tokens == 0
        answer = warm.generate(text, KINDS[kind])
        assert [draft.token_ids for draft in answer.drafts] == [draft.token_ids for draft in expected.drafts], text
        assert [draft.text for draft in answer.drafts] == [draft.text for draft in expected.drafts]
        for got, wanted in zip(answer.drafts, expected.drafts, strict=True):
            assert list(got.token_logprobs) == pytest.approx(list(wanted.token_logprobs), abs=2e-3)
        assert answer.usage.forward_rows <= expected.usage.forward_rows
    assert warm.num_prefilled_tokens - num_run < cold.num_prefilled_tokens - num_run_cold
