"""Room in the engine: which prompts fit into its slots and are answered in time, with those that are there."""

from superdraft.decoding.engine.load import Load
from superdraft.server.bridge.typists import Ticket, Typists

LONG_FACTOR = 2
"""A request is long if it takes more than this part of the target alone. Long requests slow down by this much if they
could not be answered within the target even alone."""

LATE_FACTOR = 1.2
"""A request may be delayed by others up to this many times the target, if it could be answered within the target alone:
else no request could join a full load."""

_RESERVE_SHARE = 16
_GROUP_SHARE = 8
"""A request that has rows leaves this part of the slots, at least one, to others. Warm-ups have no more than this."""


def places_of(num_slots: int) -> int:
    """Slots to give away of this many: a few more if there are many, so that a free slot is used in the next step."""
    return num_slots + num_slots // _RESERVE_SHARE


class Room:
    """The prompts in the engine, and what they leave for others. For one event loop.

    Args:
        most_slots: slots to give away.
        target_s: seconds that a request may spend in the engine.
        load: the engine's, which says what steps cost.

    Attributes:
        typists: who has rows, and who asked for some not long ago.
        num_rows: of the prompts in the engine or on their way to it.
        num_slots: theirs.
    """

    def __init__(self, most_slots: int, target_s: float, load: Load) -> None:
        self.typists = Typists()
        self.num_rows = self.num_slots = self._num_changes = 0
        self._most_slots = most_slots
        self._group_share = max(1, most_slots // _GROUP_SHARE)
        self._target_s = target_s
        self._load = load
        self._tickets: set[Ticket] = set()

    def take(self, ticket: Ticket) -> None:
        """Note that a prompt goes in."""
        ticket.is_taken, ticket.is_long, ticket.begun_s = True, self.is_long(ticket), ticket.loop.time()
        ticket.last_step = self._load.num_steps + self._num_steps(self._num_prompts + 1) + ticket.num_tokens
        self._tickets.add(ticket)
        self._count(ticket, 1)

    def give_back(self, ticket: Ticket) -> None:
        """Note that a prompt has left."""
        ticket.is_taken = False
        self._tickets.remove(ticket)
        self._count(ticket, -1)

    def _count(self, ticket: Ticket, sign: int) -> None:
        rows = sign * ticket.num_rows
        self.num_rows += rows
        self.num_slots += sign * ticket.num_slots
        ticket.group.num_rows += rows
        ticket.group.num_tickets += sign
        ticket.typist.num_rows += rows
        ticket.typist.caller.num_rows += rows
        self._num_changes += 1

    @property
    def stamp(self) -> tuple[int, int]:
        """Changes when a prompt may fit that did not fit before."""
        return self._num_changes, self._load.num_steps

    def fits(self, ticket: Ticket) -> bool:
        """Whether a prompt may go in now."""
        if not self.num_slots or ticket.num_slots > self._most_slots:
            return True  # the engine says that this is more than it has
        num_warm_ups = sum(each.is_warm_up for each in self._tickets)
        if ticket.is_warm_up:
            return self._has_slots(ticket, self.num_slots) and num_warm_ups < self._group_share
        if num_warm_ups == len(self._tickets) < self._most_slots:
            return True  # they give way, so it is alone
        kept_rows, num_kept = self._kept_for_others(ticket)
        rows, slots = self.num_rows + kept_rows, self.num_slots + num_kept
        if self.is_long(ticket):
            has_room = self._has_room_among_long_ones(ticket) and self._has_slots(ticket, slots)
        else:
            has_room = self._has_room(ticket, rows, slots, self._num_prompts + num_kept)
        return has_room and not self._delays_another(rows + ticket.num_rows)

    def is_next(self, ticket: Ticket) -> bool:
        """Whether to hold room back for this one. No for a short request whose room is taken by long ones."""
        if self.is_long(ticket):
            return ticket.group.is_begun and self._has_room_among_long_ones(ticket)
        others = [each for each in self._tickets if each.is_long]
        rows = sum(each.num_rows for each in others)
        return self._has_room(ticket, rows, sum(each.num_slots for each in others), 0)

    def is_long(self, ticket: Ticket) -> bool:
        """Whether a prompt would take more than half the target alone."""
        return LONG_FACTOR * self._alone_s(ticket) > self._target_s

    def first_end_s(self) -> float:
        """Seconds until the first of the prompts is answered; 0 if there are none."""
        step_s = self._load.usual_round_s(self.num_rows)
        return min((self._rest_s(ticket, step_s) for ticket in self._tickets), default=0.0)

    def _has_slots(self, ticket: Ticket, slots: int) -> bool:
        return slots + ticket.num_slots <= self._most_slots

    def _has_room(self, ticket: Ticket, rows: int, slots: int, num_prompts: int) -> bool:
        """Whether a short request fits, and is answered in time, with these rows and behind so many prompts."""
        rows += ticket.num_rows
        stay_s = self._stay_s(ticket, rows, num_prompts + 1, self._load.usual_round_s(rows))
        return self._has_slots(ticket, slots) and stay_s <= self._target_s

    def _has_room_among_long_ones(self, ticket: Ticket) -> bool:
        others = [each for each in self._tickets if each.is_long]
        rows = sum(each.num_rows for each in others) + ticket.num_rows
        slots = sum(each.num_slots for each in others) + ticket.num_slots
        step_s, alone_s = self._load.seconds(rows), self._alone_s(ticket)
        # Each of the others brings about one prompt meanwhile. Those of short requests are not counted.
        prompts_s = self._num_steps(len(others)) * (self._load.prompt_round_s(rows) - step_s)
        stay_s = self._stay_s(ticket, rows, self._num_prompts + 1, step_s) + prompts_s
        is_in_time = stay_s <= (LONG_FACTOR * alone_s if alone_s > self._target_s else LATE_FACTOR * self._target_s)
        return slots <= max(1, self._most_slots // LONG_FACTOR) and (is_in_time or not others)

    def _kept_for_others(self, ticket: Ticket) -> tuple[int, int]:
        """Rows and requests for which a request must leave room."""
        rows, num_requests = self.typists.kept_for_others(ticket.typist, ticket.loop.time(), self._most_slots // 2)
        if ticket.group.num_rows:
            return max(rows, self._group_share), max(num_requests, 1)
        return rows, num_requests

    def _delays_another(self, rows: int) -> bool:
        """Whether this many rows would make a short request late that is in time now."""
        now_s, then_s, late_s = (
            self._load.usual_round_s(self.num_rows),
            self._load.usual_round_s(rows),
            LATE_FACTOR * self._target_s,
        )
        return any(
            self._end_s(ticket, now_s) <= late_s < self._end_s(ticket, then_s)
            for ticket in self._tickets
            if not ticket.is_long and not ticket.is_warm_up
        )

    def _end_s(self, ticket: Ticket, step_s: float) -> float:
        """Seconds from a prompt's admission to its answer, if steps take this long from now on."""
        return ticket.loop.time() - ticket.begun_s + self._rest_s(ticket, step_s)

    def _rest_s(self, ticket: Ticket, step_s: float) -> float:
        return max(0.0, ticket.last_step - self._load.num_steps) * step_s

    def _alone_s(self, ticket: Ticket) -> float:
        return self._stay_s(ticket, ticket.num_rows, 1, self._load.seconds(ticket.num_rows))

    def _stay_s(self, ticket: Ticket, rows: int, num_prompts: int, step_s: float) -> float:
        """Seconds in the engine, with this many rows, behind all but one of these prompts, and with such steps."""
        return self._num_steps(num_prompts) * self._load.prompt_round_s(rows) + ticket.num_tokens * step_s

    @property
    def _num_prompts(self) -> int:
        """Prompts in the engine and on their way there that have not been run."""
        return self._load.num_waiting + sum(not ticket.is_added for ticket in self._tickets)

    def _num_steps(self, num_prompts: int) -> float:
        return num_prompts * self._load.steps_per_prompt
