"""Admission control: which requests reach the engine under overload.

The engine has room for a fixed number of rows, and every row slows the others down. A prompt goes in if its rows fit
and if, at the measured cost of steps, neither its own answer nor one that is under way takes longer than the target
latency because of it (see `Room`). Otherwise it is queued, but only for a moment: a keystroke is worth nothing once the
next one has come, so a late refusal is as useless as a late answer. All of this runs on the event loop and does not
wait for the engine's steps. Waiting happens here and nowhere else: what goes in has its rows.

*Whose turn it is.* The one whose caller has the fewest rows in the engine, then whose session, then whose request.
Among equals a request that has begun goes before a new one, and the newest before the others (adaptive LIFO with a
short deadline, as in Maurer, "Fail at Scale", ACM Queue 13(8), 2015). So the prompts of a large request go in by turns
with those of others, and admitted requests have hardly waited. Whoever has rows also leaves room for others, see
`FairShares`.

*Long requests*, which would take more than half the target even alone, have another limit: together they hold at most
half the places, and make each other at most twice as slow. So a short request finds its time beside them.

*A request that replaces an older one of its session* goes in at once, if it needs no more rows: they are given back
at the engine's next step. If the engine has not yet ended the request before that one, the new request waits for it,
however long the engine's step takes. So a session never has more than two requests in the engine and one in the queue.
"""

import asyncio
import contextlib
import itertools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

from superdraft.decoding.engine.load import Load
from superdraft.decoding.errors import EngineStoppedError, SupersededError
from superdraft.server.bridge.places import Group, Place, Waiter
from superdraft.server.bridge.room import Room
from superdraft.server.edge.refusals import OverloadedError

_RETRY_S = (1.0, 60.0)  # least and most that a refused client is told to wait
_FULL = (
    "The server is full: it is running {} rows, and another request would not be answered in time. Send the next "
    "keystroke, not this one again."
)


