"""Work ahead of the typist runs only while nothing else does, and nobody gets its answer."""

import asyncio
import threading

from support.engine import FakeEngine
from support.engine_thread import generate, run
from support.waiting import until

from superdraft.decoding.outputs import GenerationOutput
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.request import EngineRequest
from superdraft.server.bridge.ahead import Ahead
from superdraft.server.observe.metrics import Metrics

PARAMS = GenerationParams(max_tokens=3)


def likely(name: str = "ahead", text: str = "x") -> EngineRequest:
    return EngineRequest(name, text, PARAMS, is_ahead=True)


def counts(metrics: Metrics) -> tuple[float, float]:
    return tuple(metrics.registry.get_sample_value(f"superdraft_{name}_total") for name in ("ahead", "ahead_rows"))


def test_it_is_run_to_its_end_step_by_step_and_counted():
    engine, metrics = FakeEngine(has_room_ahead=True), Metrics()
    ahead = Ahead(engine, metrics)
    assert not ahead.has_work
    ahead.put(likely())
    for _ in range(PARAMS.max_tokens):
        assert ahead.has_work
        ahead.step()
    assert not ahead.has_work
    assert not engine.has_unfinished
    assert counts(metrics) == (1, 3)


def test_a_newer_one_replaces_it_and_giving_up_frees_the_engine():
    engine = FakeEngine(has_room_ahead=True)
    ahead = Ahead(engine, Metrics())
    ahead.put(likely("old"))
    ahead.step()
    ahead.put(likely("new"))
    assert engine.cancelled == ["old"]
    ahead.give_up()
    assert not ahead.has_work
    assert [job.request_id for job in engine.seen] == ["old"]


def test_without_room_or_with_a_text_that_is_refused_nothing_happens():
    for engine, text in ((FakeEngine(), "x"), (FakeEngine(has_room_ahead=True), "x" * 100)):
        metrics = Metrics()
        ahead = Ahead(engine, metrics)
        ahead.put(likely(text=text))
        ahead.step()
        assert not ahead.has_work
        assert counts(metrics) == (0, 0)


def test_a_request_ends_it_within_one_step_and_is_answered():
    engine = FakeEngine(has_room_ahead=True, gate=threading.Event())

    async def scenario(async_engine):
        async_engine.look_ahead(likely())
        await until(lambda: engine.seen)
        answer = asyncio.create_task(generate(async_engine, EngineRequest("real", "x", PARAMS)))
        await until(lambda: async_engine._thread.num_commands == 1)  # the thread waits inside the step
        engine.gate.set()
        return await answer

    assert isinstance(run(engine, scenario), GenerationOutput)
    assert engine.cancelled == ["ahead"]
    (ahead, _) = engine.seen
    assert ahead.num_steps == 1


def test_it_does_not_begin_beside_a_request_or_when_the_server_stops():
    engine = FakeEngine(has_room_ahead=True, gate=threading.Event())

    async def scenario(async_engine):
        answer = asyncio.create_task(generate(async_engine, EngineRequest("real", "x", PARAMS)))
        await until(lambda: engine.seen)
        async_engine.look_ahead(likely())
        engine.gate.set()
        await answer
        await async_engine.stop(1)
        async_engine.look_ahead(likely())

    run(engine, scenario)
    assert [job.request_id for job in engine.seen] == ["real"]


def test_a_step_that_fails_ends_it_and_the_engine_goes_on():
    engine = FakeEngine(has_room_ahead=True)

    def fail() -> None:
        engine.on_step = lambda: None
        raise RuntimeError("out of memory")

    engine.on_step = fail

    async def scenario(async_engine):
        async_engine.look_ahead(likely())
        await until(lambda: engine.cancelled)
        return await generate(async_engine, EngineRequest("real", "x", PARAMS))

    assert isinstance(run(engine, scenario), GenerationOutput)
