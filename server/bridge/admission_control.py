"""Admission control: which requests reach the engine under overload.

The engine has room for a fixed number of rows. A request that finds it full is queued, but only for a moment: a
keystroke is worth nothing once the next one has come, so a late refusal is as useless as a late answer. The newest
request is admitted first (adaptive LIFO with a short deadline, as in Maurer, "Fail at Scale", ACM Queue 13(8), 2015),
so admitted requests have hardly waited, and the others are refused soon. All of this runs on the event loop and does
not wait for the engine's steps.

A request that replaces an older one of its session is always admitted: it gives back as many rows as it takes. If the
engine has not yet ended the request before that one, the new request waits for it, however long the engine's step
takes. So a session never has more than two requests in the engine and one in the queue.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from superdraft.decoding.errors import EngineStoppedError, SupersededError
from superdraft.server.edge.refusals import OverloadedError

KeyT = TypeVar("KeyT")

RESERVE_SHARE = 16
_FULL = "The server is full: it is running {} rows, its limit. Send the next keystroke, not this one again."


def places_of(num_slots: int) -> int:
    """Rows to admit for this many slots: a few more if there are many, so that a free slot is used in the next step."""
    return num_slots + num_slots // RESERVE_SHARE


@dataclass(eq=False, slots=True)
class Place:
    """Permission to use the engine, until it is released."""

    control: "AdmissionControl"
    loop: asyncio.AbstractEventLoop
    group: object
    num_rows: int
    session: str | None
    is_taken: bool = False

    def release(self) -> None:
        """Give the place back. Any thread may call this, more than once."""
        with contextlib.suppress(RuntimeError):  # the loop is closed, so no request waits
            self.loop.call_soon_threadsafe(self.control.leave, self)


@dataclass(eq=False, slots=True)
class _Waiter:
    place: Place
    admitted: asyncio.Future[None]
    timer: asyncio.TimerHandle | None = None  # None: it replaces another request of its session


class AdmissionControl:
    """Counts the rows in the engine, and refuses requests beyond its capacity. For one event loop.

    Args:
        num_places: rows in the engine at once; None: no limit. A request with several rows or prompts is admitted as a
            whole as soon as there is a place for its first row.
        max_waiting: length of the queue; one more, and the oldest request is refused. Requests that replace another one
            of their session are not counted.
        queue_timeout_s: seconds in the queue after which a request is refused.
        on_shed: called with the reason for every request that is refused.
    """

    def __init__(
        self,
        num_places: int | None = None,
        max_waiting: int = 64,
        queue_timeout_s: float = 0.025,
        on_shed: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._num_places = num_places
        self._max_waiting = max_waiting
        self._queue_timeout_s = queue_timeout_s
        self._on_shed = on_shed
        self._num_rows = 0
        self._groups: Counter[int] = Counter()  # rows by the identity of the request, which its places keep alive
        self._sessions: Counter[str] = Counter()
        self._waiting: dict[int, _Waiter] = {}  # by the same identity, oldest first

    @property
    def num_waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    @property
    def num_rows(self) -> int:
        """Rows in the engine or on their way to it."""
        return self._num_rows

    async def enter(
        self, group: object, num_rows: int = 1, session: str | None = None, timeout_s: float | None = None
    ) -> Place:
        """Wait for a place. Release it when the engine has finished with the prompt, whatever the outcome.

        Args:
            group: the HTTP request; all its prompts are admitted together.
            num_rows: rows of this prompt.
            session: the typing session; None: the request names none.
            timeout_s: the request's own time limit, after which it is refused even if others may wait longer.

        Raises:
            OverloadedError: no place became free in time.
            SupersededError: a newer request of the session came meanwhile.
            EngineStoppedError: the server is shutting down.
        """
        place = Place(self, asyncio.get_running_loop(), group, num_rows, session)
        if session is not None:
            self._supersede(session)
        if id(group) in self._waiting:
            await asyncio.shield(self._waiting[id(group)].admitted)
            self._take(place)
        elif self._goes_in(place):
            self._take(place)
        else:
            await self._wait(
                place, self._queue_timeout_s if timeout_s is None else min(timeout_s, self._queue_timeout_s)
            )
        return place

    def leave(self, place: Place) -> None:
        """Take a place back, and admit the newest requests of the queue. Other threads use `Place.release`."""
        if not place.is_taken:
            return
        place.is_taken = False
        self._num_rows -= place.num_rows
        _subtract(self._groups, id(place.group), place.num_rows)
        if place.session is not None:
            _subtract(self._sessions, place.session, 1)
            heir = self._waiter_of(place.session)
            if heir is not None and self._sessions[place.session] <= 1:
                self._let_in(heir)
        while self._waiting and self._has_room:
            self._let_in(next(reversed(self._waiting.values())))

    def close(self, message: str) -> None:
        """Refuse all queued requests, because the server is shutting down."""
        for waiter in list(self._waiting.values()):
            self._on_shed("shutdown")
            self._refuse(waiter, EngineStoppedError(message))

    @property
    def _has_room(self) -> bool:
        return self._num_places is None or self._num_rows < self._num_places

    def _goes_in(self, place: Place) -> bool:
        replaces = place.session is not None and self._sessions[place.session] == 1
        return self._has_room or id(place.group) in self._groups or replaces

    def _take(self, place: Place) -> None:
        place.is_taken = True
        self._num_rows += place.num_rows
        self._groups[id(place.group)] += place.num_rows
        if place.session is not None:
            self._sessions[place.session] += 1

    def _let_in(self, waiter: _Waiter) -> None:
        self._forget(waiter)
        self._take(waiter.place)
        if not waiter.admitted.done():  # else its client has just left, and `_wait` gives the place back
            waiter.admitted.set_result(None)

    async def _wait(self, place: Place, timeout_s: float) -> None:
        waiter = _Waiter(place, place.loop.create_future())
        if place.session is None or not self._sessions[place.session]:
            self._make_room_in_the_queue()
            waiter.timer = place.loop.call_later(timeout_s, self._shed, waiter, "queue_timeout")
        self._waiting[id(place.group)] = waiter
        try:
            await waiter.admitted
        except asyncio.CancelledError:
            self._forget(waiter)
            self.leave(place)  # if it was admitted just when its client left
            raise

    def _make_room_in_the_queue(self) -> None:
        others = [waiter for waiter in self._waiting.values() if waiter.timer is not None]
        if self._max_waiting == 0:
            self._on_shed("full")
            raise self._too_many()
        if len(others) >= self._max_waiting:
            self._shed(others[0], "full")

    def _waiter_of(self, session: str) -> _Waiter | None:
        return next((waiter for waiter in self._waiting.values() if waiter.place.session == session), None)

    def _supersede(self, session: str) -> None:
        older = self._waiter_of(session)
        if older is not None:
            self._refuse(older, SupersededError("A newer request of this session replaced this one."))

    def _shed(self, waiter: _Waiter, reason: str) -> None:
        self._on_shed(reason)
        self._refuse(waiter, self._too_many())

    def _refuse(self, waiter: _Waiter, error: Exception) -> None:
        self._forget(waiter)
        if not waiter.admitted.done():
            waiter.admitted.set_exception(error)

    def _forget(self, waiter: _Waiter) -> None:
        if waiter.timer is not None:
            waiter.timer.cancel()
        if self._waiting.get(id(waiter.place.group)) is waiter:
            del self._waiting[id(waiter.place.group)]

    def _too_many(self) -> OverloadedError:
        return OverloadedError(_FULL.format(self._num_rows), code="overloaded")


def _subtract(counter: Counter[KeyT], key: KeyT, count: int) -> None:
    counter[key] -= count
    if counter[key] <= 0:
        del counter[key]
