"""Admission: which requests reach the engine under overload.

The engine has room for a fixed number of rows, and every row slows the others down. A prompt goes in if its rows fit
and if, at the measured cost of steps, neither its own answer nor one that is under way takes longer than the target
latency because of it (see `Room`). Otherwise it is queued, but only for a moment: a keystroke is worth nothing once the
next one has come, so a late refusal is as useless as a late answer. All of this runs on the event loop and does not
wait for the engine's steps. Waiting happens here and nowhere else: what goes in has its rows.

*Whose turn it is.* The one whose caller has the fewest rows in the engine, then whose session, then whose request.
Among equals a request that has begun goes before a new one, and the newest before the others (adaptive LIFO with a
short deadline, as in Maurer, "Fail at Scale", ACM Queue 13(8), 2015). So the prompts of a large request go in by turns
with those of others, and admitted requests have hardly waited. Whoever has rows also leaves room for others.

*Long requests*, which would take more than half the target even alone, have another limit: together they hold at most
half the slots, and make each other at most twice as slow. So a short request is in time even with them.

*A request that replaces an older one of its session* goes in at once, if it needs no more rows: they are given back
at the engine's next step. If the engine has not yet ended the request before that one, the new request waits for it,
however long the engine's step takes. So a session never has more than two requests in the engine and one in the queue.
"""

import asyncio
import itertools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

from superdraft.decoding.engine.load import Load
from superdraft.decoding.errors import EngineStoppedError
from superdraft.server.bridge.room import Room
from superdraft.server.bridge.typists import Group, Ticket, Typist, superseded
from superdraft.server.edge.refusals import OverloadedError

_RETRY_S = (1.0, 60.0)  # least and most that a refused client is told to wait
_FULL = (
    "The server is full: it is running {} rows, and another request would not be answered in time. Send the next "
    "keystroke, not this one again."
)