class AdmissionControl:
    """Counts the rows in the engine, and refuses requests beyond its capacity. For one event loop.

    Args:
        num_places: slots in the engine that are given away; None: no limit.
        max_waiting: length of the queue; one more, and the oldest request is refused, of the caller with the most
            requests in the queue. Requests that have begun or replace another one of their session are not counted.
        queue_timeout_s: seconds in the queue after which a request is refused.
        target_latency_s: seconds that a request may spend in the engine.
        on_shed: called with the reason for every request that is refused.
        load: the engine's, which says what steps cost.
    """

    def __init__(
        self,
        num_places: int | None = None,
        max_waiting: int = 64,
        queue_timeout_s: float = 0.025,
        target_latency_s: float = math.inf,
        on_shed: Callable[[str], None] = lambda _: None,
        load: Load | None = None,
    ) -> None:
        self._room = Room(num_places, target_latency_s, load or Load())
        self._max_waiting = max_waiting
        self._queue_timeout_s = queue_timeout_s
        self._on_shed = on_shed
        self._groups: dict[int, Group] = {}  # by the identity of the request
        self._numbers = itertools.count()
        self._sessions: dict[str, list[Place]] = {}  # in the engine, oldest first
        self._next: dict[str, Waiter] = {}  # the request of a session that waits, if one does
        self._heirs: dict[str, Waiter] = {}  # those of them that replace one in the engine
        self._searched: tuple[int, int] | None = None  # the room's state when nobody in the queue went in
        self._alike: set[tuple[Any, ...]] = set()  # kinds of requests that did not fit then
        self._blocking: Group | None = None  # the one that the others had to wait for

    @property
    def num_waiting(self) -> int:
        """Requests with a prompt in the queue."""
        return sum(bool(group.waiting) for group in self._groups.values()) + len(self._heirs)

    @property
    def num_rows(self) -> int:
        """Rows in the engine or on their way to it."""
        return self._room.num_rows

    async def enter(
        self,
        request: object,
        num_rows: int = 1,
        num_tokens: int = 0,
        num_slots: int = 1,
        *,
        caller: str = "",
        session: str | None = None,
        deadline_s: float | None = None,
        is_warm_up: bool = False,
    ) -> Place:
        """Wait for a place. Release it when the engine has finished with the prompt, whatever the outcome.

        Args:
            request: the HTTP request, which may have several prompts.
            num_rows: rows of this prompt.
            num_tokens: most tokens of its drafts.
            num_slots: KV-cache slots that it takes.
            caller: who sent the request.
            session: the typing session; None: the request names none.
            deadline_s: the request's own, on the loop's clock, at which it is refused even if others may wait longer.
            is_warm_up: it gives way to all others in the engine.

        Raises:
            OverloadedError: no place became free in time.
            SupersededError: a newer request of the session came meanwhile.
            EngineStoppedError: the server is shutting down.
        """
        loop = asyncio.get_running_loop()
        group = self._groups.get(id(request))
        if group is None:
            group = self._groups[id(request)] = Group(request, next(self._numbers), caller, session)
            self._room.shares.ask(caller, session, num_rows, loop.time())
        place = Place(self.leave, loop, group, num_rows, num_tokens, num_slots, session)
        place.is_warm_up = is_warm_up
        if session is not None:
            self._supersede(session)
        if self._replaces_one(place):
            self._take(place)
            return place
        waiter = Waiter(place, loop.create_future())
        group.waiting.append(waiter)
        if session is not None:
            self._next[session] = waiter
        self._let_in_who_fits(waiter)
        if session is not None and not place.is_taken and self._needs_no_more(place):
            group.waiting.remove(waiter)
            self._heirs[session] = waiter
        elif group.waiting and not group.is_begun and group.timer is None:
            limit_s = min(loop.time() + self._queue_timeout_s, math.inf if deadline_s is None else deadline_s)
            group.timer = loop.call_at(limit_s, self._shed, group, "queue_timeout")
            self._shorten_the_queue()
        await self._admitted(waiter)
        return place

    def leave(self, place: Place) -> None:
        """Take a place back, and admit others. Other threads use `Place.release`."""
        if not place.is_taken:
            return
        place.is_taken = False
        group, session = place.group, place.session
        self._room.give_back(place)
        self._forget_if_over(group)
        if session is not None:
            older = self._sessions[session]
            older.remove(place)
            if not older:
                del self._sessions[session]
            if session in self._heirs and len(older) <= 1:
                self._let_in(self._heirs[session])
        self._let_in_who_fits()

    def close(self, message: str) -> None:
        """Refuse everything in the queue, because the server is shutting down."""
        for waiter in [*self._heirs.values(), *(one for group in self._groups.values() for one in group.waiting)]:
            self._on_shed("shutdown")
            self._refuse(waiter, EngineStoppedError(message))

    # Who goes in

    def _let_in_who_fits(self, newest: Waiter | None = None) -> None:
        """Let in all who fit. `newest` has just joined the queue; it alone is looked at if nothing else has changed."""
        if newest is not None and self._searched == self._room.stamp:
            if self._comes_next(newest):
                self._let_in(newest)
            return
        while (waiter := self._next_that_fits()) is not None:
            self._let_in(waiter)

    def _next_that_fits(self) -> Waiter | None:
        self._searched, self._blocking = self._room.stamp, None
        self._alike = set()  # what does not fit; under overload most requests are alike, and each check takes time
        for group in sorted((group for group in self._groups.values() if group.waiting), key=self._rank):
            if self._may_go_in(group):
                return group.waiting[0]
            if self._is_blocked:
                return None
        return None

    @property
    def _is_blocked(self) -> bool:
        return self._blocking is not None

    def _comes_next(self, waiter: Waiter) -> bool:
        """Whether a new request goes in, though no other one in the queue does."""
        group = waiter.place.group
        if group.waiting[0] is not waiter:
            return False
        blocking = self._blocking
        if blocking is not None and blocking.waiting and self._rank(blocking) < self._rank(group):
            return False
        return self._may_go_in(group)

    def _may_go_in(self, group: Group) -> bool:
        """Whether the first prompt of a request fits. If not, notes what may not go in either."""
        place = group.waiting[0].place
        kind = (group.caller, group.session, bool(group.num_rows), group.is_begun, place.num_rows, place.num_tokens)
        if kind in self._alike:
            return False
        if self._room.fits(place):
            return True
        if self._room.is_next(place):
            self._blocking = group
        else:
            self._alike.add(kind)
        return False

    def _rank(self, group: Group) -> tuple[int, ...]:
        age = group.number if group.is_begun else -group.number
        return *self._room.shares.rank(group.caller, group.session), group.num_rows, not group.is_begun, age

    def _replaces_one(self, place: Place) -> bool:
        """Whether a request goes in at once in place of the only one of its session."""
        return (
            place.session is not None and len(self._sessions.get(place.session, ())) == 1 and self._needs_no_more(place)
        )

    def _needs_no_more(self, place: Place) -> bool:
        """Whether a request needs no more than the latest one of its session in the engine."""
        older = [] if place.session is None else self._sessions.get(place.session)
        if not older or place.num_rows > older[-1].num_rows:
            return False
        return older[-1].is_long or not self._room.is_long(place)

    # The queue

    def _take(self, place: Place) -> None:
        group = place.group
        place.is_taken = group.is_begun = True
        self._room.take(place)
        if group.timer is not None:
            group.timer.cancel()
        if place.session is not None:
            self._sessions.setdefault(place.session, []).append(place)

    def _let_in(self, waiter: Waiter) -> None:
        self._take(waiter.place)
        self._remove(waiter)
        if not waiter.admitted.done():  # else its client has just left, and `_admitted` gives the place back
            waiter.admitted.set_result(None)

    async def _admitted(self, waiter: Waiter) -> None:
        try:
            await waiter.admitted
        except asyncio.CancelledError:
            self._remove(waiter)
            self.leave(waiter.place)  # if it was admitted just when its client left
            self._let_in_who_fits()  # it may have been in the way of others
            raise

    def _shorten_the_queue(self) -> None:
        """Refuse the oldest request of the caller with the most, if there are too many."""
        new = [group for group in self._groups.values() if group.waiting and not group.is_begun]
        if len(new) > self._max_waiting:
            counts = Counter(group.caller for group in new)
            most = max(counts.values())
            self._shed(next(group for group in new if counts[group.caller] == most), "full")

    def _supersede(self, session: str) -> None:
        older = self._next.get(session)
        if older is not None:
            self._refuse(older, SupersededError("A newer request of this session replaced this one."))

    def _shed(self, group: Group, reason: str) -> None:
        self._on_shed(reason)
        for waiter in list(group.waiting):
            self._refuse(waiter, self._too_many())
        if self._blocking is group or self._searched != self._room.stamp:
            self._let_in_who_fits()

    def _refuse(self, waiter: Waiter, error: Exception) -> None:
        self._remove(waiter)
        if not waiter.admitted.done():
            waiter.admitted.set_exception(error)

    def _remove(self, waiter: Waiter) -> None:
        """Take a waiter out of the queue, if it is there."""
        group, session = waiter.place.group, waiter.place.session
        with contextlib.suppress(ValueError):
            group.waiting.remove(waiter)
        if session is not None and self._next.get(session) is waiter:
            del self._next[session]
            self._heirs.pop(session, None)
        self._forget_if_over(group)

    def _forget_if_over(self, group: Group) -> None:
        if group.waiting or group.num_places:
            return
        if group.timer is not None:
            group.timer.cancel()
        if self._groups.get(id(group.request)) is group:
            del self._groups[id(group.request)]

    def _too_many(self) -> OverloadedError:
        seconds = min(max(self._room.first_end_s(), _RETRY_S[0]), _RETRY_S[1])
        return OverloadedError(_FULL.format(self.num_rows), code="overloaded", retry_after_s=seconds)
