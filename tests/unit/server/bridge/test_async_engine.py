"""Exactly one terminal answer for every request, whatever happens to the engine."""

import asyncio
import threading
import time

import pytest
from support.engine import FakeEngine, FakeTokenizer
from support.engine_thread import generate, run
from support.fake_runner import fake_engine
from support.waiting import PATIENCE_S, until

from superdraft.decoding.errors import EngineStoppedError, InvalidRequestError, SequenceFailedError, SupersededError
from superdraft.decoding.outputs import GenerationOutput, StepOutput
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.prompt import PlainText, PrefixedText
from superdraft.decoding.request import EngineRequest
from superdraft.server.bridge.async_engine import LONG_TEXT_CHARS, AsyncEngine

SHORT = GenerationParams(max_tokens=2)
LONG = GenerationParams(max_tokens=50)


def test_many_requests_each_get_their_own_answer():
    engine = FakeEngine()

    async def scenario(async_engine):
        works = [
            generate(async_engine, EngineRequest(f"r{i}", "x" * i, GenerationParams(max_tokens=1 + i % 5)))
            for i in range(50)
        ]
        return await asyncio.gather(*works)

    outputs = run(engine, scenario)
    assert [output.request_id for output in outputs] == [f"r{i}" for i in range(50)]
    assert [len(output.prompt_token_ids) for output in outputs] == list(range(50))
    assert engine.threads == {"superdraft-engine"}


def test_refused_request_hears_why_and_others_go_on():
    async def scenario(async_engine):
        requests = EngineRequest("a", "x" * 100, SHORT), EngineRequest("b", "x", SHORT)
        works = [generate(async_engine, request) for request in requests]
        return await asyncio.gather(*works, return_exceptions=True)

    refused, fine = run(FakeEngine(), scenario)
    assert isinstance(refused, InvalidRequestError)
    assert isinstance(fine, GenerationOutput)


def test_failing_sequence_leaves_the_others():
    engine = FakeEngine(fail={"a": SequenceFailedError("bad scorer")})

    async def scenario(async_engine):
        works = [generate(async_engine, EngineRequest(name, "x", SHORT)) for name in "abc"]
        return await asyncio.gather(*works, return_exceptions=True)

    failed, *others = run(engine, scenario)
    assert isinstance(failed, SequenceFailedError)
    assert all(isinstance(other, GenerationOutput) for other in others)


def test_request_id_in_use_is_refused():
    engine = FakeEngine(gate=threading.Event())

    async def scenario(async_engine):
        first = asyncio.create_task(generate(async_engine, EngineRequest("same", "x", SHORT)))
        await until(lambda: engine.seen)
        second = asyncio.create_task(generate(async_engine, EngineRequest("same", "x", SHORT)))
        await asyncio.sleep(0)
        engine.gate.set()
        return await asyncio.gather(first, second, return_exceptions=True)

    first, second = run(engine, scenario)
    assert isinstance(first, GenerationOutput)
    assert isinstance(second, InvalidRequestError)
    assert len(engine.seen) == 1


def test_cancelled_while_running_is_dropped_from_the_engine():
    engine = FakeEngine(gate=threading.Event())

    async def scenario(async_engine):
        task = asyncio.create_task(generate(async_engine, EngineRequest("a", "x", LONG)))
        await until(lambda: engine.seen)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        engine.gate.set()
        await until(lambda: engine.cancelled == ["a"])
        assert not engine.has_unfinished
        return await generate(async_engine, EngineRequest("b", "x", SHORT))

    assert run(engine, scenario).request_id == "b"


def test_cancelled_before_the_engine_saw_it():
    engine = FakeEngine(gate=threading.Event())

    async def scenario(async_engine):
        running = asyncio.create_task(generate(async_engine, EngineRequest("a", "x", SHORT)))
        await until(lambda: engine.seen)  # the thread now hangs in step
        waiting = asyncio.create_task(generate(async_engine, EngineRequest("b", "x", LONG)))
        await until(lambda: async_engine._thread.num_commands == 1)
        waiting.cancel()
        await until(lambda: async_engine._thread.num_commands == 2)
        engine.gate.set()
        await until(lambda: engine.cancelled == ["b"])
        return await running, waiting.cancelled()

    output, was_cancelled = run(engine, scenario)
    assert output.request_id == "a"
    assert was_cancelled
    assert "b" not in engine.jobs


