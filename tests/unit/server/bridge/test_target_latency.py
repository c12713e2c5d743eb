"""Accepted requests are answered in time, whatever else is asked for, on an engine that works in virtual time."""

import asyncio
import random
from collections import defaultdict

import pytest
from support.virtual_time import VirtualTimeLoop

from superdraft.decoding.engine.load import Load
from superdraft.decoding.errors import SupersededError
from superdraft.decoding.outputs import StepReport
from superdraft.server.bridge.admission import Admission
from superdraft.server.edge.refusals import OverloadedError

NUM_PLACES = 68
TARGET_S = 1.0
PREFILL_S = 0.03
SHORT = {"num_rows": 3, "num_tokens": 10}
LONG = {"num_rows": 1, "num_tokens": 400}


def step_s(rows):
    return 0.01 + 0.0015 * rows


class Machine:
    """Admission control, and an engine of which a step runs one prompt beside the drafts.

    Attributes:
        slowness: factor of all costs, by the time in seconds.
        answers: by name of the client: seconds from a request to its answer; None: it was refused.
        refused_s: seconds from a request to its refusal.
    """

    def __init__(self, target_s=TARGET_S, slowness=lambda _: 1.0):
        self.slowness = slowness
        self.load = Load()
        self.control = Admission(NUM_PLACES, target_latency_s=target_s, load=self.load)
        self.answers, self.refused_s = defaultdict(list), []
        self._prompts, self._drafts = [], {}  # tickets with tokens left
        self._ends, self._work = {}, asyncio.Event()

    async def run(self):
        while True:
            if not self._prompts and not self._drafts:
                self._work.clear()
                await self._work.wait()
            rows = sum(ticket.num_rows for ticket in [*self._prompts, *self._drafts])
            if self._prompts:
                ticket = self._prompts.pop(0)
                self._drafts[ticket] = ticket.num_tokens
                seconds = await self._spend(PREFILL_S + step_s(rows))
                report = StepReport("prefill", rows, 40, 1, seconds, (0.0,), 0, len(self._prompts))
            else:
                seconds = await self._spend(step_s(rows))
                report = StepReport("decode", rows, 0, 0, seconds, (), 0)
            self.load.observe(report, seconds)
            self._drafts = {ticket: left - 1 for ticket, left in self._drafts.items()}
            for ticket in [ticket for ticket, left in self._drafts.items() if left <= 0]:
                del self._drafts[ticket]
                self.control.leave(ticket)
                self._ends.pop(ticket).set_result(None)

    async def _spend(self, seconds):
        seconds *= self.slowness(asyncio.get_running_loop().time())
        await asyncio.sleep(seconds)
        return seconds

    async def ask(self, name, num_prompts=1, **how):
        """One request, and whether it was answered."""
        request, begun_s = object(), asyncio.get_running_loop().time()
        try:
            await asyncio.gather(*(self._prompt(request, **how) for _ in range(num_prompts)))
        except SupersededError:
            return False
        except OverloadedError:
            self.answers[name].append(None)
            self.refused_s.append(asyncio.get_running_loop().time() - begun_s)
            return False
        self.answers[name].append(asyncio.get_running_loop().time() - begun_s)
        return True

    async def _prompt(self, request, caller="", session=None, **how):
        ticket = await self.control.enter(request, self.control.typists.of(caller, session), **how)
        self._ends[ticket] = asyncio.get_running_loop().create_future()
        self._prompts.append(ticket)
        self._work.set()
        ticket.is_added = True
        self.load.num_waiting += 1
        await self._ends[ticket]

    async def arrivals(self, name, per_s, seconds, **how):
        """Requests at random times, whether or not others are answered."""
        chance, tasks = random.Random(name), []
        end_s = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < end_s:
            tasks.append(asyncio.create_task(self.ask(name, **how)))
            await asyncio.sleep(chance.expovariate(per_s))
        await asyncio.gather(*tasks)

    def accepted_s(self, name):
        return sorted(seconds for seconds in self.answers[name] if seconds is not None)

    def accepted_share(self, name):
        return len(self.accepted_s(name)) / len(self.answers[name])


def p95(seconds):
    return seconds[int(0.95 * len(seconds))]


def simulate(scenario, target_s=TARGET_S, slowness=lambda _: 1.0):
    """The machine after a scenario."""

    async def main():
        machine = Machine(target_s, slowness)
        engine = asyncio.create_task(machine.run())
        await scenario(machine)
        engine.cancel()
        assert (machine.control.num_rows, machine.control.num_waiting) == (0, 0)
        assert not machine.control._groups
        return machine

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(asyncio.wait_for(main(), 10_000))


