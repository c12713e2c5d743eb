"""Who is turned away before the request is read."""

import asyncio
import json

import pytest
from support.virtual_time import VirtualTimeLoop

from superdraft.server.edge.rate_limits import HOLD_S, MAX_REFUSED_PER_S, Rate, TurnstileMiddleware
from superdraft.server.observe.metrics import Metrics
from superdraft.server.observe.request_record import current_record, start_record


class App:
    """Refuses every request after 25 ms, or answers it."""

    def __init__(self):
        self.num_seen, self.status, self.code = 0, 429, "overloaded"

    async def __call__(self, scope, receive, send):
        self.num_seen += 1
        await asyncio.sleep(0.025)
        if self.status == 429:
            current_record().fail(self.status, self.code)
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})


class Crowd:
    """Clients of a turnstile in virtual time."""

    def __init__(self):
        self.app, self.metrics = App(), Metrics()
        numbers = iter(range(10**9))
        self.turnstile = TurnstileMiddleware(
            self.app,
            self.metrics,
            clock=lambda: asyncio.get_running_loop().time(),
            chance=lambda: next(numbers) * 0.618034 % 1,
        )
        self.waits_s = []

    async def ask(self, address="10.0.0.1", method="POST"):
        """The messages of an answer."""
        sent, begun_s = [], asyncio.get_running_loop().time()
        start_record()
        scope = {"type": "http", "method": method, "path": "/v1/drafts", "headers": [], "client": (address, 5000)}

        async def send(message):
            sent.append(message)

        await self.turnstile(scope, None, send)
        self.waits_s.append(asyncio.get_running_loop().time() - begun_s)
        return sent

    async def hammer(self, num_clients, seconds, **how):
        """Clients that come back as soon as they are refused; the number of answers."""
        end_s, count = asyncio.get_running_loop().time() + seconds, 0

        async def client():
            nonlocal count
            while asyncio.get_running_loop().time() < end_s:
                await self.ask(**how)
                count += 1

        await asyncio.gather(*(client() for _ in range(num_clients)))
        return count

    @property
    def num_turned_away(self):
        return self.metrics.total("superdraft_shed_total")


def run(scenario):
    async def main():
        await scenario(Crowd())

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(asyncio.wait_for(main(), 10_000))


def test_a_caller_that_hammers_is_refused_so_many_times_per_second_and_else_turned_away():
    async def scenario(crowd):
        await crowd.hammer(200, 5)
        seen = crowd.app.num_seen
        answered = await crowd.hammer(200, 20)
        assert (crowd.app.num_seen - seen) / 20 == pytest.approx(MAX_REFUSED_PER_S, rel=0.2)
        assert answered / 20 == pytest.approx(200 / HOLD_S, rel=0.2)
        assert max(crowd.waits_s) == pytest.approx(HOLD_S)

    run(scenario)


def test_few_refusals_and_other_callers_are_let_through():
    async def scenario(crowd):
        await crowd.hammer(5, 20)  # two hundred per second
        assert crowd.num_turned_away == 0
        hammering = asyncio.create_task(crowd.hammer(200, 5))
        await asyncio.sleep(4)
        assert crowd.num_turned_away > 1000
        seen = crowd.app.num_seen
        for how in ({"address": "10.0.0.2"}, {"method": "GET"}):
            assert (await crowd.ask(**how))[0]["status"] == 429
            assert crowd.app.num_seen > seen
            seen = crowd.app.num_seen
        await hammering
        await asyncio.sleep(10)
        before = crowd.num_turned_away
        await crowd.hammer(1, 1)
        assert crowd.num_turned_away == before

    run(scenario)


@pytest.mark.parametrize(("status", "code"), [(200, None), (429, "rate_limit_exceeded")])
def test_answers_and_refusals_for_a_callers_own_limits_count_for_nothing(status, code):
    async def scenario(crowd):
        crowd.app.status, crowd.app.code = status, code
        await crowd.hammer(200, 5)
        assert crowd.num_turned_away == 0

    run(scenario)


def test_who_is_turned_away_is_told_so():
    async def scenario(crowd):
        await crowd.hammer(200, 3)
        crowd.turnstile._chance = lambda: 0.999
        start, body = await crowd.ask()
        assert start["status"] == 429
        headers = dict(start["headers"])
        assert headers[b"x-should-retry"] == b"false"
        assert int(headers[b"retry-after"]) >= 1
        error = json.loads(body["body"])["error"]
        assert error["code"] == "overloaded"
        assert "from this address" in error["message"]

    run(scenario)


def test_only_the_latest_callers_are_remembered():
    async def scenario(crowd):
        for number in range(1500):
            await crowd.ask(f"10.0.{number // 250}.{number % 250}")
        assert len(crowd.turnstile._refused) == 1024

    run(scenario)


def test_a_rate_fades():
    rate = Rate()
    for step in range(5000):
        rate.add(step / 1000)
    assert rate.per_s(5.0) == pytest.approx(1000, rel=0.02)
    assert rate.per_s(10.0) < 10
