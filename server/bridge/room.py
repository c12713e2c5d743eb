"""Room in the engine: which prompts fit into its slots and are answered in time beside those that are there."""

from superdraft.decoding.engine.load import Load
from superdraft.server.bridge.typists import Place, Typists

LONG_FACTOR = 2
"""A request is long if it takes more than this part of the target alone. Long requests slow down by this much if they
could not be answered within the target even alone."""

LATE_FACTOR = 1.2
"""A request may be delayed by others up to this many times the target, if it could be answered within the target alone:
else no request could join a full load."""

_RESERVE_SHARE = 16
_GROUP_SHARE = 8
"""A request that has rows leaves this part of the places, at least one, to others. Warm-ups have no more than this."""


def places_of(num_slots: int) -> int:
    """Slots to give away of this many: a few more if there are many, so that a free slot is used in the next step."""
    return num_slots + num_slots // _RESERVE_SHARE


class Room:
    """The prompts in the engine, and what they leave for others. For one event loop.

    Args:
        num_places: slots to give away.
        target_s: seconds that a request may spend in the engine.
        load: the engine's, which says what steps cost.

    Attributes:
        typists: who has rows, and who asked for some not long ago.
        num_rows: of the prompts in the engine or on their way to it.
        num_slots: theirs.
    """

    def __init__(self, num_places: int, target_s: float, load: Load) -> None:
        self.typists = Typists()
        self.num_rows = self.num_slots = self._num_changes = 0
        self._most_slots = num_places
        self._group_share = max(1, num_places // _GROUP_SHARE)
        self._target_s = target_s
        self._load = load
        self._places: set[Place] = set()

    def take(self, place: Place) -> None:
        """Note that a prompt goes in."""
        place.is_taken, place.is_long, place.begun_s = True, self.is_long(place), place.loop.time()
        place.last_step = self._load.num_steps + self._num_steps(self._num_prompts + 1) + place.num_tokens
        self._places.add(place)
        self._count(place, 1)

    def give_back(self, place: Place) -> None:
        """Note that a prompt has left."""
        place.is_taken = False
        self._places.remove(place)
        self._count(place, -1)

    def _count(self, place: Place, sign: int) -> None:
        rows = sign * place.num_rows
        self.num_rows += rows
        self.num_slots += sign * place.num_slots
        place.group.num_rows += rows
        place.group.num_places += sign
        place.typist.num_rows += rows
        place.typist.caller.num_rows += rows
        self._num_changes += 1

    @property
    def stamp(self) -> tuple[int, int]:
        """Changes when a prompt may fit that did not fit before."""
        return self._num_changes, self._load.num_steps

    def fits(self, place: Place) -> bool:
        """Whether a prompt may go in now."""
        if not self.num_slots or place.num_slots > self._most_slots:
            return True  # the engine says that this is more than it has
        num_warm_ups = sum(each.is_warm_up for each in self._places)
        if place.is_warm_up:
            return self._has_slots(place, self.num_slots) and num_warm_ups < self._group_share
        if num_warm_ups == len(self._places) < self._most_slots:
            return True  # they give way, so it is alone
        kept_rows, num_kept = self._kept_for_others(place)
        rows, slots = self.num_rows + kept_rows, self.num_slots + num_kept
        if self.is_long(place):
            has_room = self._has_room_among_long_ones(place) and self._has_slots(place, slots)
        else:
            has_room = self._has_room(place, rows, slots, self._num_prompts + num_kept)
        return has_room and not self._delays_another(rows + place.num_rows)

    def is_next(self, place: Place) -> bool:
        """Whether to hold room back for this one. No for a short request whose room is taken by long ones."""
        if self.is_long(place):
            return place.group.is_begun and self._has_room_among_long_ones(place)
        others = [each for each in self._places if each.is_long]
        rows = sum(each.num_rows for each in others)
        return self._has_room(place, rows, sum(each.num_slots for each in others), 0)

    def is_long(self, place: Place) -> bool:
        """Whether a prompt would take more than half the target alone."""
        return LONG_FACTOR * self._alone_s(place) > self._target_s

    def first_end_s(self) -> float:
        """Seconds until the first of the prompts is answered; 0 if there are none."""
        step_s = self._load.usual_round_s(self.num_rows)
        return min((self._rest_s(place, step_s) for place in self._places), default=0.0)

    def _has_slots(self, place: Place, slots: int) -> bool:
        return slots + place.num_slots <= self._most_slots

    def _has_room(self, place: Place, rows: int, slots: int, num_prompts: int) -> bool:
        """Whether a short request fits, and is answered in time, beside these rows and behind so many prompts."""
        rows += place.num_rows
        stay_s = self._stay_s(place, rows, num_prompts + 1, self._load.usual_round_s(rows))
        return self._has_slots(place, slots) and stay_s <= self._target_s

    def _has_room_among_long_ones(self, place: Place) -> bool:
        others = [each for each in self._places if each.is_long]
        rows = sum(each.num_rows for each in others) + place.num_rows
        slots = sum(each.num_slots for each in others) + place.num_slots
        step_s, alone_s = self._load.seconds(rows), self._alone_s(place)
        # Each of the others brings about one prompt meanwhile. Those of short requests are not counted.
        prompts_s = self._num_steps(len(others)) * (self._load.prompt_round_s(rows) - step_s)
        stay_s = self._stay_s(place, rows, self._num_prompts + 1, step_s) + prompts_s
        is_in_time = stay_s <= (LONG_FACTOR * alone_s if alone_s > self._target_s else LATE_FACTOR * self._target_s)
        return slots <= max(1, self._most_slots // LONG_FACTOR) and (is_in_time or not others)

    def _kept_for_others(self, place: Place) -> tuple[int, int]:
        """Rows and requests for which a request must leave room."""
        rows, num_requests = self.typists.kept_for_others(place.typist, place.loop.time(), self._most_slots // 2)
        if place.group.num_rows:
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
        return self._stay_s(place, place.num_rows, 1, self._load.seconds(place.num_rows))

    def _stay_s(self, place: Place, rows: int, num_prompts: int, step_s: float) -> float:
        """Seconds in the engine, with this many rows, behind all but one of these prompts, and with such steps."""
        return self._num_steps(num_prompts) * self._load.prompt_round_s(rows) + place.num_tokens * step_s

    @property
    def _num_prompts(self) -> int:
        """Prompts in the engine and on their way there that have not been run."""
        return self._load.num_waiting + sum(not place.is_added for place in self._places)

    def _num_steps(self, num_prompts: int) -> float:
        return num_prompts * self._load.steps_per_prompt
