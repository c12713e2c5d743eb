"""Streams of outputs: snapshots, one terminal output, and what closing, lateness and shutdown do to them."""

import asyncio
import collections
import random
import threading
import time

import pytest
from support.engine import FakeEngine
from support.engine_thread import generate, run
from support.readers import wait_for_readers
from support.waiting import PATIENCE_S, until

from superdraft.decoding.errors import EngineStoppedError, InvalidRequestError, SequenceFailedError, SupersededError
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.request import EngineRequest
from superdraft.server.bridge.output_stream import open_all

SHORT = GenerationParams(max_tokens=2)
LONG = GenerationParams(max_tokens=50)
STREAMED = GenerationParams(max_tokens=4, snapshots=True)


async def all_sent(async_engine, engine):
    """Wait until the outputs of all requests so far have come to the event loop."""
    await until(lambda: not engine.jobs)
    await generate(async_engine, EngineRequest("later", "x", SHORT))


@pytest.fixture
def endless():
    engine = FakeEngine()
    engine.on_step = engine.never_end
    return engine


def test_stream_is_snapshots_and_one_terminal_output(monkeypatch):
    engine = FakeEngine()
    wait_for_readers(engine, monkeypatch)

    async def scenario(async_engine):
        outputs = await async_engine.stream(EngineRequest("a", "x", STREAMED))
        return [output async for output in outputs], await anext(outputs, "over")

    outputs, after = run(engine, scenario)
    assert [output.is_terminal for output in outputs] == [False, False, False, True]
    assert [output.snapshot.num_steps for output in outputs[:-1]] == [1, 2, 3]
    assert after == "over"


def test_slow_reader_gets_the_latest_output_alone():
    engine = FakeEngine()

    async def scenario(async_engine):
        outputs = await async_engine.stream(EngineRequest("a", "x", STREAMED))
        await all_sent(async_engine, engine)
        return [output async for output in outputs]

    (only,) = run(engine, scenario)
    assert only.output.request_id == "a"


def test_generate_waits_through_snapshots():
    async def scenario(async_engine):
        return await generate(async_engine, EngineRequest("a", "x", STREAMED))

    assert run(FakeEngine(), scenario).request_id == "a"


def test_stream_of_a_refused_request_raises_before_it_starts():
    async def scenario(async_engine):
        with pytest.raises(InvalidRequestError):
            await async_engine.stream(EngineRequest("a", "x" * 100, STREAMED))
        return await generate(async_engine, EngineRequest("a", "x", SHORT))

    engine = FakeEngine()
    assert run(engine, scenario).request_id == "a"
    assert engine.cancelled == []


def test_error_is_the_streams_last_output():
    engine = FakeEngine(fail={"a": SequenceFailedError("bad scorer")})

    async def scenario(async_engine):
        return [output async for output in await async_engine.stream(EngineRequest("a", "x", STREAMED))]

    assert isinstance(run(engine, scenario)[-1].error, SequenceFailedError)


@pytest.mark.parametrize("num_read", [0, 2])
def test_closing_a_stream_cancels_at_the_next_step(num_read):
    leave = threading.Semaphore(0)
    engine = FakeEngine(on_step=lambda: leave.acquire(timeout=PATIENCE_S))

    async def scenario(async_engine):
        outputs = await async_engine.stream(EngineRequest("a", "x", GenerationParams(max_tokens=50, snapshots=True)))
        for _ in range(num_read):
            leave.release()
            assert not (await anext(outputs)).is_terminal
        outputs.close()
        outputs.close()
        assert async_engine._thread.num_commands == 1
        leave.release(100)
        await until(lambda: engine.cancelled == ["a"])
        assert engine.seen[0].num_steps <= num_read + 1
        assert await anext(outputs, "over") == "over"

    run(engine, scenario)
    assert not engine.has_unfinished


