"""Four times as much as the server can do, against an engine of eight slots that takes its steps when it is told.

Time is counted in these steps.
"""

import asyncio
import contextlib
import resource
import threading
import time
from collections import Counter
from dataclasses import replace

import anyio.to_thread
import httpx
import pytest
from support.engine import FakeEngine, step_report
from support.serving import raw_request, serving
from support.slotted_engine import SlottedEngine
from support.waiting import PATIENCE_S, eventually, until

from superdraft.server.app import create_app
from superdraft.server.settings import Settings

NUM_SLOTS = 8
MANY_TOKENS = 500
MAX_TOKENS = 10  # steps, of which the first may find the engine in the middle of one: eight slots do 8 requests in 11


class HeldEngine(SlottedEngine):
    """Every step waits for leave."""

    def __init__(self, num_slots):
        super().__init__(num_slots=num_slots, step_s=0)
        self.leave = threading.Semaphore(0)
        self.num_steps = self.num_ended = 0

    def step(self):
        assert self.leave.acquire(timeout=PATIENCE_S)
        outputs = super().step()
        self.num_ended += sum(output.is_terminal for output in outputs)
        self.num_steps += 1
        return outputs


@contextlib.contextmanager
def serving_held(num_slots=NUM_SLOTS, **settings):
    """A server, its engine and its admission control."""
    engine = HeldEngine(num_slots)
    app = create_app(Settings(**settings), engine, model_name="tiny")
    with serving(app) as url:
        try:
            async_engine = app.state.service.engine
            engine.num_heard_of = lambda: len(engine.seen) + async_engine._thread.num_commands
            yield url, engine, async_engine._admission
        finally:
            engine.leave.release(10_000)


async def take_step(engine):
    num_steps = engine.num_steps
    engine.leave.release()
    await until(lambda: engine.num_steps > num_steps)


async def arrivals(url, engine, admission, per_step, num_steps):
    """Requests that come whether or not others are answered: (status, steps, response) of each."""
    answers = []
    num_ended, num_heard_of = engine.num_ended, engine.num_heard_of()

    async def ask(http):
        begun = engine.num_steps
        response = await http.post("/v1/drafts", json={"prompt": "hi", "max_tokens": MAX_TOKENS})
        answers.append((response.status_code, engine.num_steps - begun, response))

    def are_settled():  # each is answered, or has a ticket and is known to the engine
        answered = Counter(status for status, _, _ in answers)
        num_in_engine = engine.num_heard_of() - num_heard_of - answered[200]
        has_ended = answered[200] == engine.num_ended - num_ended
        return has_ended and len(tasks) - len(answers) == admission.num_rows == num_in_engine

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, limits=limits) as http:
        tasks = []
        for step in range(num_steps):
            due = round(per_step * (step + 1)) - round(per_step * step)
            tasks += [asyncio.create_task(ask(http)) for _ in range(due)]
            await until(are_settled)
            if engine.has_unfinished or admission.num_rows:
                await take_step(engine)
                await until(are_settled)
        while len(answers) < len(tasks):
            await take_step(engine)
            await until(are_settled)
        await asyncio.gather(*tasks)
    return answers


def test_overload_is_refused_at_once_and_does_not_slow_down_what_is_accepted():
    capacity, num_steps = NUM_SLOTS / MAX_TOKENS, 60
    with serving_held(queue_timeout_ms=25) as (url, engine, admission):
        full = asyncio.run(arrivals(url, engine, admission, 0.8 * capacity, num_steps))
        flood = asyncio.run(arrivals(url, engine, admission, 4 * capacity, num_steps))
        after = asyncio.run(arrivals(url, engine, admission, 0.5 * capacity, num_steps))
        metrics = httpx.get(f"{url}/metrics").text
    counts = Counter(status for status, _, _ in flood)
    assert set(counts) == {200, 429}
    assert sum(counts.values()) == round(4 * capacity * num_steps)  # every one is answered
    assert counts[200] >= num_steps * NUM_SLOTS / (MAX_TOKENS + 2)  # the slots are kept busy
    assert engine.most_jobs <= NUM_SLOTS
    # Nobody waits for a slot, and who is refused does not wait for a step.
    assert {steps for status, steps, _ in flood if status == 200} <= {MAX_TOKENS, MAX_TOKENS + 1}
    assert {steps for status, steps, _ in flood if status == 429} == {0}
    for unhurried in (full, after):  # full speed at once
        assert {status for status, _, _ in unhurried} == {200}
        assert {steps for _, steps, _ in unhurried} <= {MAX_TOKENS, MAX_TOKENS + 1}
    response = next(response for status, _, response in flood if status == 429)
    assert response.json()["error"]["code"] == "overloaded"
    assert (response.headers["x-should-retry"], response.headers["retry-after-ms"]) == ("false", "1000")
    assert 'superdraft_shed_total{reason="queue_timeout"}' in metrics


