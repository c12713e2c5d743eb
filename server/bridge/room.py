"""Room in the engine: which prompts fit into its slots and are answered in time beside those that are there."""

from superdraft.decoding.engine.load import Load
from superdraft.server.bridge.fair_shares import FairShares
from superdraft.server.bridge.places import Group, Place

LONG_FACTOR = 2
"""A request is long if it takes more than this part of the target alone. Long requests slow down by this much if they
could not be answered within the target even alone."""

LATE_FACTOR = 1.2
"""A request may be delayed by others up to this many times the target, if it could be answered within the target alone:
else nobody could go in beside a full load."""

_GROUP_SHARE = 8
"""A request that has rows leaves this part of the places, at least one, to others. Warm-ups have no more than this."""


class Room:
    """The prompts in the engine, and what they leave for others. For one event loop.

    Args:
        num_places: slots to give away; None: no limit.
        target_s: seconds that a request may spend in the engine.
        load: the engine's, which says what steps cost.

    Attributes:
        shares: of callers and sessions.
        num_rows: of the prompts in the engine or on their way to it.
        num_slots: theirs.
        num_changes: counts whatever may make room.
    """

    def __init__(self, num_places: int | None, target_s: float, load: Load) -> None:
        self._load = load
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
        num_steps = self._num_prefills(self._num_prompts + 1) + place.num_tokens
        place.last_step = self._load.num_steps + num_steps
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
        return self.num_changes, self._load.num_steps

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
        step_s = self._load.usual_s(self.num_rows)
        return min((self._rest_s(place, step_s) for place in self._places), default=0.0)

    def _has_room(self, place: Place, rows: int, slots: int, num_prompts: int) -> bool:
        """Whether a short request fits, and is answered in time, beside these rows and behind so many prompts."""
        assert self._num_places is not None
        is_in_time = self._stay_s(place, rows + place.num_rows, num_prompts + 1) <= self._target_s
        return slots + place.num_slots <= self._num_places and is_in_time

    def _has_room_among_long_ones(self, place: Place) -> bool:
        assert self._num_places is not None
        others = [each for each in self._places if each.is_long]
        rows = sum(each.num_rows for each in others) + place.num_rows
        slots = sum(each.num_slots for each in others) + place.num_slots
        # Each of the others brings about one prompt meanwhile. Those of short requests are not counted.
        prompts_s = self._num_prefills(len(others)) * (self._load.prompt_step_s(rows) - self._load.seconds(rows))
        stay_s = self._stay_s(place, rows, self._num_prompts + 1, step_s=self._load.seconds(rows)) + prompts_s
        alone_s = self._alone_s(place)
        is_in_time = stay_s <= (LONG_FACTOR * alone_s if alone_s > self._target_s else LATE_FACTOR * self._target_s)
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
        now_s, then_s, late_s = (
            self._load.usual_s(self.num_rows),
            self._load.usual_s(rows),
            LATE_FACTOR * self._target_s,
        )
        return any(
            self._end_s(place, now_s) <= late_s < self._end_s(place, then_s)
            for place in self._places
            if not place.is_long and not place.is_warm_up
        )

    def _end_s(self, place: Place, step_s: float) -> float:
        """Seconds from a prompt's admission to its answer, if steps take this long from now on."""
        return place.loop.time() - place.begun_s + self._rest_s(place, step_s)

    def _rest_s(self, place: Place, step_s: float) -> float:
        return max(0.0, place.last_step - self._load.num_steps) * step_s

    def _alone_s(self, place: Place) -> float:
        return self._stay_s(place, place.num_rows, 1, step_s=self._load.seconds(place.num_rows))

    def _stay_s(self, place: Place, rows: int, num_prompts: int, step_s: float | None = None) -> float:
        """Seconds from a prompt's admission to its answer.

        Args:
            place: the prompt's.
            rows: in the engine.
            num_prompts: that have not been run, this one included.
            step_s: seconds of a step without these prompts; None: as many others come as now.
        """
        decode_s = self._load.usual_s(rows) if step_s is None else step_s
        return self._num_prefills(num_prompts) * self._load.prompt_step_s(rows) + place.num_tokens * decode_s

    @property
    def _num_prompts(self) -> int:
        """Prompts in the engine and on their way there that have not been run."""
        return self._load.num_waiting + sum(not place.is_added for place in self._places)

    def _num_prefills(self, num_prompts: int) -> float:
        return num_prompts * self._load.steps_per_prompt