def test_cancelling_after_the_answer_does_nothing():
    engine = FakeEngine()

    async def scenario(async_engine):
        await generate(async_engine, EngineRequest("a", "x", SHORT))
        task = asyncio.create_task(generate(async_engine, EngineRequest("b", "x", SHORT)))
        await task
        task.cancel()

    run(engine, scenario)
    assert engine.cancelled == []


def test_crashing_step_fails_what_runs_and_the_thread_goes_on():
    crashes = iter([True])

    def crash_once():
        if next(crashes, False):
            raise RuntimeError("out of memory")

    async def scenario(async_engine):
        works = [generate(async_engine, EngineRequest(name, "x", SHORT)) for name in "ab"]
        first = await asyncio.gather(*works, return_exceptions=True)
        return first, await generate(async_engine, EngineRequest("c", "x", SHORT)), async_engine.is_ready

    first, second, ready = run(FakeEngine(on_step=crash_once), scenario)
    assert any(isinstance(answer, SequenceFailedError) for answer in first)
    assert all(isinstance(answer, SequenceFailedError | GenerationOutput) for answer in first)
    assert "out of memory" not in str(first)
    assert isinstance(second, GenerationOutput)
    assert ready


async def fail_in_turn(async_engine, *names):
    for name in names:
        with pytest.raises(SequenceFailedError):
            await generate(async_engine, EngineRequest(name, "x", SHORT))


def test_repeated_crashes_end_the_thread():
    def crash():
        raise RuntimeError("broken")

    async def scenario(async_engine):
        await fail_in_turn(async_engine, "a", "b")
        assert async_engine.is_ready
        await fail_in_turn(async_engine, "c")
        assert not async_engine.is_ready
        await until(lambda: async_engine.has_failed)
        with pytest.raises(EngineStoppedError):
            await generate(async_engine, EngineRequest("d", "x", SHORT))
        await async_engine.stop(grace_s=1)
        return async_engine.has_failed

    assert run(FakeEngine(on_step=crash), scenario)


def test_a_step_that_works_makes_up_for_earlier_crashes():
    crashes = iter([True, True, False, False, True, True])

    def crash():
        if next(crashes, False):
            raise RuntimeError("broken")

    async def scenario(async_engine):
        await fail_in_turn(async_engine, "a", "b")
        await generate(async_engine, EngineRequest("c", "x", SHORT))
        await fail_in_turn(async_engine, "d", "e")
        return await generate(async_engine, EngineRequest("f", "x", SHORT))

    assert run(FakeEngine(on_step=crash), scenario).request_id == "f"


class FailsToCancel(FakeEngine):
    """Raises in `cancel`, the first `num_failures` times, before or after the request is dropped."""

    num_failures = 1
    drops = False

    def cancel(self, request_id):
        if self.num_failures == 0:
            return super().cancel(request_id)
        self.num_failures -= 1
        if self.drops:
            super().cancel(request_id)
        raise RuntimeError("broken")


async def one_leaves(async_engine, engine):
    """Run three requests, of which the first is cancelled; returns how the others ended."""
    tasks = [asyncio.create_task(generate(async_engine, EngineRequest(name, "x", LONG))) for name in "abc"]
    await until(lambda: len(engine.seen) + async_engine._thread.num_commands == 3)
    tasks[0].cancel()
    await until(tasks[0].done)
    engine.gate.set()
    return await asyncio.gather(*tasks[1:], return_exceptions=True)


@pytest.mark.parametrize("drops", [False, True])
def test_crash_in_cancel_fails_what_runs_and_the_thread_goes_on(drops):
    engine = FailsToCancel(gate=threading.Event())
    engine.drops = drops

    async def scenario(async_engine):
        others = await one_leaves(async_engine, engine)
        assert [type(other) for other in others] == [SequenceFailedError] * 2
        await until(lambda: async_engine._admission.num_rows == 0)
        after = await generate(async_engine, EngineRequest("d", "x", SHORT))
        return after, async_engine.is_ready, async_engine.has_failed

    after, is_ready, has_failed = run(engine, scenario)
    assert isinstance(after, GenerationOutput)
    assert is_ready
    assert not has_failed
    assert engine.jobs == {}


def test_engine_that_never_cancels_ends_the_thread_and_everyone_is_answered():
    engine = FailsToCancel(gate=threading.Event())
    engine.num_failures = 1000

    async def scenario(async_engine):
        others = await one_leaves(async_engine, engine)
        await until(lambda: async_engine.has_failed)
        await until(lambda: async_engine._admission.num_rows == 0)
        return others

    answers = run(engine, scenario)
    assert [type(other) for other in answers] == [SequenceFailedError] * 2
    assert all("shared with others" in str(other) for other in answers)  # it may not be its own fault


