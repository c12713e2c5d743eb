"""Room in the engine: which prompts fit into its slots and are answered in time beside those that are there."""

from superdraft.server.bridge.fair_shares import FairShares
from superdraft.server.bridge.places import Group, Place
from superdraft.server.bridge.step_costs import Pace, StepCosts

LONG_FACTOR = 2
"""A request is long if it takes more than this part of the target alone; long requests slow down by this much."""

LATE_FACTOR = 1.2
"""A request may be delayed by others up to this many times the target: else nobody could go in beside a full load."""

_GROUP_SHARE = 8
"""A request that has rows leaves this part of the places, at least one, to others. Warm-ups have no more than this."""


class Room:
    """The prompts in the engine, and what they leave for others. For one event loop.

    Args:
        num_places: slots to give away; None: no limit.
        target_s: seconds that a request may spend in the engine.

    Attributes:
        costs: of the engine's steps; the engine's thread keeps them up to date.
        shares: of callers and sessions.
        num_rows: of the prompts in the engine or on their way to it.
        num_slots: theirs.
        num_changes: counts whatever may make room.
    """

    def __init__(self, num_places: int | None, target_s: float) -> None:
        self.costs = StepCosts()
        self.shares = FairShares(0 if num_places is None else num_places // 2)
        self.num_rows = self.num_slots = self.num_changes = 0
        self._num_places = num_places
        self._target_s = target_s
        self._places: set[Place] = set()

    def take(self, place: Place) -> None:
        """Note that a prompt goes in."""
        group = place.group
        place.is_long = self.is_long(place)
        place.begun_s = place.loop.time()
        num_rounds = self._num_prefills(self._num_prompts + 1) + place.num_tokens
        place.last_round = self.costs.num_rounds + num_rounds
        self._places.add(place)
        self._count(group, place, 1)

    def give_back(self, place: Place) -> None:
        """Note that a prompt has left."""
        self._places.remove(place)
        self._count(place.group, place, -1)

    def _count(self, group: Group, place: Place, sign: int) -> None:
        rows = sign * place.num_rows
        self.num_rows += rows
        self.num_slots += sign * place.num_slots
        self.shares.add(group.caller, group.session, rows)
        group.num_rows += rows
        group.num_places += sign
        self.num_changes += 1

    @property
    def stamp(self) -> tuple[int, int]:
        """Changes when a prompt may fit that did not fit before."""
        return self.num_changes, self.costs.num_rounds

    def is_next(self, place: Place) -> bool:
        """Whether others must not overtake this one: its room will be free soon.

        That is not so while long requests have it; and a new long request would be refused before.
        """
        if self._num_places is None:
            return True
        if self.is_long(place):
            return place.group.is_begun and self._has_room_among_long_ones(place)
        others = [each for each in self._places if each.is_long]
        rows = sum(each.num_rows for each in others)
        return self._has_room(place, rows, sum(each.num_slots for each in others), 0)

    def fits(self, place: Place) -> bool:
        """Whether a prompt may go in now."""
        if self._num_places is None or not self.num_slots:
            return True
        if place.num_slots > self._num_places:
            return True  # the engine says that this is more than it has
        num_warm_ups = sum(each.is_warm_up for each in self._places)
        if place.is_warm_up:
            has_room = self.num_slots + place.num_slots <= self._num_places
            return has_room and num_warm_ups < max(1, self._num_places // _GROUP_SHARE)
        if num_warm_ups == len(self._places) < self._num_places:
            return True  # they give way, so it is alone
        kept_rows, num_kept = self._kept_for_others(place)
        rows, slots = self.num_rows + kept_rows, self.num_slots + num_kept
        if self.is_long(place):
            has_room = self._has_room_among_long_ones(place) and slots + place.num_slots <= self._num_places
        else:
            has_room = self._has_room(place, rows, slots, self._num_prompts + num_kept)
        return has_room and not self._delays_another(rows + place.num_rows)

    def is_long(self, place: Place) -> bool:
        """Whether a prompt would take more than half the target alone."""
        return LONG_FACTOR * self._alone_s(place) > self._target_s

    def first_end_s(self) -> float:
        """Seconds until the first of the prompts is answered; 0 if there are none."""
        pace = self.costs.pace(self.num_rows)
        return min((self._rest_s(place, pace) for place in self._places), default=0.0)

    def _has_room(self, place: Place, rows: int, slots: int, num_prompts: int) -> bool:
        """Whether a short request fits, and is answered in time, beside these rows and behind so many prompts."""
        assert self._num_places is not None
        pace, num_prefills = self.costs.pace(rows + place.num_rows), self._num_prefills(num_prompts + 1)
        is_in_time = pace.stay_s(num_prefills, place.num_tokens) <= self._target_s
        return slots + place.num_slots <= self._num_places and is_in_time

    def _has_room_among_long_ones(self, place: Place) -> bool:
        assert self._num_places is not None
        others = [each for each in self._places if each.is_long]
        rows = sum(each.num_rows for each in others) + place.num_rows
        slots = sum(each.num_slots for each in others) + place.num_slots
        pace, num_prefills = self.costs.pace(rows, has_prompts=False), self._num_prefills(self._num_prompts + 1)
        is_in_time = pace.stay_s(num_prefills, place.num_tokens) <= LONG_FACTOR * self._alone_s(place)
        return slots <= max(1, self._num_places // LONG_FACTOR) and (is_in_time or not others)

    def _kept_for_others(self, place: Place) -> tuple[int, int]:
        """Rows and requests for which a request must leave room."""
        assert self._num_places is not None
        group = place.group
        rows, num_requests = self.shares.kept_for_others(group.caller, group.session, place.loop.time())
        if group.num_rows:
            rows = max(rows, 1, self._num_places // _GROUP_SHARE)
            num_requests = max(num_requests, 1)
        return rows, num_requests

    def _delays_another(self, rows: int) -> bool:
        """Whether this many rows would make a short request late that is in time now."""
        now, then, late_s = self.costs.pace(self.num_rows), self.costs.pace(rows), LATE_FACTOR * self._target_s
        return any(
            self._end_s(place, now) <= late_s < self._end_s(place, then)
            for place in self._places
            if not place.is_long and not place.is_warm_up
        )

    def _end_s(self, place: Place, pace: Pace) -> float:
        """Seconds from a prompt's admission to its answer, at this pace from now on."""
        return place.loop.time() - place.begun_s + self._rest_s(place, pace)

    def _rest_s(self, place: Place, pace: Pace) -> float:
        return max(0.0, place.last_round - self.costs.num_rounds) * pace.round_s

    def _alone_s(self, place: Place) -> float:
        return self.costs.pace_alone(place.num_rows).stay_s(self._num_prefills(1), place.num_tokens)

    @property
    def _num_prompts(self) -> int:
        """Prompts in the engine and on their way there that have not been run."""
        return self.costs.num_waiting + sum(not place.is_added for place in self._places)

    def _num_prefills(self, num_prompts: int) -> float:
        return num_prompts * self.costs.prefills_per_request
