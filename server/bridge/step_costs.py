"""Costs of the engine's steps, measured while it works, and the time that a request will take with them."""

from dataclasses import dataclass

DECAY = 1 / 32
"""Weight of the newest figure in a mean, once there are 32 of them."""

FRESH_DECODES = 256
"""Decode steps after which the cost of a number of rows that did not occur in them is no longer trusted alone."""

_MAX_BITS = 16


@dataclass(frozen=True, slots=True)
class _Point:
    """Mean rows and seconds of decode steps with a similar number of rows."""

    rows: float
    seconds: float
    count: int
    last_decode: int

    def at(self, rows: int) -> float:
        """At most what a step of this many rows costs: no step costs more per row than one of fewer rows."""
        return self.seconds * max(1.0, rows / self.rows)


_UNMEASURED = _Point(rows=8, seconds=0.01, count=0, last_decode=0)  # a small model on a processor
_UNMEASURED_PREFILL_S = 0.01
_UNMEASURED_PREFILLS = 0.5  # per request: several short prompts share a step


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast requests advance. A round is a decode step, and a prompt step before it if a prompt waits.

    Attributes:
        round_s: seconds of a round, at the present rate of prompts.
        full_round_s: seconds of a round with a prompt step.
    """

    round_s: float
    full_round_s: float

    def stay_s(self, num_prefills: float, num_tokens: int) -> float:
        """Seconds that a request spends in the engine.

        Args:
            num_prefills: prompt steps until its own prompt is complete.
            num_tokens: tokens of its drafts.
        """
        return num_prefills * self.full_round_s + num_tokens * self.round_s


class StepCosts:
    """Costs by the number of rows. Only the engine's thread observes; any thread may ask.

    Attributes:
        num_rounds: rounds so far.
        num_waiting: requests in the engine whose prompts have not been run.
    """

    def __init__(self) -> None:
        self.num_rounds = 0
        self.num_waiting = 0
        self._num_decodes = 0
        self._points: list[_Point | None] = [None] * (_MAX_BITS + 1)  # by the bits of the number of rows
        self._last = _UNMEASURED
        self._num_prefills = 0
        self._prefill_s = _UNMEASURED_PREFILL_S
        self._prefill_share = 0.0  # of the rounds
        self._has_prefill = False  # in the present round
        self._recent_prefills, self._recent_requests = _UNMEASURED_PREFILLS, 1.0

    def observe_decode(self, rows: int, seconds: float) -> None:
        """Note a decode step of this many rows."""
        rows = max(1, rows)
        self._num_decodes += 1
        old = self._points[_index(rows)] or _Point(0.0, 0.0, 0, 0)
        weight = max(DECAY, 1 / (old.count + 1))
        self._points[_index(rows)] = self._last = _Point(
            old.rows + weight * (rows - old.rows),
            old.seconds + weight * (seconds - old.seconds),
            old.count + 1,
            self._num_decodes,
        )
        self.num_rounds += 1
        self._prefill_share += DECAY * (self._has_prefill - self._prefill_share)
        self._has_prefill = False

    def observe_prefill(self, seconds: float, num_completed: int, *, is_full: bool) -> None:
        """Note a step that ran prompts.

        Args:
            seconds: that the step took longer because of them.
            num_completed: prompts that were complete after it.
            is_full: some were not, or had to wait for a later step.
        """
        self._num_prefills += 1
        self._prefill_s += max(DECAY, 1 / self._num_prefills) * (seconds - self._prefill_s)
        # A step that took all who waited would have taken more: it only shows that a request needs no more than this.
        if is_full or num_completed * self.prefills_per_request > 1:
            remaining = (1 - DECAY) ** num_completed
            self._recent_prefills = self._recent_prefills * remaining + 1
            self._recent_requests = self._recent_requests * remaining + num_completed
        self.num_rounds += self._has_prefill  # the round before had nothing to decode
        self._has_prefill = True

    def observe_request(self) -> None:
        """Note that the engine took a request, whose prompt it has not run."""
        self.num_waiting += 1

    @property
    def prefills_per_request(self) -> float:
        """Prompt steps that a waiting request needs, at most; below 1 if steps take several of those who wait."""
        return self._recent_prefills / self._recent_requests

    def decode_s(self, rows: int) -> float:
        """Seconds of a decode step of this many rows, rather too many than too few."""
        own, last = self._points[_index(rows)], self._last
        if own is None:
            more = [point for point in self._points[_index(rows) :] if point is not None]
            return min(point.at(rows) for point in (last, *more))
        if self._num_decodes - own.last_decode < FRESH_DECODES:
            return own.at(rows)
        return min(own.at(rows), last.at(rows))

    def pace(self, rows: int, *, has_prompts: bool = True) -> Pace:
        """The pace with this many rows in the engine.

        Args:
            rows: of all requests.
            has_prompts: False: as if no more prompts came.
        """
        decode_s, prefill_s = self.decode_s(rows), self._prefill_s
        return Pace(decode_s + has_prompts * self._prefill_share * prefill_s, decode_s + prefill_s)

    def pace_alone(self, rows: int) -> Pace:
        """The pace of a request that has the engine to itself.

        If so few rows have not occurred yet, rather too fast than too slow.
        """
        measured = [point for point in self._points[: _index(rows) + 1] if point is not None]
        if measured:
            decode_s = measured[-1].seconds
        else:
            last = self._last
            decode_s = min(last.seconds, max(_UNMEASURED.seconds, last.seconds * rows / last.rows))
        return Pace(decode_s, decode_s + self._prefill_s)


def _index(rows: int) -> int:
    return min(max(1, rows).bit_length(), _MAX_BITS)
