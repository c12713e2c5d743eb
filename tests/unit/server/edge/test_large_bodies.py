"""Large bodies have turns."""

import asyncio

import pytest

from superdraft.server.edge.large_bodies import LARGE_BYTES, MAX_WAITING, LargeBodies
from superdraft.server.edge.refusals import OverloadedError


class Loop:
    """An event loop's time: it passes while somebody sleeps or parses."""

    def __init__(self):
        self.now_s = 100.0
        self.log = []

    def clock(self):
        return self.now_s

    async def sleep(self, seconds):
        await asyncio.sleep(0)  # others may come
        self.now_s += seconds

    async def parse(self, bodies, name, num_bytes, seconds):
        async with bodies.turn(num_bytes):
            self.log.append((name, round(self.now_s - 100, 3)))
            self.now_s += seconds


@pytest.fixture
def loop():
    return Loop()


@pytest.fixture
def bodies(loop):
    return LargeBodies(loop.clock, loop.sleep)


def test_between_large_bodies_others_have_three_times_as_long(loop, bodies):
    async def scenario():
        await asyncio.gather(*(loop.parse(bodies, name, LARGE_BYTES, 0.04) for name in "abc"))
        await loop.parse(bodies, "d", 2 * LARGE_BYTES, 0.002)  # text: it is parsed quickly
        await loop.parse(bodies, "e", LARGE_BYTES, 0.002)

    asyncio.run(scenario())
    assert loop.log == [("a", 0.0), ("b", 0.16), ("c", 0.32), ("d", 0.48), ("e", 0.488)]


def test_the_first_body_after_a_quiet_time_does_not_wait(loop, bodies):
    async def scenario():
        await loop.parse(bodies, "a", LARGE_BYTES, 0.04)
        loop.now_s += 1
        await loop.parse(bodies, "b", LARGE_BYTES, 0.04)

    asyncio.run(scenario())
    assert loop.log == [("a", 0.0), ("b", 1.04)]


def test_a_small_body_never_waits(loop, bodies):
    async def scenario():
        await loop.parse(bodies, "large", LARGE_BYTES, 0.04)
        await asyncio.gather(
            loop.parse(bodies, "large", LARGE_BYTES, 0.04), loop.parse(bodies, "small", LARGE_BYTES - 1, 0.0)
        )

    asyncio.run(scenario())
    assert loop.log == [("large", 0.0), ("small", 0.04), ("large", 0.16)]


def test_of_very_many_large_bodies_some_are_refused_and_the_others_have_their_turn(loop, bodies):
    async def scenario():
        work = (loop.parse(bodies, name, LARGE_BYTES, 0.04) for name in range(MAX_WAITING + 3))
        results = await asyncio.gather(*work, return_exceptions=True)
        await loop.parse(bodies, "later", LARGE_BYTES, 0.04)
        return results

    results = asyncio.run(scenario())
    assert [type(one) for one in results] == [type(None)] * MAX_WAITING + [OverloadedError] * 3
    assert [name for name, _ in loop.log] == [*range(MAX_WAITING), "later"]
    assert "32 bodies of 64 KiB or more" in str(results[-1])


def test_a_body_that_cannot_be_parsed_and_a_caller_that_leaves_give_their_turns_back(loop, bodies):
    async def fail():
        async with bodies.turn(LARGE_BYTES):
            loop.now_s += 0.04
            raise ValueError("not JSON")

    async def scenario():
        with pytest.raises(ValueError, match="not JSON"):
            await fail()
        leaving = asyncio.create_task(loop.parse(bodies, "left", LARGE_BYTES, 0.04))
        await asyncio.sleep(0)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        await loop.parse(bodies, "next", LARGE_BYTES, 0.04)

    asyncio.run(scenario())
    assert loop.log == [("next", 0.16)]  # the failed one's time counts