@pytest.mark.parametrize("num_tokens", [4, 10, 25])
def test_under_four_times_the_load_accepted_requests_are_answered_in_time(num_tokens):
    how = {"num_rows": 3, "num_tokens": num_tokens}

    async def flood(machine):
        await machine.arrivals("all", 80, 60, **how)  # the machine can prompt some 20 per second

    bounded, unbounded = simulate(flood), simulate(flood, target_s=1000)
    assert p95(bounded.accepted_s("all")) <= 1.2 * TARGET_S
    assert p95(unbounded.accepted_s("all")) > 1.2 * TARGET_S or num_tokens == 4
    assert max(bounded.refused_s) < 0.03
    assert len(bounded.accepted_s("all")) > 0.7 * len(unbounded.accepted_s("all"))


@pytest.mark.parametrize(
    "slowness",
    [
        pytest.param(lambda now_s: 1.0 if now_s < 5 else 4.0, id="slower from now on"),
        pytest.param(lambda now_s: 2.0 if now_s % 10 < 5 else 1.0, id="slower half the time"),
    ],
)
def test_accepted_requests_are_answered_in_time_although_the_machine_slows_down(slowness):
    async def flood(machine):
        await machine.arrivals("all", 80, 10, **SHORT)
        await machine.arrivals("later", 80, 50, **SHORT)

    machine = simulate(flood, slowness=slowness)
    assert p95(machine.accepted_s("later")) <= 1.5 * TARGET_S
    assert max(machine.refused_s) < 0.03


def test_a_light_load_is_never_refused():
    async def scenario(machine):
        await machine.arrivals("light", 3, 60, **SHORT)

    assert simulate(scenario).accepted_share("light") == 1


def test_requests_of_different_lengths_do_not_make_each_other_late():
    async def scenario(machine):
        await asyncio.gather(
            machine.arrivals("short", 8, 60, num_rows=1, num_tokens=5),
            machine.arrivals("middle", 10, 60, num_rows=3, num_tokens=25),
        )

    machine = simulate(scenario)
    for name in ("short", "middle"):
        assert p95(machine.accepted_s(name)) <= 1.5 * TARGET_S


def test_long_requests_leave_time_for_short_ones():
    async def batches(machine, name, seconds=60):
        end_s = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < end_s:
            if not await machine.ask(name, num_prompts=20, **LONG):
                await asyncio.sleep(0.5)

    async def scenario(machine):
        batch = [asyncio.create_task(batches(machine, f"batch {i}")) for i in range(4)]
        await asyncio.sleep(1)
        await machine.arrivals("typist", 2, 60, **SHORT)
        await asyncio.gather(*batch)

    machine = simulate(scenario)
    assert machine.accepted_share("typist") > 0.95
    assert p95(machine.accepted_s("typist")) <= 1.5 * TARGET_S
    assert any(machine.accepted_s(f"batch {i}") for i in range(4))


def test_a_flood_of_one_caller_leaves_room_for_another():
    async def scenario(machine):
        await asyncio.gather(
            machine.arrivals("flood", 80, 300, caller="a", **SHORT),
            machine.arrivals("typist", 1, 300, caller="b", **SHORT),
            machine.arrivals("session", 1, 300, caller="a", session="s", **SHORT),
        )

    machine = simulate(scenario)
    assert machine.accepted_share("flood") < 0.2
    for name in ("typist", "session"):
        assert machine.accepted_share(name) > 5 * machine.accepted_share("flood")
        assert p95(machine.accepted_s(name)) <= 1.5 * TARGET_S


def test_a_long_request_begins_although_short_ones_fill_the_machine():
    async def scenario(machine):
        flood = asyncio.create_task(machine.arrivals("flood", 80, 40, caller="a", **SHORT))
        await asyncio.sleep(5)
        await machine.arrivals("batch", 1, 20, caller="b", **LONG)
        await flood

    machine = simulate(scenario)
    assert machine.accepted_s("batch")
    assert p95(machine.accepted_s("flood")) <= 1.5 * TARGET_S


def test_a_refusal_says_when_the_next_answer_is_due():
    def full(load):
        return Admission(2, queue_timeout_s=0.01, target_latency_s=TARGET_S, load=load)

    async def main():
        load = Load()
        for _ in range(400):
            load.observe(StepReport("decode", 2, 0, 0, 0.1, (), 0), 0.1)
        control = full(load)
        for _ in range(2):
            await control.enter(object(), control.typists.of(), num_tokens=400 // 100)
        soon = await asyncio.gather(control.enter(object(), control.typists.of()), return_exceptions=True)
        control = full(load)
        await control.enter(object(), control.typists.of(), num_rows=2, num_slots=2, num_tokens=400)
        for _ in range(100):
            load.observe(StepReport("decode", 2, 0, 0, 0.1, (), 0), 0.1)
        late = await asyncio.gather(control.enter(object(), control.typists.of()), return_exceptions=True)
        return [error.headers["retry-after"] for error in (*soon, *late)]

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        assert runner.run(main()) == ["1", "31"]