class Admission:
    """Counts the rows in the engine, and refuses requests beyond its capacity. For one event loop.

    Args:
        num_slots: slots in the engine that are given away.
        max_waiting: length of the queue; one more, and the oldest request is refused, of the caller with the most
            requests in the queue. Requests that have begun or replace another one of their session are not counted.
        queue_timeout_s: seconds in the queue after which a request is refused.
        target_latency_s: seconds that a request may spend in the engine.
        on_shed: called with the reason for every request that is refused.
        load: the engine's, which says what steps cost.

    Attributes:
        typists: of all requests.
    """

    def __init__(
        self,
        num_slots: int = 1 << 20,
        max_waiting: int = 64,
        queue_timeout_s: float = 0.025,
        target_latency_s: float = math.inf,
        on_shed: Callable[[str], None] = lambda _: None,
        load: Load | None = None,
    ) -> None:
        self._room = Room(num_slots, target_latency_s, load or Load())
        self.typists = self._room.typists
        self._max_waiting = max_waiting
        self._queue_timeout_s = queue_timeout_s
        self._on_shed = on_shed
        self._groups: dict[int, Group] = {}  # by the identity of the request
        self._numbers = itertools.count()
        self._heirs: set[Ticket] = set()  # those in the queue that replace a request in the engine
        self._searched: tuple[int, int] | None = None  # the room's state when no request in the queue went in
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
        typist: Typist,
        num_rows: int = 1,
        num_tokens: int = 0,
        num_slots: int = 1,
        *,
        deadline_s: float | None = None,
        is_warm_up: bool = False,
    ) -> Ticket:
        """Wait for a ticket. Release it when the engine has finished with the prompt, whatever the outcome.

        Args:
            request: the HTTP request, which may have several prompts.
            typist: of whom it comes.
            num_rows: rows of this prompt.
            num_tokens: most tokens of its drafts.
            num_slots: KV-cache slots that it takes.
            deadline_s: the request's own, on the loop's clock, at which it is refused even if others may wait longer.
            is_warm_up: it gives way to all others in the engine.

        Raises:
            OverloadedError: no ticket became free in time.
            SupersededError: a newer request of the session came meanwhile.
            EngineStoppedError: the server is shutting down.
        """
        loop = asyncio.get_running_loop()
        group = self._groups.get(id(request))
        if group is None:
            group = self._groups[id(request)] = Group(request, next(self._numbers), typist)
            for share in (typist, typist.caller):
                share.asked_s, share.asked_rows = loop.time(), num_rows
        ticket = Ticket(self.leave, group, num_rows, num_tokens, num_slots, is_warm_up, loop, loop.create_future())
        if typist.waiter is not None:
            self._refuse(typist.waiter, superseded())
        if len(typist.tickets) == 1 and self._needs_no_more(ticket):
            self._let_in(ticket)
            return ticket
        group.waiting.append(ticket)
        if typist.session:
            typist.waiter = ticket
        self._let_in_who_fits(ticket)
        if not ticket.is_taken and self._needs_no_more(ticket):
            group.waiting.remove(ticket)
            self._heirs.add(ticket)
        elif group.waiting and not group.is_begun and group.timer is None:
            limit_s = min(loop.time() + self._queue_timeout_s, math.inf if deadline_s is None else deadline_s)
            group.timer = loop.call_at(limit_s, self._shed, group, "queue_timeout")
            self._shorten_the_queue()
        try:
            await ticket.admitted
        except asyncio.CancelledError:
            self._remove(ticket)
            self.leave(ticket)  # if it was admitted just when its client left
            self._let_in_who_fits()  # it may have been in the way of others
            raise
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Take a ticket back, and admit others. Other threads use `Ticket.release`."""
        if not ticket.is_taken:
            return
        typist = ticket.typist
        self._room.give_back(ticket)
        self._forget_if_over(ticket.group)
        if typist.session:
            typist.tickets.remove(ticket)
            heir = typist.waiter
            if heir is not None and heir in self._heirs and len(typist.tickets) <= 1:
                self._let_in(heir)
        self._let_in_who_fits()

    def close(self, message: str) -> None:
        """Refuse everything in the queue, because the server is shutting down."""
        for ticket in [*self._heirs, *(one for group in self._groups.values() for one in group.waiting)]:
            self._on_shed("shutdown")
            self._refuse(ticket, EngineStoppedError(message))

    # Who goes in

    def _let_in_who_fits(self, newest: Ticket | None = None) -> None:
        """Let in all who fit. `newest` has just joined the queue; it alone is looked at if nothing else has changed."""
        if newest is not None and self._searched == self._room.stamp:
            if self._comes_next(newest):
                self._let_in(newest)
            return
        while (ticket := self._next_that_fits()) is not None:
            self._let_in(ticket)

    def _next_that_fits(self) -> Ticket | None:
        self._searched, self._blocking = self._room.stamp, None
        self._alike = set()  # what does not fit; under overload most requests are alike, and each check takes time
        for group in sorted((group for group in self._groups.values() if group.waiting), key=self._rank):
            ticket = group.waiting[0]
            if self._may_go_in(ticket):
                return ticket
            if self._note_refusal(ticket):
                return None
        return None

    def _comes_next(self, ticket: Ticket) -> bool:
        """Whether a new request goes in, though no other one in the queue does."""
        group, blocking = ticket.group, self._blocking
        is_first = group.waiting[0] is ticket
        if blocking is not None and blocking.waiting:
            is_first &= self._rank(blocking) >= self._rank(group)
        if is_first and not self._may_go_in(ticket):
            self._note_refusal(ticket)
            return False
        return is_first

    def _may_go_in(self, ticket: Ticket) -> bool:
        return _kind(ticket) not in self._alike and self._room.fits(ticket)

    def _note_refusal(self, ticket: Ticket) -> bool:
        """Note that a prompt does not fit, so that others like it are not looked at; whether all others must wait."""
        if _kind(ticket) not in self._alike and self._room.is_next(ticket):
            self._blocking = ticket.group
            return True
        self._alike.add(_kind(ticket))
        return False

    def _rank(self, group: Group) -> tuple[int, ...]:
        age = group.number if group.is_begun else -group.number
        return group.typist.caller.num_rows, group.typist.num_rows, group.num_rows, not group.is_begun, age

    def _needs_no_more(self, ticket: Ticket) -> bool:
        """Whether a request needs no more than the latest one of its session in the engine."""
        older = ticket.typist.tickets
        if not older or ticket.num_rows > older[-1].num_rows:
            return False
        return older[-1].is_long or not self._room.is_long(ticket)

    # The queue

    def _let_in(self, ticket: Ticket) -> None:
        group = ticket.group
        group.is_begun = True
        self._room.take(ticket)
        if group.timer is not None:
            group.timer.cancel()
        if ticket.typist.session:
            ticket.typist.tickets.append(ticket)
        self._remove(ticket)
        if not ticket.admitted.done():  # else its client has just left, and `enter` gives the ticket back
            ticket.admitted.set_result(None)

    def _shorten_the_queue(self) -> None:
        """Refuse the oldest request of the caller with the most, if there are too many."""
        new = [group for group in self._groups.values() if group.waiting and not group.is_begun]
        if len(new) > self._max_waiting:
            counts = Counter(group.typist.caller.name for group in new)
            most = max(counts.values())
            self._shed(next(group for group in new if counts[group.typist.caller.name] == most), "full")

    def _shed(self, group: Group, reason: str) -> None:
        self._on_shed(reason)
        seconds = min(max(self._room.first_end_s(), _RETRY_S[0]), _RETRY_S[1])
        for ticket in list(group.waiting):
            error = OverloadedError(_FULL.format(self.num_rows), code="overloaded", retry_after_s=seconds)
            self._refuse(ticket, error)
        if self._blocking is group or self._searched != self._room.stamp:
            self._let_in_who_fits()

    def _refuse(self, ticket: Ticket, error: Exception) -> None:
        self._remove(ticket)
        if not ticket.admitted.done():
            ticket.admitted.set_exception(error)

    def _remove(self, ticket: Ticket) -> None:
        """Take a prompt out of the queue, if it is there."""
        if ticket in ticket.group.waiting:
            ticket.group.waiting.remove(ticket)
        self._heirs.discard(ticket)
        if ticket.typist.waiter is ticket:
            ticket.typist.waiter = None
        self._forget_if_over(ticket.group)

    def _forget_if_over(self, group: Group) -> None:
        if group.waiting or group.num_tickets:
            return
        if group.timer is not None:
            group.timer.cancel()
        if self._groups.get(id(group.request)) is group:
            del self._groups[id(group.request)]


def _kind(ticket: Ticket) -> tuple[Any, ...]:
    """Prompts of one kind fit or do not fit together."""
    group = ticket.group
    return group.typist, bool(group.num_rows), group.is_begun, ticket.num_rows, ticket.num_tokens