def test_crash_while_an_answer_is_counted_is_an_error(monkeypatch):
    def broken(*_):
        raise RuntimeError("broken")

    async def scenario(async_engine):
        with monkeypatch.context() as patched:
            patched.setattr(async_engine._metrics, "observe_generation", broken)
            await fail_in_turn(async_engine, "a")
        return await generate(async_engine, EngineRequest("b", "x", SHORT))

    assert run(FakeEngine(), scenario).request_id == "b"


def test_crash_in_add_request_answers_that_request():
    engine = FakeEngine()

    async def scenario(async_engine):
        with pytest.raises(SequenceFailedError):
            await generate(async_engine, EngineRequest("a", None, SHORT))
        return await generate(async_engine, EngineRequest("b", "x", SHORT))

    assert run(engine, scenario).request_id == "b"


def test_crash_in_add_request_leaves_nothing_in_the_engine():
    class AddsHalf(FakeEngine):
        def add_request(self, request):
            super().add_request(request)
            if request.request_id == "a":
                raise RuntimeError("broken")

    engine = AddsHalf()

    async def scenario(async_engine):
        await fail_in_turn(async_engine, "a")
        return await generate(async_engine, EngineRequest("b", "x", SHORT))

    assert run(engine, scenario).request_id == "b"
    assert engine.cancelled == ["a"]
    assert engine.jobs == {}


def test_engine_that_cannot_drop_its_requests_ends_and_answers_all():
    class Stuck(FakeEngine):
        def cancel(self, request_id):
            return False

    def crash():
        raise RuntimeError("broken")

    engine = Stuck(on_step=crash)

    async def scenario(async_engine):
        with pytest.raises(SequenceFailedError):
            await generate(async_engine, EngineRequest("a", "x", SHORT))
        await until(lambda: async_engine.has_failed)
        with pytest.raises(EngineStoppedError):
            await generate(async_engine, EngineRequest("b", "x", SHORT))

    run(engine, scenario)


def test_exit_raised_in_the_thread_ends_it_and_answers_all():
    def leave():
        raise SystemExit(3)

    async def scenario(async_engine):
        with pytest.raises(EngineStoppedError):
            await generate(async_engine, EngineRequest("a", "x", SHORT))
        await until(lambda: async_engine.has_failed)

    run(FakeEngine(on_step=leave), scenario)


def test_request_that_the_engine_loses_is_answered():
    class Forgetful(FakeEngine):
        def step(self):
            self.jobs.clear()
            return []

    async def scenario(async_engine):
        with pytest.raises(SequenceFailedError):
            await generate(async_engine, EngineRequest("a", "x", SHORT))

    run(Forgetful(), scenario)


def test_empty_answer_is_an_error():
    class Empty(FakeEngine):
        def step(self):
            return [StepOutput(self.jobs.popitem()[0])]

    async def scenario(async_engine):
        with pytest.raises(SequenceFailedError):
            await generate(async_engine, EngineRequest("a", "x", SHORT))

    run(Empty(), scenario)


def test_stop_lets_running_requests_finish_and_takes_no_more():
    engine = FakeEngine(gate=threading.Event())

    async def scenario(async_engine):
        running = asyncio.create_task(generate(async_engine, EngineRequest("a", "x", LONG)))
        await until(lambda: engine.seen)
        stopping = asyncio.create_task(async_engine.stop(grace_s=PATIENCE_S))
        await asyncio.sleep(0)
        assert not async_engine.is_ready
        with pytest.raises(EngineStoppedError):
            await generate(async_engine, EngineRequest("b", "x", SHORT))
        engine.gate.set()
        await stopping
        return await running

    assert run(engine, scenario).request_id == "a"


def test_stop_without_patience_answers_everyone():
    engine = FakeEngine(gate=threading.Event())

    async def scenario(async_engine):
        running = asyncio.create_task(generate(async_engine, EngineRequest("a", "x", LONG)))
        await until(lambda: engine.seen)
        queued = asyncio.create_task(generate(async_engine, EngineRequest("b", "x", LONG)))
        await until(lambda: async_engine._thread.num_commands == 1)
        stopping = asyncio.create_task(async_engine.stop(grace_s=0))
        await until(lambda: not async_engine.is_ready)
        engine.gate.set()
        await stopping
        return await asyncio.gather(running, queued, return_exceptions=True)

    assert [type(answer) for answer in run(engine, scenario)] == [EngineStoppedError] * 2


