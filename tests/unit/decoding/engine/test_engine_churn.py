"""The engine under random load, on a fake model: one answer per request, no lost slot, no mixed-up drafts."""

import gc
import random
from collections import Counter

import pytest
from support.decoding import HashScorer, run_all
from support.fake_runner import fake_engine
from support.requests import run_together, some_request

from superdraft.decoding.engine.sequence import Branch
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.request import EngineRequest


@pytest.mark.parametrize("num_slots", [1, 3, 40])
def test_every_request_is_answered_once_and_as_if_alone(num_slots):
    """With few slots, trees are cut and copied; with many, most requests find their beginning in a warm one."""
    rng = random.Random(num_slots)
    requests = {str(i): some_request(rng) for i in range(150)}
    engine, _, _ = fake_engine(num_slots=num_slots, max_model_len=96, max_prefill_tokens=7)
    together = run_together(engine, requests, rng)
    assert sorted(together) == sorted(requests)
    for name, (prompt, params) in requests.items():
        alone = fake_engine(num_slots=1, max_model_len=96)[0].generate(prompt, params, HashScorer())
        assert [(d.text, d.token_ids, d.finish_reason) for d in together[name].drafts] == [
            (d.text, d.token_ids, d.finish_reason) for d in alone.drafts
        ]
        assert together[name].usage.forward_rows == alone.usage.forward_rows


def test_ten_thousand_requests_with_cancellations_replacements_and_deadlines():
    rng = random.Random(7)
    engine, _, clock = fake_engine(num_slots=6, max_model_len=96)
    greedy = "Thank you for the email", GenerationParams(strategy="greedy", num_drafts=1, max_tokens=20)
    before = engine.generate(*greedy).drafts
    open_requests: dict[str, str | None] = {}
    ends: Counter[str] = Counter()
    accepted = 0
    number = 0
    while number < 10_000 or engine.has_unfinished:
        clock.now_s += 0.01
        for _ in range(rng.randint(0, 6) if number < 10_000 else 0):
            number += 1
            prompt, params = some_request(rng)
            session = f"s{rng.randrange(12)}" if rng.random() < 0.7 else None
            limit_s = rng.choice([None, None, 0.03, 0.2])
            deadline_s = None if limit_s is None else clock.now_s + limit_s
            older = next((name for name, own in open_requests.items() if own == session is not None), None)
            if older is not None:
                assert engine.cancel(older)
                del open_requests[older]
                ends["superseded"] += 1
            engine.add_request(EngineRequest(str(number), prompt, params, HashScorer(), deadline_s=deadline_s))
            open_requests[str(number)] = session
            accepted += 1
        if open_requests and rng.random() < 0.4:
            victim = rng.choice(list(open_requests))
            assert engine.cancel(victim)  # there is no further output
            del open_requests[victim]
            ends["cancelled"] += 1
        for output in engine.step():
            if not output.is_terminal:
                assert output.request_id in open_requests
                continue
            del open_requests[output.request_id]  # raises if it was answered before
            assert output.error is None, output.error.__cause__
            ends["cut short" if output.output.warnings else "answered"] += 1
    assert not open_requests
    assert engine.num_used_slots == 0
    assert sum(ends.values()) == accepted >= 10_000
    assert min(ends[kind] for kind in ("cancelled", "superseded", "answered", "cut short")) > 100
    assert run_all(engine) == {}
    assert engine.generate(*greedy).drafts == before


def test_an_idle_engine_keeps_nothing_of_finished_requests():
    def branches() -> list[Branch]:
        gc.collect()
        return [one for one in gc.get_objects() if type(one) is Branch]

    num_before = len(branches())
    engine, _, _ = fake_engine()
    params = GenerationParams(max_tokens=30, num_drafts=3, alpha=0, tau=0.5)
    engine.add_request(EngineRequest("cancelled", "a secret", params))
    for _ in range(4):
        engine.step()
    assert len(branches()) == num_before + 1
    engine.cancel("cancelled")
    assert len(branches()) == num_before
    assert engine.generate("thank you", params).drafts
    assert len(branches()) == num_before
