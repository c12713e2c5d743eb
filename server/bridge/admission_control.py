"""Admission control: which requests reach the engine under overload.

The engine has room for a fixed number of rows, and every row slows the others down. A prompt goes in if its rows fit
and if, at the measured cost of steps, neither its own answer nor one that is under way takes longer than the target
latency because of it. Otherwise it is queued, but only for a moment: a keystroke is worth nothing once the next one has
come, so a late refusal is as useless as a late answer. All of this runs on the event loop and does not wait for the
engine's steps. Waiting happens here and nowhere else: what goes in has its rows.

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
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from superdraft.decoding.errors import EngineStoppedError, SupersededError
from superdraft.server.bridge.fair_shares import FairShares
from superdraft.server.bridge.step_costs import Pace, StepCosts
from superdraft.server.edge.refusals import OverloadedError

RESERVE_SHARE = 16
LONG_FACTOR = 2
"""A request is long if it takes more than this part of the target alone; long requests slow down by this much."""

LATE_FACTOR = 1.2
"""A request may be delayed by others up to this many times the target: else nobody could go in beside a full load."""

_GROUP_SHARE = 8  # a request that has rows leaves this part of the places, at least one, to others
_RETRY_S = (1.0, 60.0)  # least and most that a refused client is told to wait
_FULL = (
    "The server is full: it is running {} rows, and another request would not be answered in time. Send the next "
    "keystroke, not this one again."
)


def places_of(num_slots: int) -> int:
    """Rows to admit for this many slots: a few more if there are many, so that a free slot is used in the next step."""
    return num_slots + num_slots // RESERVE_SHARE


@dataclass(eq=False, slots=True)
class Place:
    """Permission to use the engine for one prompt, until it is released.

    Attributes:
        num_rows: most rows of the prompt's drafts.
        num_tokens: most tokens of a draft.
        is_added: whether the engine has heard of it.
    """

    control: "AdmissionControl"
    loop: asyncio.AbstractEventLoop
    group: "_Group"
    num_rows: int
    num_tokens: int
    session: str | None
    is_taken: bool = False
    is_added: bool = False
    is_long: bool = False
    begun_s: float = 0.0
    last_round: float = 0.0

    def release(self) -> None:
        """Give the place back. Any thread may call this, more than once."""
        with contextlib.suppress(RuntimeError):  # the loop is closed, so no request waits
            self.loop.call_soon_threadsafe(self.control.leave, self)


@dataclass(eq=False, slots=True)
class _Waiter:
    place: Place
    admitted: asyncio.Future[None]


@dataclass(eq=False, slots=True)
class _Group:
    """An HTTP request. Its prompts are admitted one by one; once the first is, the others have no deadline."""

    request: object  # told apart by identity; held here, so that no other gets the same
    number: int
    caller: str
    session: str | None
    num_rows: int = 0
    num_places: int = 0
    is_begun: bool = False
    waiting: deque[_Waiter] = field(default_factory=deque)
    timer: asyncio.TimerHandle | None = None


class AdmissionControl:
    """Counts the rows in the engine, and refuses requests beyond its capacity. For one event loop.

    Args:
        num_places: rows in the engine at once; None: no limit.
        max_waiting: length of the queue; one more, and the oldest request is refused, of the caller with the most
            requests in the queue. Requests that have begun or replace another one of their session are not counted.
        queue_timeout_s: seconds in the queue after which a request is refused.
        target_latency_s: seconds that a request may spend in the engine.
        on_shed: called with the reason for every request that is refused.

    Attributes:
        costs: of the engine's steps; the engine's thread keeps them up to date.
    """

    def __init__(
        self,
        num_places: int | None = None,
        max_waiting: int = 64,
        queue_timeout_s: float = 0.025,
        target_latency_s: float = math.inf,
        on_shed: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.costs = StepCosts()
        self._num_places = num_places
        self._max_waiting = max_waiting
        self._queue_timeout_s = queue_timeout_s
        self._target_s = target_latency_s
        self._on_shed = on_shed
        self._num_rows = 0
        self._shares = FairShares(0 if num_places is None else num_places // 2)
        self._places: set[Place] = set()
        self._groups: dict[int, _Group] = {}  # by the identity of the request
        self._numbers = itertools.count()
        self._sessions: dict[str, list[Place]] = {}  # in the engine, oldest first
        self._next: dict[str, _Waiter] = {}  # the request of a session that waits, if one does
        self._heirs: dict[str, _Waiter] = {}  # those of them that replace one in the engine

    @property
    def num_waiting(self) -> int:
        """Requests in the queue, and those with a prompt there."""
        return sum(bool(group.waiting) for group in self._groups.values()) + len(self._heirs)

    @property
    def num_rows(self) -> int:
        """Rows in the engine or on their way to it."""
        return self._num_rows

    async def enter(
        self,
        request: object,
        num_rows: int = 1,
        num_tokens: int = 0,
        *,
        caller: str = "",
        session: str | None = None,
        timeout_s: float | None = None,
    ) -> Place:
        """Wait for a place. Release it when the engine has finished with the prompt, whatever the outcome.

        Args:
            request: the HTTP request, which may have several prompts.
            num_rows: rows of this prompt.
            num_tokens: most tokens of its drafts.
            caller: who sent the request.
            session: the typing session; None: the request names none.
            timeout_s: the request's own time limit, after which it is refused even if others may wait longer.

        Raises:
            OverloadedError: no place became free in time.
            SupersededError: a newer request of the session came meanwhile.
            EngineStoppedError: the server is shutting down.
        """
        loop = asyncio.get_running_loop()
        group = self._groups.get(id(request))
        if group is None:
            group = self._groups[id(request)] = _Group(request, next(self._numbers), caller, session)
            self._shares.ask(caller, session, num_rows, loop.time())
        place = Place(self, loop, group, num_rows, num_tokens, session)
        if session is not None:
            self._supersede(session)
        if self._replaces_one(place):
            self._take(place)
            return place
        waiter = _Waiter(place, loop.create_future())
        group.waiting.append(waiter)
        if session is not None:
            self._next[session] = waiter
        self._let_in_who_fits()
        if session is not None and not place.is_taken and self._needs_no_more(place):
            group.waiting.remove(waiter)
            self._heirs[session] = waiter
        elif group.waiting and not group.is_begun and group.timer is None:
            limit_s = self._queue_timeout_s if timeout_s is None else min(timeout_s, self._queue_timeout_s)
            group.timer = loop.call_later(limit_s, self._shed, group, "queue_timeout")
            self._shorten_the_queue()
        await self._admitted(waiter)
        return place

    def leave(self, place: Place) -> None:
        """Take a place back, and admit others. Other threads use `Place.release`."""
        if not place.is_taken:
            return
        place.is_taken = False
        group, session = place.group, place.session
        self._num_rows -= place.num_rows
        self._places.remove(place)
        self._shares.add(group.caller, group.session, -place.num_rows)
        group.num_rows -= place.num_rows
        group.num_places -= 1
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

    def _let_in_who_fits(self) -> None:
        while (waiter := self._next_that_fits()) is not None:
            self._let_in(waiter)

    def _next_that_fits(self) -> _Waiter | None:
        alike = set()  # what does not fit; under overload most requests are alike, and each check takes time
        for group in sorted((group for group in self._groups.values() if group.waiting), key=self._rank):
            waiter = group.waiting[0]
            place = waiter.place
            kind = (group.caller, group.session, bool(group.num_rows), group.is_begun, place.num_rows, place.num_tokens)
            if kind in alike:
                continue
            if self._fits(place):
                return waiter
            if self._is_next(place):
                return None
            alike.add(kind)
        return None

    def _rank(self, group: _Group) -> tuple[int, ...]:
        age = group.number if group.is_begun else -group.number
        return *self._shares.rank(group.caller, group.session), group.num_rows, not group.is_begun, age

    def _is_next(self, place: Place) -> bool:
        """Whether others must not overtake this one: its room will be free soon.

        That is not so while long requests have it; and a new long request would be refused before.
        """
        if self._is_long(place):
            return place.group.is_begun and self._has_room_among_long_ones(place)
        return self._has_room(place, self._long_rows(), 0)

    def _fits(self, place: Place) -> bool:
        if self._num_places is None or not self._num_rows:
            return True
        if place.num_rows > self._num_places:
            return True  # the engine says that this is more than it has
        kept_rows, num_kept = self._kept_for_others(place)
        rows = self._num_rows + kept_rows
        if self._is_long(place):
            has_room = self._has_room_among_long_ones(place) and rows + place.num_rows <= self._num_places
        else:
            has_room = self._has_room(place, rows, self._num_prompts + num_kept)
        return has_room and not self._delays_another(rows + place.num_rows)

    def _has_room(self, place: Place, rows: int, num_prompts: int) -> bool:
        """Whether a short request fits, and is answered in time, beside this many rows and behind so many prompts."""
        assert self._num_places is not None
        pace, num_prefills = self.costs.pace(rows + place.num_rows), self._num_prefills(num_prompts + 1)
        is_in_time = pace.stay_s(num_prefills, place.num_tokens) <= self._target_s
        return rows + place.num_rows <= self._num_places and is_in_time

    def _has_room_among_long_ones(self, place: Place) -> bool:
        assert self._num_places is not None
        others = self._long_rows()
        rows = others + place.num_rows
        pace, num_prefills = self.costs.pace(rows, has_prompts=False), self._num_prefills(self._num_prompts + 1)
        is_in_time = pace.stay_s(num_prefills, place.num_tokens) <= LONG_FACTOR * self._alone_s(place)
        return rows <= max(1, self._num_places // LONG_FACTOR) and (is_in_time or not others)

    def _kept_for_others(self, place: Place) -> tuple[int, int]:
        """Rows and requests for which a request must leave room."""
        assert self._num_places is not None
        group = place.group
        rows, num_requests = self._shares.kept_for_others(group.caller, group.session, place.loop.time())
        if group.num_rows:
            rows = max(rows, 1, self._num_places // _GROUP_SHARE)
            num_requests = max(num_requests, 1)
        return rows, num_requests

    def _delays_another(self, rows: int) -> bool:
        """Whether a short request that would not be late would be with this many rows."""
        now, then, late_s = self.costs.pace(self._num_rows), self.costs.pace(rows), LATE_FACTOR * self._target_s
        return any(
            self._end_s(place, now) <= late_s < self._end_s(place, then) for place in self._places if not place.is_long
        )

    def _end_s(self, place: Place, pace: Pace) -> float:
        """Seconds from a prompt's admission to its answer, at this pace from now on."""
        return place.loop.time() - place.begun_s + self._rest_s(place, pace)

    def _rest_s(self, place: Place, pace: Pace) -> float:
        return max(0.0, place.last_round - self.costs.num_rounds) * pace.round_s

    def _is_long(self, place: Place) -> bool:
        return LONG_FACTOR * self._alone_s(place) > self._target_s

    def _alone_s(self, place: Place) -> float:
        return self.costs.pace_alone(place.num_rows).stay_s(self._num_prefills(1), place.num_tokens)

    def _long_rows(self) -> int:
        return sum(place.num_rows for place in self._places if place.is_long)

    @property
    def _num_prompts(self) -> int:
        """Prompts in the engine and on their way there that have not been run."""
        return self.costs.num_waiting + sum(not place.is_added for place in self._places)

    def _num_prefills(self, num_prompts: int) -> float:
        return num_prompts * self.costs.prefills_per_request

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
        return older[-1].is_long or not self._is_long(place)

    # The queue

    def _take(self, place: Place) -> None:
        group = place.group
        place.is_taken = group.is_begun = True
        place.is_long = self._is_long(place)
        place.begun_s = place.loop.time()
        num_rounds = self._num_prefills(self._num_prompts + 1) + place.num_tokens
        place.last_round = self.costs.num_rounds + num_rounds
        self._num_rows += place.num_rows
        self._places.add(place)
        self._shares.add(group.caller, group.session, place.num_rows)
        group.num_rows += place.num_rows
        group.num_places += 1
        if group.timer is not None:
            group.timer.cancel()
        if place.session is not None:
            self._sessions.setdefault(place.session, []).append(place)

    def _let_in(self, waiter: _Waiter) -> None:
        self._take(waiter.place)
        self._remove(waiter)
        if not waiter.admitted.done():  # else its client has just left, and `_admitted` gives the place back
            waiter.admitted.set_result(None)

    async def _admitted(self, waiter: _Waiter) -> None:
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

    def _shed(self, group: _Group, reason: str) -> None:
        self._on_shed(reason)
        for waiter in list(group.waiting):
            self._refuse(waiter, self._too_many())
        self._let_in_who_fits()

    def _refuse(self, waiter: _Waiter, error: Exception) -> None:
        self._remove(waiter)
        if not waiter.admitted.done():
            waiter.admitted.set_exception(error)

    def _remove(self, waiter: _Waiter) -> None:
        """Take a waiter out of the queue, if it is there."""
        group, session = waiter.place.group, waiter.place.session
        with contextlib.suppress(ValueError):
            group.waiting.remove(waiter)
        if session is not None and self._next.get(session) is waiter:
            del self._next[session]
            self._heirs.pop(session, None)
        self._forget_if_over(group)

    def _forget_if_over(self, group: _Group) -> None:
        if group.waiting or group.num_places:
            return
        if group.timer is not None:
            group.timer.cancel()
        if self._groups.get(id(group.request)) is group:
            del self._groups[id(group.request)]

    def _too_many(self) -> OverloadedError:
        return OverloadedError(_FULL.format(self._num_rows), code="overloaded", retry_after_s=self._retry_after_s())

    def _retry_after_s(self) -> float:
        """Seconds until the first of the running prompts is answered."""
        pace = self.costs.pace(self._num_rows)
        soonest = min((self._rest_s(place, pace) for place in self._places), default=0.0)
        return min(max(soonest, _RETRY_S[0]), _RETRY_S[1])