def test_stop_twice_and_stop_before_start():
    async def main():
        never_started = AsyncEngine(FakeEngine())
        await never_started.stop(grace_s=1)
        assert not never_started.has_failed
        async_engine = AsyncEngine(FakeEngine())
        async_engine.start()
        await async_engine.stop(grace_s=1)
        await async_engine.stop(grace_s=1)
        assert not async_engine.has_failed

    asyncio.run(asyncio.wait_for(main(), PATIENCE_S))


def test_idle_thread_sleeps():
    steps = []

    async def scenario(async_engine):
        await generate(async_engine, EngineRequest("a", "x", SHORT))
        count = len(steps)
        await asyncio.sleep(0.05)
        return count, len(steps)

    before, after = run(FakeEngine(on_step=lambda: steps.append(1)), scenario)
    assert before == after == 2


# Typists


def test_a_newer_request_of_a_session_ends_only_the_older_one_and_waits_as_long():
    engine = FakeEngine(gate=threading.Event())

    async def scenario(async_engine):
        names = {"old": "s", "stranger": "t", "new": "s"}
        tasks = []
        for number, (name, session) in enumerate(names.items(), 1):
            tasks.append(start(async_engine, name, "x", session))
            await until(lambda number=number: len(engine.seen) + async_engine._thread.num_commands == number)
        engine.gate.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    old, stranger, new = run(engine, scenario)
    assert isinstance(old, SupersededError)
    assert (stranger.request_id, new.request_id) == ("stranger", "new")
    assert engine.cancelled == ["old"]
    since = {job.request_id: job.waiting_since_s for job in engine.seen}
    assert since["old"] == since["new"] < since["stranger"]


def test_a_request_that_the_engine_refuses_ends_no_other():
    engine = FakeEngine(gate=threading.Event())

    async def scenario(async_engine):
        old = start(async_engine, "old", "x", "s")
        await until(lambda: engine.seen)
        refused = start(async_engine, "refused", "x" * 100, "s")
        await until(lambda: async_engine._thread.num_commands == 1)
        engine.gate.set()
        with pytest.raises(InvalidRequestError):
            await refused
        return await old

    assert run(engine, scenario).request_id == "old"
    assert engine.cancelled == []


def test_a_typist_who_got_drafts_waits_anew_and_a_finished_request_is_not_ended():
    engine = FakeEngine()

    async def scenario(async_engine):
        for name in "ab":
            await start(async_engine, name, "x", "s")

    run(engine, scenario)
    assert engine.cancelled == []
    first, second = engine.seen
    assert first.waiting_since_s < second.waiting_since_s


# Long texts

TEXT = "x" * (LONG_TEXT_CHARS + 1)


class SlowTokenizer(FakeTokenizer):
    """Long texts wait until the test lets them go, and raise `fault` if there is one."""

    def __init__(self):
        self.gate = threading.Event()
        self.long, self.short = [], set()
        self.fault = None

    def encode(self, text):
        thread = threading.current_thread().name
        if len(text) <= LONG_TEXT_CHARS:
            self.short.add(thread)
            return super().encode(text)
        self.long.append(thread)
        assert self.gate.wait(PATIENCE_S)
        if self.fault is not None:
            raise self.fault
        return super().encode(text)


@pytest.fixture
def slow():
    return FakeEngine(max_model_len=2 * LONG_TEXT_CHARS, tokenizer=SlowTokenizer())


def start(async_engine, name, prompt, session=None, **fields):
    """A task that waits for the drafts of a request."""
    return asyncio.create_task(generate(async_engine, EngineRequest(name, prompt, SHORT, **fields), session))


def cancelled(async_engine, reason):
    return async_engine._metrics.registry.get_sample_value("superdraft_cancelled_total", {"reason": reason})


@pytest.mark.parametrize("prompt", [TEXT, PlainText(TEXT), PrefixedText((1,), TEXT)])
def test_a_long_text_that_is_being_encoded_holds_nobody_up(slow, prompt):
    async def scenario(async_engine):
        long = start(async_engine, "a", prompt)
        await until(lambda: slow.tokenizer.long)
        others = [await generate(async_engine, EngineRequest(name, "x", LONG)) for name in "bc"]
        assert not long.done()
        slow.tokenizer.gate.set()
        return others, await long

    others, output = run(slow, scenario)
    assert [other.request_id for other in others] == ["b", "c"]
    assert len(output.prompt_token_ids) >= len(TEXT)
    assert slow.tokenizer.long == ["superdraft-encoder_0"]
    assert slow.tokenizer.short == slow.threads == {"superdraft-engine"}


