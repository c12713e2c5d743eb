"""Steps that start before the host has seen the one before: the same answers, whatever happens in between."""

import gc
import random
import weakref
from dataclasses import replace

import pytest
import torch
from support.decoding import HashScorer, run_all
from support.fake_runner import fake_engine
from support.requests import device_request, run_together, some_request

from superdraft.decoding.device_rows import RowKind
from superdraft.decoding.engine import Engine
from superdraft.decoding.outputs import GenerationOutput
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.run_ahead import RunAhead


def shown(output: GenerationOutput) -> list[tuple]:
    return [(draft.text, draft.token_ids, draft.finish_reason) for draft in output.drafts]


@pytest.mark.parametrize("make_request", [some_request, device_request])
def test_every_request_is_answered_as_the_host_does_it_alone(make_request):
    rng = random.Random(1)
    requests = {str(i): make_request(rng) for i in range(200)}
    engine, _, _ = fake_engine(num_slots=6, max_model_len=96, max_prefill_tokens=7, device_steps=True)
    answers = run_together(engine, requests, rng)
    assert sorted(answers) == sorted(requests)
    for name, (prompt, params) in requests.items():
        alone = fake_engine(num_slots=5, max_model_len=96)[0].generate(prompt, params, HashScorer())
        assert shown(answers[name]) == shown(alone)
        assert answers[name].usage.forward_rows == alone.usage.forward_rows
        assert [d.score for d in answers[name].drafts] == pytest.approx([d.score for d in alone.drafts], abs=1e-6)


def test_a_step_is_under_way_before_the_one_before_it_is_read(monkeypatch):
    engine, runner, _ = fake_engine(device_steps=True)
    events: list[str] = []
    launch, follow = engine._device.launch, engine._ahead._follow

    def noted_launch(*args):
        events.append("start")
        return launch(*args)

    def noted_follow(*args):
        events.append("read")
        return follow(*args)

    monkeypatch.setattr(engine._device, "launch", noted_launch)
    monkeypatch.setattr(engine._ahead, "_follow", noted_follow)
    engine.generate("thank you", GenerationParams(max_tokens=6, num_drafts=3, alpha=0, tau=0.5))
    # Five steps after the prompt's; none is started that nobody wants.
    assert events == ["start", "start", "read", "start", "read", "start", "read", "start", "read", "read"]
    assert len(runner.decoded) == 5


def test_a_request_with_more_drafts_than_the_device_has_places_for_joins_others():
    params = GenerationParams(max_tokens=12, num_drafts=3, alpha=0, tau=0.5)
    wide = replace(params, num_drafts=20, max_tokens=5)
    expected = [fake_engine()[0].generate("thank you", one) for one in (params, wide)]
    engine, _, _ = fake_engine(device_steps=True)
    engine.add_request("0", "thank you", params)
    for _ in range(4):
        engine.step()
    assert engine._ahead._ahead is not None
    engine.add_request("1", "thank you", wide)
    answers = run_all(engine)
    assert [shown(answers[name].output) for name in "01"] == [shown(output) for output in expected]


def test_an_idle_engine_keeps_nothing_of_those_it_served():
    engine, _, _ = fake_engine(device_steps=True)
    params = GenerationParams(max_tokens=30, num_drafts=3, alpha=0, tau=0.5)
    engine.add_request("cancelled", "a secret", params)
    for _ in range(4):
        engine.step()
    branch = weakref.ref(engine._sequences["cancelled"].branches[0])
    assert engine._ahead._ahead is not None
    engine.cancel("cancelled")
    gc.collect()
    assert branch() is None
    assert engine.generate("thank you", params).drafts


def test_a_row_that_the_host_has_to_take_over_is_void(monkeypatch):
    params = GenerationParams(max_tokens=7, num_drafts=3, alpha=0, tau=0.5)
    expected = fake_engine()[0].generate("thank you", params)
    engine, _, _ = fake_engine(device_steps=True)
    kind, choose, chosen = RunAhead._kind, RunAhead._choose_on_host, []
    monkeypatch.setattr(
        RunAhead, "_kind", lambda self, branch: RowKind.HOST if branch.num_new > 3 else kind(self, branch)
    )
    monkeypatch.setattr(RunAhead, "_choose_on_host", lambda *args: (chosen.append(args[1].num_new), choose(*args)))
    answer = engine.generate("thank you", params)
    assert chosen == [4, 5, 6]
    assert shown(answer) == shown(expected)
    assert answer.usage.forward_rows == expected.usage.forward_rows


def test_where_two_drafts_come_to_the_same_text_the_host_has_the_last_word(monkeypatch):
    """ "he" and "r" is "h" and "er": the device, which knows no texts, goes on with both."""

    def scripted(device_steps: bool) -> tuple[GenerationOutput, Engine]:
        engine, runner, _ = fake_engine(device_steps=device_steps)
        ids = {engine.tokenizer.token_bytes[i]: i for i in range(runner.vocab_size)}
        prompt = engine.tokenizer.encode("thank you")
        logits_of = runner._logits

        def logits(slot: int, length: int) -> torch.Tensor:
            logits = logits_of(slot, length)
            pair = {len(prompt): (b"he", b"h"), len(prompt) + 1: (b"r", b"er")}.get(length, ())
            for rank, token in enumerate(pair):
                logits[ids[token]] = 30.0 - rank
            return logits

        monkeypatch.setattr(runner, "_logits", logits)
        return engine.generate(prompt, GenerationParams(max_tokens=5, num_drafts=4, alpha=0, tau=5.0)), engine

    let_go = []
    monkeypatch.setattr(
        RunAhead,
        "_let_go",
        lambda self, branch, original=RunAhead._let_go: (
            let_go.append((branch.num_steps, branch.is_done)),
            original(self, branch),
        ),
    )
    answer, _ = scripted(device_steps=True)
    assert let_go == [(2, False), (5, True)]
    expected, _ = scripted(device_steps=False)
    assert shown(answer) == shown(expected)
    assert answer.usage.forward_rows == expected.usage.forward_rows == 4
    assert [draft.text for draft in answer.drafts if draft.text.startswith("her")]


def test_a_list_of_children_that_is_too_short_is_the_hosts_to_complete(monkeypatch):
    """All tokens look alike: of the children that the device lists none is a new text."""
    engines = [fake_engine(device_steps=on)[0] for on in (True, False)]
    for engine in engines:
        size = len(engine.tokenizer.token_bytes)
        monkeypatch.setattr(engine.tokenizer, "token_bytes", [b"x"] * (size - 1) + [b"y"])
    params = GenerationParams(max_tokens=4, num_drafts=3, alpha=0, tau=0.5, candidates_per_draft=16)
    completed = []
    choose = RunAhead._choose_on_host
    monkeypatch.setattr(RunAhead, "_choose_on_host", lambda *args: (completed.append(1), choose(*args)))
    answer, expected = (engine.generate("thank you", params) for engine in engines)
    assert completed
    assert shown(answer) == shown(expected)
    assert answer.usage.forward_rows == expected.usage.forward_rows
