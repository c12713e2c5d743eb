"""The engine over cells that are llama.cpp's sequences: the drafts are those of a plain table of cells."""

import random

import pytest
from support.decoding import HashScorer
from support.fake_runner import fake_engine
from support.models import VOCAB_SIZE, tiny_tokenizer
from support.requests import run_together, some_request
from support.sequences import SequencedRunner

from superdraft.decoding.config import EngineConfig
from superdraft.decoding.engine.engine import Engine
from superdraft.decoding.request import EngineRequest
from superdraft.decoding.text.tokenizer import Tokenizer


def engine_over_sequences(num_slots: int, num_sequences: int) -> tuple[Engine, SequencedRunner]:
    tokenizer = Tokenizer(tiny_tokenizer(), VOCAB_SIZE)
    runner = SequencedRunner(num_slots, 96, tokenizer.vocab_size, num_sequences)
    return Engine(runner, tokenizer, EngineConfig(document_start=False, max_prefill_tokens=7)), runner


@pytest.mark.parametrize(("num_slots", "num_sequences", "is_full"), [(3, 256, False), (3, 8, True), (12, 20, True)])
def test_every_request_is_answered_as_with_a_table_of_cells(num_slots, num_sequences, is_full):
    rng = random.Random(num_slots)
    requests = {str(i): some_request(rng) for i in range(150)}
    engine, runner = engine_over_sequences(num_slots, num_sequences)
    together = run_together(engine, requests, rng)
    assert sorted(together) == sorted(requests)
    assert (runner.memory.num_saved > 0) == is_full
    for name, (prompt, params) in requests.items():
        alone = fake_engine(num_slots=1, max_model_len=96)[0].generate(prompt, params, HashScorer())
        assert [draft.token_ids for draft in together[name].drafts] == [draft.token_ids for draft in alone.drafts]
        assert together[name].usage.forward_rows == alone.usage.forward_rows


def test_a_thousand_requests_with_cancellations_fail_nowhere():
    rng = random.Random(3)
    engine, runner = engine_over_sequences(4, 12)
    running: list[str] = []
    for number in range(1000):
        prompt, params = some_request(rng)
        engine.add_request(EngineRequest(str(number), prompt, params, HashScorer()))
        running.append(str(number))
        if rng.random() < 0.7:
            engine.cancel(rng.choice(running))
        for output in engine.step():
            assert output.error is None
    while engine.has_unfinished:
        engine.step()
    assert engine.num_used_slots == 0
    for slot in range(4):
        runner.cache.clear(slot)
    assert runner.memory.held == [{}] * 12