def test_a_long_text_does_not_overtake_a_newer_request_of_its_session(slow):
    async def scenario(async_engine):
        older = start(async_engine, "a", TEXT, session="s")
        await until(lambda: slow.tokenizer.long)
        newer = await start(async_engine, "b", "x", session="s")
        slow.tokenizer.gate.set()
        with pytest.raises(SupersededError):
            await older
        await until(lambda: not async_engine._admission.num_rows)
        assert cancelled(async_engine, "superseded") == 1
        return newer

    assert run(slow, scenario).request_id == "b"
    assert [job.request_id for job in slow.seen] == ["b"]


def test_long_texts_of_a_session_reach_the_engine_in_their_order(slow):
    slow.gate = threading.Event()

    async def scenario(async_engine):
        tasks = [start(async_engine, name, TEXT, session="s") for name in "ab"]
        await until(lambda: slow.tokenizer.long)
        slow.tokenizer.gate.set()
        await until(lambda: len(slow.seen) + async_engine._thread.num_commands == 2)  # neither has been answered
        slow.gate.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    older, newer = run(slow, scenario)
    assert isinstance(older, SupersededError)
    assert newer.request_id == "b"
    assert [job.request_id for job in slow.seen] == ["a", "b"]


def test_a_client_that_leaves_while_its_text_is_encoded(slow):
    async def scenario(async_engine):
        tasks = [start(async_engine, name, TEXT) for name in "ab"]  # the second one waits for the encoder
        await until(lambda: slow.tokenizer.long)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert all(task.cancelled() for task in tasks)
        await until(lambda: not async_engine._admission.num_rows)
        assert cancelled(async_engine, "client_gone") == 2
        slow.tokenizer.gate.set()
        return await generate(async_engine, EngineRequest("c", "x", SHORT))

    assert run(slow, scenario).request_id == "c"
    assert [job.request_id for job in slow.seen] == ["c"]
    assert len(slow.tokenizer.long) == 1


@pytest.mark.parametrize(
    ("fault", "kind"),
    [(InvalidRequestError("no text", param="prompt"), InvalidRequestError), (KeyError("secret"), SequenceFailedError)],
)
def test_a_text_that_cannot_be_encoded_ends_its_request_alone(slow, fault, kind):
    slow.tokenizer.fault = fault

    async def scenario(async_engine):
        failing = start(async_engine, "a", TEXT)
        slow.tokenizer.gate.set()
        with pytest.raises(kind) as raised:
            await failing
        assert "secret" not in str(raised.value)
        await until(lambda: not async_engine._admission.num_rows)
        return await generate(async_engine, EngineRequest("b", "x", SHORT))

    assert run(slow, scenario).request_id == "b"


def test_the_time_limit_includes_the_encoding(slow):
    async def scenario(async_engine):
        late = start(async_engine, "a", TEXT, deadline_s=time.monotonic() + 0.02)
        await until(lambda: slow.tokenizer.long)
        await asyncio.sleep(0.03)
        slow.tokenizer.gate.set()
        return await late

    run(slow, scenario)
    (job,) = slow.seen
    assert job.is_late


def test_stopping_while_a_text_is_encoded(slow):
    async def scenario(async_engine):
        waiting = [start(async_engine, name, TEXT) for name in "ab"]
        await until(lambda: slow.tokenizer.long)
        stopping = asyncio.create_task(async_engine.stop(grace_s=PATIENCE_S))
        await until(lambda: not async_engine.is_ready)
        slow.tokenizer.gate.set()
        await stopping
        return await asyncio.gather(*waiting, return_exceptions=True)

    assert all(isinstance(answer, EngineStoppedError) for answer in run(slow, scenario))
    assert slow.seen == []


@pytest.mark.parametrize("kind", [str, PlainText, lambda text: PrefixedText((1, 2), text)])
def test_a_long_text_gets_the_drafts_that_the_engine_alone_would_give(kind):
    request = EngineRequest(
        "a", kind("we are a b " * 400 + "we a"), GenerationParams(max_tokens=3, alpha=0, token_healing=True)
    )
    alone, served = (fake_engine(max_model_len=4096, document_start=True)[0] for _ in range(2))
    expected = alone.generate(request.prompt, request.params)
    output = run(served, lambda async_engine: generate(async_engine, request))
    assert len(request.prompt.text if isinstance(request.prompt, PrefixedText) else request.prompt) > LONG_TEXT_CHARS
    assert output.drafts == expected.drafts
    assert output.prompt_token_ids == expected.prompt_token_ids
    assert output.warnings == expected.warnings
