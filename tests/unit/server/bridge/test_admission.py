"""Who goes in: never more than there is room and time for, by turns, nobody waits long, no ticket is lost."""

import asyncio
import random
from dataclasses import replace

import pytest
from support.engine import step_report
from support.virtual_time import VirtualTimeLoop

from superdraft.decoding.engine.load import Load
from superdraft.decoding.errors import EngineStoppedError, SupersededError
from superdraft.server.bridge.admission import Admission
from superdraft.server.bridge.room import places_of
from superdraft.server.edge.refusals import OverloadedError


class Request:
    """A group; like the server's records it is told apart by identity alone."""


def run(scenario):
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(asyncio.wait_for(scenario(), 10))


def enter(control, request, *work, caller="", session=None, **how):
    return control.enter(request, control.typists.of(caller, session), *work, **how)


async def begin(control, **how):
    """A request that has begun to wait, or has gone in."""
    task = asyncio.create_task(enter(control, Request(), **how))
    await asyncio.sleep(0)
    return task


def test_a_reserve_keeps_slots_from_falling_empty():
    assert [places_of(slots) for slots in (1, 8, 16, 64)] == [1, 8, 17, 68]


def test_who_came_last_goes_in_first():
    async def scenario():
        control = Admission(1, queue_timeout_s=5)
        first = await enter(control, Request())
        waiting = [await begin(control) for _ in range(3)]
        order = []
        for name, task in zip("abc", waiting, strict=True):
            task.add_done_callback(lambda _, name=name: order.append(name))
        ticket = first
        for _ in range(3):
            control.leave(ticket)
            await asyncio.sleep(0)
            (ticket,) = [task.result() for task in waiting if task.done() and task.result().is_taken]
        await asyncio.sleep(0)
        assert order == ["c", "b", "a"]
        assert control.num_rows == 1

    run(scenario)


def test_at_a_crowded_door_the_oldest_is_refused_at_once():
    async def scenario():
        reasons = []
        control = Admission(1, max_waiting=2, queue_timeout_s=5, on_shed=reasons.append)
        await enter(control, Request())
        oldest, older, newest = [await begin(control) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError):
            oldest.result()
        assert (older.done(), newest.done(), reasons) == (False, False, ["full"])
        for task in (older, newest):
            task.cancel()

    run(scenario)


@pytest.mark.parametrize(("max_waiting", "timeout_s", "waits_s"), [(0, None, 0), (10, None, 0.03), (10, 0.01, 0.01)])
def test_nobody_waits_longer_than_the_deadline(max_waiting, timeout_s, waits_s):
    async def scenario():
        control = Admission(1, max_waiting=max_waiting, queue_timeout_s=0.03)
        await enter(control, Request())
        begun = asyncio.get_running_loop().time()
        with pytest.raises(OverloadedError) as caught:
            await enter(control, Request(), deadline_s=None if timeout_s is None else begun + timeout_s)
        waited = asyncio.get_running_loop().time() - begun
        assert waited == pytest.approx(waits_s)
        assert control.num_waiting == 0
        assert caught.value.headers["x-should-retry"] == "false"

    run(scenario)


def test_the_prompts_of_a_request_go_in_by_turns_with_others():
    async def scenario():
        control = Admission(2, queue_timeout_s=0.03)
        batch = Request()
        tasks = [asyncio.create_task(enter(control, batch)) for _ in range(4)]
        await asyncio.sleep(1)  # once the first prompt is in, the others have no deadline
        assert [task.done() for task in tasks] == [True, False, False, False]  # it leaves a row to others
        other = await enter(control, Request())
        newer = await begin(control)
        control.leave(other)
        await asyncio.sleep(0)
        assert newer.done()
        assert not tasks[1].done()
        control.leave(tasks[0].result())
        await asyncio.sleep(0)
        assert tasks[1].done()  # its turn: it has no rows, and has begun
        control.leave(newer.result())
        for task in tasks[1:]:
            control.leave(await task)
        assert control.num_rows == 0
        assert not control._groups

    run(scenario)