def test_a_typist_is_never_refused_because_of_his_own_older_key_press():
    async def type_keys(url, engine, admission, keys_a_step):
        statuses, entered, enter = {}, [], admission.enter

        def noted_enter(*arguments, **options):
            entered.append(arguments)
            return enter(*arguments, **options)

        admission.enter = noted_enter

        async def press(http, key, session):
            body = {"prompt": f"key {key}", "max_tokens": MANY_TOKENS, "session_id": session}
            statuses[key] = (await http.post("/v1/drafts", json=body)).status_code

        async with httpx.AsyncClient(base_url=url) as http:
            tasks = [asyncio.create_task(press(http, "other", "other"))]
            await until(lambda: admission.num_rows == 1)
            for key in range(6):
                tasks.append(asyncio.create_task(press(http, key, "me")))
                await until(lambda key=key: len(entered) == 2 + key)
                if key % keys_a_step == keys_a_step - 1:
                    await take_step(engine)
            while bytes(engine.seen[-1].token_ids) != b"key 5":
                await take_step(engine)
                await asyncio.sleep(0.02)  # the key before it has steps for ten seconds of this
            engine.leave.release(2 * MANY_TOKENS)
            await asyncio.gather(*tasks)
        return [statuses[key] for key in range(6)], statuses["other"]

    for keys_a_step in (1, 2, 6):
        with serving_held(num_slots=2) as (url, engine, admission):
            engine.max_model_len = 2 * MANY_TOKENS
            mine, other = asyncio.run(type_keys(url, engine, admission, keys_a_step))
            assert mine == [499] * 5 + [200]
            assert other == 200


def test_more_than_can_be_answered_in_time_is_refused_although_there_are_slots(make_client, engine):
    for num_rows in (1, 2, 3) * 100:  # so three requests need 880 to 970 s, four over 1,070
        engine.last_step = replace(step_report(30 * num_rows), num_rows=num_rows)
        engine.load.observe(engine.last_step, engine.last_step.seconds)
    engine.gate = threading.Event()
    engine.gate.set()
    client, answers = make_client(target_latency_ms=1_020_000, queue_timeout_ms=25), []

    def ask(prompt):
        answers.append(client.post("/v1/drafts", json={"prompt": prompt, "max_tokens": 10, "elastic": False}))

    ask("first")
    engine.gate.clear()
    threads = [threading.Thread(target=ask, args=(text,)) for text in "abcdef"]
    for thread in threads:
        thread.start()
    assert eventually(lambda: len(answers) >= 1 + 3)
    assert [answer.status_code for answer in answers] == [200] + [429] * 3
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers[1:])
    engine.gate.set()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert [answer.status_code for answer in answers[4:]] == [200] * 3
    assert engine.num_slots > 6


@pytest.mark.parametrize(
    ("body", "work"),
    [
        ({"prompt": ["hi"] * 32, "n": 32, "strategy": "sample", "max_tokens": 512}, 32 * 32 * 512),
        ({"prompt": ["hi"] * 5, "n": 3, "strategy": "sample", "max_tokens": 10}, 5 * 3 * 10),
    ],
)
def test_a_request_for_more_work_than_one_may_ask_for_is_refused(make_client, engine, body, work):
    client = make_client(max_request_tokens=149)
    error = client.post("/v1/completions", json=body).json()["error"]
    assert (error["code"], error["param"]) == ("invalid_value", "max_tokens")
    assert str(work) in error["message"]
    assert "at most 149" in error["message"]
    assert not engine.seen
    allowed = {"prompt": ["hi"] * 4, "n": 3, "strategy": "sample", "max_tokens": 10}
    assert client.post("/v1/completions", json=allowed).status_code == 200


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
    engine.num_slots, engine.gate = 2, threading.Event()
    client = make_client(max_waiting=0)
    busy = [
        threading.Thread(target=client.post, args=("/v1/drafts",), kwargs={"json": {"prompt": text, "max_tokens": 8}})
        for text in ("a", "b")
    ]
    for thread in busy:
        thread.start()
    assert eventually(lambda: client.app.state.service.engine._admission.num_rows == 2)
    answer = client.post(path, json=body)
    engine.gate.set()
    for thread in busy:
        thread.join(PATIENCE_S)
    assert answer.status_code == 429
    assert answer.headers["x-should-retry"] == "false"
    assert answer.json()["error"]["code"] == (429 if path == "/infill" else "overloaded")


def test_readers_that_take_nothing_hold_no_place():
    engine = SlottedEngine(num_slots=2)
    with serving(create_app(Settings(), engine, model_name="tiny")) as url:
        stuck = [
            raw_request(url, "/v1/drafts", prompt="hi", num_drafts=6, max_tokens=40, stream=True, session_id=str(i))
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
        async with httpx.AsyncClient(base_url=url) as http:
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


def test_a_refusal_starts_one_task_and_no_thread(make_client, engine, monkeypatch):
    """What a refusal costs is time that the event loop lacks for answers."""
    engine.gate = threading.Event()
    engine.num_slots = 2
    client = make_client(max_waiting=0)
    tasks, threads = [], []
    plain_task, plain_thread = asyncio.create_task, anyio.to_thread.run_sync

    def counted_task(work, **options):
        tasks.append(work.__qualname__)
        return plain_task(work, **options)

    def counted_thread(*arguments, **options):
        threads.append(arguments)
        return plain_thread(*arguments, **options)

    body = {"prompt": "hi", "max_tokens": 8}
    busy = [threading.Thread(target=client.post, args=("/v1/drafts",), kwargs={"json": body}) for _ in range(2)]
    for thread in busy:
        thread.start()
    assert eventually(lambda: client.app.state.service.engine._admission.num_rows == 2)
    monkeypatch.setattr(asyncio, "create_task", counted_task)
    monkeypatch.setattr(anyio.to_thread, "run_sync", counted_thread)
    assert client.post("/v1/drafts", json=body).status_code == 429
    assert [name.rpartition(".")[2] for name in tasks] == ["watch"]
    assert not threads
    engine.gate.set()
    for thread in busy:
        thread.join(PATIENCE_S)
