"""The engine's distribution over continuations of a text equals the sum over all tokenisations of the text."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.cover_oracle import next_bytes
from support.fake_runner import FakeRunner, fake_engine
from support.tokenizers import merged_byte_level, sentencepiece_like

from superdraft.decoding.model.segments import Segment
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.text import covers
from superdraft.decoding.text.tokenizer import Tokenizer

MERGES = [
    (" ", "w"),
    ("o", "r"),
    (" w", "or"),
    ("l", "d"),
    (" wor", "ld"),
    ("r", "e"),
    ("re", "t"),
    ("u", "r"),
    ("ret", "ur"),
    (" ", " "),
    ("  ", "  "),
    ("\n", "  "),
    (" ", "re"),
    ("(", ")"),
    ("e", "d"),
    ("w", "o"),
]
SPLIT = merged_byte_level(MERGES, split=True)
WHOLE = merged_byte_level(MERGES, split=False)
PIECES = sentencepiece_like()
TOKENIZERS = {"byte-level, split": SPLIT, "byte-level, whole": WHOLE, "sentencepiece": PIECES}
TOLERANCE = 2e-5
"""Absolute tolerance of a probability; log-probabilities are float32."""

TEXT = st.text(st.sampled_from("worldretu  \n(é日👍ab"), min_size=1, max_size=7)


@pytest.fixture(autouse=True)
def everything_counts(monkeypatch):
    monkeypatch.setattr(covers, "MIN_STEM_SHARE", 0.0)
    monkeypatch.setattr(covers, "MIN_CHECKED_SHARE", 0.0)


def engine_next_bytes(text: str, tokenizer: Tokenizer) -> dict[int | None, float]:
    """The engine's distribution over the next byte, from the covers it chooses from."""
    engine, _, _ = fake_engine(tokenizer=tokenizer, document_start=True)
    seen: list[covers.Covers] = []
    choose = engine._pass.openings.choose_opening
    engine._pass.openings.choose_opening = lambda branch, found: (seen.append(found), choose(branch, found))
    engine.generate(text, GenerationParams(max_tokens=1, num_drafts=1, alpha=0, token_healing=True))
    (found,) = seen
    shares: dict[int | None, float] = {}
    for opening in found.openings(10_000):
        data = tokenizer.token_bytes[opening.token_id]
        rest = found.stems[opening.stem].rest
        key = data[len(rest)] if data else None
        shares[key] = shares.get(key, 0.0) + float(np.exp(opening.logprob - found.log_total))
    return shares


def oracle_next_bytes(text: str, tokenizer: Tokenizer) -> dict[int | None, float]:
    runner = FakeRunner(num_slots=1, vocab_size=tokenizer.vocab_size)
    known: dict[tuple[int, ...], list[float]] = {}

    def next_logprobs(token_ids):
        key = tuple(token_ids)
        if key not in known:
            (logits,) = runner.forward([Segment.plain(0, 0, len(key))], runner.embed(key), [len(key) - 1])
            known[key] = torch.log_softmax(logits.double(), dim=-1).tolist()
        return known[key]

    special = [i for i in tokenizer.encode(text) if not tokenizer.token_bytes[i]]
    front = special or [tokenizer.start_token_id]
    return next_bytes(text, front, tokenizer, next_logprobs, set(tokenizer.suppressed_token_ids))


@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
@settings(max_examples=25, deadline=None)
@given(text=TEXT)
@example(text=" wor")
@example(text="wor  ")
@example(text="a\n   ")
@example(text="é")
@example(text="👍")
@example(text="(")
@example(text="retu")
@example(text=" ")
@example(text="a  ")
def test_next_bytes_are_those_of_all_tokenisations_together(tokenizer, text):
    for end in range(1, len(text) + 1):
        expected = oracle_next_bytes(text[:end], tokenizer)
        got = engine_next_bytes(text[:end], tokenizer)
        assert sum(got.values()) == pytest.approx(1, abs=TOLERANCE)
        for key in expected.keys() | got.keys():
            assert got.get(key, 0.0) == pytest.approx(expected.get(key, 0.0), abs=TOLERANCE), (text[:end], key)