def test_a_request_that_does_not_begin_in_time_is_refused_with_all_its_prompts():
    async def scenario():
        reasons = []
        control = Admission(1, queue_timeout_s=0.03, on_shed=reasons.append)
        await enter(control, Request())
        batch = Request()
        ends = await asyncio.gather(*(enter(control, batch) for _ in range(3)), return_exceptions=True)
        assert [type(end) for end in ends] == [OverloadedError] * 3
        assert reasons == ["queue_timeout"]

    run(scenario)


def test_a_prompt_goes_in_only_with_all_its_slots():
    async def scenario():
        control = Admission(4, queue_timeout_s=0.03)
        first = await enter(control, Request(), num_slots=2)
        with pytest.raises(OverloadedError):
            await enter(control, Request(), num_slots=3)
        wide = await begin(control, num_slots=3)
        control.leave(first)
        control.leave(await wide)
        await enter(control, Request())
        assert (
            await enter(control, Request(), num_slots=9)
        ).num_slots == 9  # the engine says that this is more than it has

    run(scenario)


def test_a_key_press_takes_the_place_of_the_one_before_it():
    async def scenario():
        control = Admission(1, queue_timeout_s=0.05)
        first = await enter(control, Request(), session="me")
        second = await asyncio.wait_for(enter(control, Request(), session="me"), 0.02)  # though all is full
        third = await begin(control, session="me")  # two are in already: a flood is no way in
        assert not third.done()
        fourth = await begin(control, session="me")
        await asyncio.sleep(0)
        with pytest.raises(SupersededError):
            third.result()
        control.leave(first)
        control.leave(second)
        assert (await fourth).typist.session == "me"

    run(scenario)


def test_a_key_press_waits_for_its_own_older_ones_as_long_as_a_step_takes():
    async def scenario():
        control = Admission(1, max_waiting=1, queue_timeout_s=0.03)
        first = await enter(control, Request(), session="me")
        second = await enter(control, Request(), session="me")
        third = await begin(control, session="me")
        stranger = await begin(control)
        await asyncio.sleep(2)
        assert not third.done()
        with pytest.raises(OverloadedError):
            stranger.result()
        control.leave(first)  # the engine heard of the second
        assert (await third).typist.session == "me"
        fourth = await begin(control, session="me")
        await asyncio.sleep(2)
        control.leave(second)
        last = await fourth
        control.leave(third.result())
        control.leave(last)
        assert (control.num_rows, control.num_waiting) == (0, 0)
        assert not control.typists.of("", "me").tickets

    run(scenario)


def test_a_key_press_goes_in_when_all_older_ones_ended_although_others_have_the_room():
    async def scenario():
        control = Admission(1, queue_timeout_s=0.03)
        first = await enter(control, Request(), session="me")
        second = await enter(control, Request(), session="me")
        third = await begin(control, session="me")
        wide = await begin(control, num_rows=3)
        control.leave(second)
        assert (await third).typist.session == "me"
        control.leave(first)
        control.leave(third.result())
        assert (await wide).num_rows == 3

    run(scenario)


@pytest.mark.parametrize("num_older", [1, 2])
def test_a_key_press_that_needs_more_than_the_one_before_it_waits_like_others(num_older):
    async def scenario():
        control = Admission(num_older + 1, queue_timeout_s=0.03)
        older = [await enter(control, Request(), session="me") for _ in range(num_older)]
        await enter(control, Request())
        with pytest.raises(OverloadedError):
            await enter(control, Request(), 2, session="me")
        assert control.num_rows == num_older + 1
        wide = await begin(control, num_rows=2, session="me")
        replaced = await begin(control, session="me")
        await asyncio.sleep(0)
        with pytest.raises(SupersededError):
            wide.result()
        control.leave(older[0])
        assert (await replaced).num_rows == 1

    run(scenario)


def test_forty_sessions_of_one_row_do_not_become_thousands_of_rows():
    async def scenario():
        control = Admission(64, queue_timeout_s=0.03)
        for number in range(40):
            await enter(control, Request(), session=str(number))
        wider = [enter(control, Request(), 64, num_slots=64, session=str(number)) for number in range(40)]
        ends = await asyncio.gather(*wider, return_exceptions=True)
        assert [type(end) for end in ends] == [OverloadedError] * 40
        assert control.num_rows == 40

    run(scenario)