def test_closing_a_stream_after_its_end_cancels_nothing():
    engine = FakeEngine()

    async def scenario(async_engine):
        read = await async_engine.stream(EngineRequest("a", "x", STREAMED))
        assert [output async for output in read]
        read.close()
        unread = await async_engine.stream(EngineRequest("b", "x", STREAMED))
        await all_sent(async_engine, engine)
        unread.close()
        await generate(async_engine, EngineRequest("c", "x", SHORT))

    run(engine, scenario)
    assert engine.cancelled == []


def test_late_cancel_spares_a_newer_request_of_the_same_id():
    engine = FakeEngine(gate=threading.Event())

    async def scenario(async_engine):
        first = asyncio.create_task(generate(async_engine, EngineRequest("same", "x", SHORT)))
        await until(lambda: engine.seen)
        refused = asyncio.create_task(async_engine.stream(EngineRequest("same", "x", SHORT)))
        await until(lambda: async_engine._thread.num_commands == 1)
        refused.cancel()
        await until(lambda: async_engine._thread.num_commands == 2)
        engine.gate.set()
        return await first

    assert run(engine, scenario).request_id == "same"
    assert engine.cancelled == []


def test_session_and_timeout_reach_the_engine():
    engine = FakeEngine(gate=threading.Event(), on_step=lambda: time.sleep(0.002))

    async def scenario(async_engine):
        older = asyncio.create_task(generate(async_engine, EngineRequest("a", "x", LONG), "me"))
        await until(engine.at_gate.is_set)
        asyncio.get_running_loop().call_later(0.01, engine.gate.set)
        late = EngineRequest("b", "x", LONG, deadline_s=time.monotonic() + 0.02)
        newer = generate(async_engine, late, "me")
        return await asyncio.gather(older, newer, return_exceptions=True)

    older, newer = run(engine, scenario)
    assert isinstance(older, SupersededError)
    assert newer.warnings == ("The time limit was reached.",)


def test_time_runs_while_a_request_waits_for_the_engine():
    engine = FakeEngine(gate=threading.Event())

    async def scenario(async_engine):
        first = asyncio.create_task(generate(async_engine, EngineRequest("a", "x", SHORT)))
        await until(lambda: engine.seen)
        late = asyncio.create_task(
            generate(async_engine, EngineRequest("b", "x", LONG, deadline_s=time.monotonic() + 0.02))
        )
        patient = asyncio.create_task(
            generate(async_engine, EngineRequest("c", "x", SHORT, deadline_s=time.monotonic() + 1000))
        )
        await asyncio.sleep(0.03)  # the engine is in the middle of a step
        engine.gate.set()
        return await asyncio.gather(first, late, patient)

    outputs = run(engine, scenario)
    assert [job.is_late for job in engine.seen] == [False, True, False]
    assert [output.warnings for output in outputs] == [(), ("The time limit was reached.",), ()]


def test_stop_ends_streams_and_empties_the_engine(endless):
    engine = endless

    async def scenario(async_engine):
        outputs = await async_engine.stream(EngineRequest("a", "x", GenerationParams(max_tokens=60, snapshots=True)))
        await anext(outputs)
        await async_engine.stop(grace_s=0.02)
        return [output async for output in outputs]

    assert isinstance(run(engine, scenario)[-1].error, EngineStoppedError)
    assert not engine.has_unfinished


