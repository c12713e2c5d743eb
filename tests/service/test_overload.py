"""Four times as much as the server can do, against engines of few slots."""

import asyncio
import resource
import threading
import time
from collections import Counter

import httpx
import pytest
from support.engine import FakeEngine
from support.serving import eventually, raw_request, serving
from support.slotted_engine import SlottedEngine

from superdraft.server.app import create_app
from superdraft.server.settings import Settings

NUM_SLOTS = 8


async def ask(http, answers, **extra):
    response = await http.post("/v1/drafts", json={"prompt": "hi", "max_tokens": 10, **extra})
    answers.append((response.status_code, response))


async def all_at_once(http, count):
    """So many requests that are sent together: their tasks, and the answers as they come."""
    answers = []
    return [asyncio.create_task(ask(http, answers)) for _ in range(count)], answers


def test_overload_is_refused_at_once_and_does_not_slow_down_what_is_accepted(stepwise, engine):
    """How quick all this is, `superdraft bench overload` measures."""
    engine.num_slots = NUM_SLOTS
    app = create_app(Settings(), engine, model_name="tiny")
    admission = app.state.service.engine._admission

    async def overload(url):
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(base_url=url, limits=limits, timeout=20) as http:
            accepted, answers = await all_at_once(http, NUM_SLOTS)
            await until(lambda: admission.num_rows == NUM_SLOTS)
            flood, refusals = await all_at_once(http, 3 * NUM_SLOTS)
            await asyncio.gather(*flood)  # the engine hangs in its first step all the while
            assert answers == []
            stepwise.release(1000)
            await asyncio.gather(*accepted)
            after, recovered = await all_at_once(http, NUM_SLOTS)
            await asyncio.gather(*after)
        return answers, refusals, recovered

    with serving(app) as url:
        answers, refusals, recovered = asyncio.run(overload(url))
        metrics = httpx.get(f"{url}/metrics").text
    assert [status for status, _ in answers] == [200] * NUM_SLOTS
    assert [status for status, _ in refusals] == [429] * 3 * NUM_SLOTS
    assert [status for status, _ in recovered] == [200] * NUM_SLOTS  # full speed at once
    assert len(engine.seen) == 2 * NUM_SLOTS  # the engine never heard of the others
    for _, response in refusals:
        assert response.json()["error"]["code"] == "overloaded"
        assert (response.headers["x-should-retry"], response.headers["retry-after-ms"]) == ("false", "1000")
    assert f'superdraft_shed_total{{reason="queue_timeout"}} {3 * NUM_SLOTS:.1f}' in metrics


def test_a_typist_is_never_refused_because_of_his_own_older_key_press():
    engine = FakeEngine(num_slots=2, gate=threading.Event())
    app = create_app(Settings(queue_timeout_ms=1), engine, model_name="tiny")
    admission = app.state.service.engine._admission

    async def type_keys(url):
        mine = []
        async with httpx.AsyncClient(base_url=url, timeout=20) as http:
            tasks = [asyncio.create_task(ask(http, [], session_id="other"))]
            await until(lambda: engine.jobs)  # the engine hangs in a step of it
            for is_there in (
                lambda: admission.num_rows == 2,
                lambda: admission.num_rows == 3,  # instead of the first, which is in until the step is over
                lambda: admission.num_waiting == 1,
                lambda: len(mine) == 1,  # the third is superseded at the door
                lambda: len(mine) == 2,
            ):
                tasks.append(asyncio.create_task(ask(http, mine, session_id="me")))
                await until(is_there)
            engine.gate.set()
            await asyncio.gather(*tasks)
        return Counter(status for status, _ in mine)

    with serving(app) as url:
        statuses = asyncio.run(type_keys(url))
    # The second may be finished before the last is there: it is not refused, nor is any other.
    assert statuses in ({499: 4, 200: 1}, {499: 3, 200: 2})


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "hi"}),
        ("/v1/completions", {"prompt": "hi", "stream": True}),
        ("/v1/completions", {"segments": {"prefix": "hi", "suffix": ""}}),
        ("/v1/drafts", {"prompt": "hi", "stream": True}),
        ("/v1/fim/completions", {"prompt": "hi", "suffix": "x"}),
        ("/infill", {"input_prefix": "hi", "input_suffix": ""}),
    ],
)
def test_every_route_says_that_the_server_is_full(make_client, engine, path, body):
    engine.num_slots = 2
    engine.on_step = lambda: time.sleep(0.1)
    client = make_client(max_waiting=0)
    busy = [
        threading.Thread(target=client.post, args=("/v1/drafts",), kwargs={"json": {"prompt": text, "max_tokens": 8}})
        for text in ("a", "b")
    ]
    for thread in busy:
        thread.start()
    assert eventually(lambda: len(engine.seen) == 2)
    answer = client.post(path, json=body)
    for thread in busy:
        thread.join(5)
    assert answer.status_code == 429
    assert answer.headers["x-should-retry"] == "false"
    assert answer.json()["error"]["code"] == (429 if path == "/infill" else "overloaded")


def test_readers_that_take_nothing_hold_no_place():
    engine = SlottedEngine(num_slots=2)
    with serving(create_app(Settings(), engine, model_name="tiny")) as url:
        stuck = [
            raw_request(url, "/v1/drafts", prompt="hi", num_drafts=6, max_tokens=50, stream=True, session_id=str(i))
            for i in range(2)
        ]
        assert eventually(lambda: len(engine.seen) == 2)
        assert eventually(lambda: not engine.jobs)
        assert httpx.post(f"{url}/v1/drafts", json={"prompt": "hi", "max_tokens": 2}).status_code == 200
        for connection in stuck:
            connection.close()


def test_memory_stays_flat_under_a_flood_of_large_requests():
    engine = FakeEngine(num_slots=1, on_step=lambda: time.sleep(0.01))
    body = {"prompt": "x" * 100_000, "max_tokens": 5}  # 60 MB in all

    async def flood(url, count):
        async with httpx.AsyncClient(base_url=url, timeout=30) as http:
            limit = asyncio.Semaphore(50)

            async def one():
                async with limit:
                    return (await http.post("/v1/drafts", json=body)).status_code

            return Counter(await asyncio.gather(*(one() for _ in range(count))))

    with serving(create_app(Settings(), engine, model_name="tiny")) as url:
        asyncio.run(flood(url, 100))
        before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        statuses = asyncio.run(flood(url, 600))
        grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
    assert set(statuses) <= {400, 429}
    assert grown_kib < 20_000