def test_a_client_that_leaves_gives_its_place_back_at_any_moment():
    async def scenario():
        control = Admission(1, queue_timeout_s=5)
        first = await enter(control, Request())
        waiting = await begin(control)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert control.num_waiting == 0
        just_let_in = await begin(control)
        control.leave(first)
        just_let_in.cancel()  # before it could notice
        await asyncio.gather(just_let_in, return_exceptions=True)
        assert control.num_rows == 0
        second = await enter(control, Request())
        leaving = await begin(control)
        leaving.cancel()
        control.leave(second)  # in the same moment
        await asyncio.gather(leaving, return_exceptions=True)
        assert control.num_rows == 0
        control.leave(first)  # twice does no harm
        assert control.num_rows == 0

    run(scenario)


def test_a_shutdown_refuses_those_at_the_door():
    async def scenario():
        control = Admission(1, queue_timeout_s=5)
        await enter(control, Request())
        waiting = await begin(control)
        control.close("bye")
        with pytest.raises(EngineStoppedError):
            await waiting

    run(scenario)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("sessions", "most_rows"),
    [
        ([None], 4),
        ([None, "a", "b"], 4 + 4),  # each of those in sessions may be replaced by as many rows
    ],
)
def test_no_place_is_lost_or_given_twice(seed, sessions, most_rows):
    chance = random.Random(seed)

    async def client(control):
        await asyncio.sleep(chance.random() * 0.2)
        request, num_rows = Request(), chance.randint(1, 3)
        entering = enter(control, request, num_rows, num_slots=num_rows, session=chance.choice(sessions))
        try:
            ticket = await asyncio.wait_for(entering, chance.random() * 0.03)
        except (OverloadedError, SupersededError, TimeoutError) as error:
            return type(error)
        assert control.num_rows <= most_rows
        await asyncio.sleep(chance.random() * 0.02)
        ticket.release()
        return None

    async def scenario():
        control = Admission(4, max_waiting=8, queue_timeout_s=0.01)
        ends = await asyncio.gather(*(client(control) for _ in range(300)))
        await asyncio.sleep(0)
        assert None in ends
        assert OverloadedError in ends
        assert (control.num_rows, control.num_waiting) == (0, 0)
        assert not control._groups
        assert not any(control.typists.of("", session).is_active for session in sessions)

    run(scenario)


def test_a_request_goes_in_beside_warm_ups_as_if_it_were_alone():
    async def scenario():
        load = Load()
        for _ in range(200):
            for num_rows in (1, 2, 3):
                report = replace(step_report(0.07 * num_rows), num_rows=num_rows)
                load.observe(report, report.seconds)
        # Ten tokens take 0.7 s, and those of two requests 1.4 s.
        control = Admission(16, queue_timeout_s=0.01, target_latency_s=1.0, load=load)
        warm_up = await enter(control, Request(), num_tokens=0, is_warm_up=True)
        ticket = await enter(control, Request(), num_tokens=10)
        with pytest.raises(OverloadedError):
            await enter(control, Request(), num_tokens=10)
        for one in (ticket, warm_up):
            control.leave(one)
        assert control.num_rows == 0

    run(scenario)


def test_warm_ups_have_an_eighth_of_the_places():
    async def scenario():
        control = Admission(16, queue_timeout_s=0.01)
        tickets = [await enter(control, Request(), num_tokens=0, is_warm_up=True) for _ in range(2)]
        with pytest.raises(OverloadedError):
            await enter(control, Request(), num_tokens=0, is_warm_up=True)
        tickets += [await enter(control, Request(), num_tokens=10) for _ in range(14)]
        with pytest.raises(OverloadedError):
            await enter(control, Request(), num_tokens=10)
        control.leave(tickets[0])
        await enter(control, Request(), num_tokens=10)

    run(scenario)