def test_random_churn_ends_every_request_once():
    """Hundreds of requests that are answered, superseded, late, closed half read or cancelled: nothing is left over."""
    engine = FakeEngine(on_step=lambda: time.sleep(0.0002))
    chance = random.Random(5)
    ended = collections.Counter()

    async def one(async_engine, i):
        params = GenerationParams(max_tokens=chance.randint(1, 20), snapshots=chance.random() < 0.5)
        session = chance.choice([None, "s", "t"])
        deadline_s = chance.choice([None, time.monotonic() + 0.001])
        try:
            await asyncio.sleep(chance.random() * 0.3)
            request = EngineRequest(f"r{i}", "x", params, deadline_s=deadline_s)
            outputs = await async_engine.stream(request, async_engine.typists.of("", session))
            if chance.random() < 0.3:
                outputs.close()
                ended["closed"] += 1
                return
            terminals = [output async for output in outputs if output.is_terminal]
            assert len(terminals) == 1
            ended["error" if terminals[0].error else "output"] += 1
        except asyncio.CancelledError:
            ended["cancelled"] += 1

    async def scenario(async_engine):
        tasks = [asyncio.create_task(one(async_engine, i)) for i in range(600)]
        for task in chance.sample(tasks, 100):
            asyncio.get_running_loop().call_later(0.1 + chance.random() * 0.2, task.cancel)
        await asyncio.gather(*tasks)
        await until(lambda: not engine.has_unfinished)

    run(engine, scenario)
    assert ended.total() == 600
    assert all(ended[kind] for kind in ("closed", "error", "output", "cancelled"))


def test_merged_streams_come_in_turn_and_end_when_all_have(monkeypatch):
    engine = FakeEngine()
    wait_for_readers(engine, monkeypatch)

    async def scenario(async_engine):
        merged = await open_all([async_engine.stream(EngineRequest(name, "x", STREAMED)) for name in "abc"])
        return [output async for output in merged]

    outputs = run(engine, scenario)
    for name in "abc":
        own = [output for output in outputs if output.request_id == name]
        assert [output.is_terminal for output in own][-1:] == [True]
        assert [output.snapshot.num_steps for output in own[:-1]] == [1, 2, 3]


def test_slow_reader_of_merged_streams_gets_the_latest_of_each():
    engine = FakeEngine()

    async def scenario(async_engine):
        merged = await open_all([async_engine.stream(EngineRequest(name, "x", STREAMED)) for name in "abc"])
        await all_sent(async_engine, engine)
        return [output.request_id async for output in merged if output.is_terminal]

    assert sorted(run(engine, scenario)) == ["a", "b", "c"]


def test_reader_slower_than_its_first_stream_still_hears_of_the_others(endless):
    engine = endless

    async def scenario(async_engine):
        merged = await open_all([async_engine.stream(EngineRequest(name, "x", STREAMED)) for name in "ab"])
        heard = []
        for _ in range(4):
            await until(lambda: all(stream._latest for stream in merged._streams))
            heard.append((await anext(merged)).request_id)
        merged.close()
        return heard

    assert sorted(run(engine, scenario)) == ["a", "a", "b", "b"]


def test_closing_merged_streams_cancels_all(endless):
    engine = endless

    async def scenario(async_engine):
        merged = await open_all([async_engine.stream(EngineRequest(name, "x", LONG)) for name in "abc"])
        merged.close()
        merged.close()
        await until(lambda: sorted(engine.cancelled) == ["a", "b", "c"])
        assert await anext(merged, "over") == "over"

    run(engine, scenario)


def test_refusal_of_one_ends_the_others_that_were_taken(endless):
    engine = endless

    async def scenario(async_engine):
        with pytest.raises(InvalidRequestError):
            await open_all([async_engine.stream(EngineRequest(name, name * 30, LONG)) for name in ("a", "xxx", "b")])
        await until(lambda: len(engine.cancelled) == 2 and not engine.jobs)

    engine.max_model_len = 80
    run(engine, scenario)


def test_caller_that_leaves_while_streams_are_opened_leaves_nothing_behind():
    engine = FakeEngine(gate=threading.Event())

    async def scenario(async_engine):
        blocker = await async_engine.stream(EngineRequest("blocker", "x", LONG))
        await until(engine.at_gate.is_set)
        opening = asyncio.create_task(open_all([async_engine.stream(EngineRequest(name, "x", LONG)) for name in "ab"]))
        await until(lambda: async_engine._thread.num_commands == 2)  # which wait for the blocked step
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        engine.gate.set()
        blocker.close()
        await until(lambda: len(engine.cancelled) == 3 and not engine.jobs)

    run(engine, scenario)
