"""Feedback events: which drafts the user saw, accepted and dismissed.

- shown: the draft was on the screen for 250 ms.
- accepted: the user accepted all or part of the draft.
- dismissed: the draft was shown, is no longer on the screen, and was not accepted within 10 s.

A draft that the user accepts or dismisses explicitly counts as shown, however quickly this happens.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

from superdraft.client.suggestions import Suggestion

SHOWN_AFTER_S = 0.25
DISMISSED_AFTER_S = 10.0
_KEPT_SETTLED = 256

Event = Literal["shown", "accepted", "dismissed"]


@dataclass(frozen=True, slots=True)
class Report:
    """An event to send to `/v1/feedback` with a client's method `feedback`.

    Attributes:
        completion_id: id of the answer.
        event: what happened.
        rank: rank of the draft.
        elapsed_ms: milliseconds since the draft appeared on the screen; None for "shown".
    """

    completion_id: str
    event: Event
    rank: int
    elapsed_ms: float | None = None


@dataclass(slots=True)
class _Viewing:
    """State of a draft that is or was on the screen."""

    since_s: float
    is_shown: bool = False
    is_partly_accepted: bool = False


_Key = tuple[str, int]


class DisplayLog:
    """Follows the ghost text and creates feedback events, each at most once per draft."""

    def __init__(self) -> None:
        self._viewings: dict[_Key, _Viewing] = {}
        self._settled: OrderedDict[_Key, None] = OrderedDict()
        self._current: _Key | None = None
        self._reports: list[Report] = []

    def show(self, ghost: Suggestion | None, now_s: float) -> None:
        """Record that `ghost` is on the screen from now on."""
        self._pass_time(now_s)
        key = None if ghost is None or ghost.key in self._settled else ghost.key
        if key == self._current:
            return
        left, self._current = self._current, key
        if left is not None:
            self._leave(left, now_s)
        if key is not None:
            self._viewings.setdefault(key, _Viewing(now_s))

    def accept(self, key: tuple[str, int], now_s: float, *, whole: bool) -> None:
        """Record that all or part of the draft with this `Suggestion.key` was accepted.

        A part is not reported until the draft leaves the screen, because the user may accept more of it.
        """
        if key in self._settled:
            return
        self._viewings.setdefault(key, _Viewing(now_s)).is_partly_accepted = True
        if whole:
            self._settle(key, "accepted", now_s)

    def dismiss(self, now_s: float) -> None:
        """Record that the user dismissed the draft on the screen."""
        if self._current is not None:
            viewing = self._viewings[self._current]
            self._settle(self._current, "accepted" if viewing.is_partly_accepted else "dismissed", now_s)

    def close(self, now_s: float) -> None:
        """Record that no draft can be accepted any more."""
        self.show(None, now_s)
        for key in list(self._viewings):
            self._settle(key, "dismissed", now_s)

    def take_reports(self, now_s: float) -> list[Report]:
        """Return the events up to now that have not been returned before."""
        self._pass_time(now_s)
        reports, self._reports = self._reports, []
        return reports

    @property
    def next_s(self) -> float | None:
        """Time of the next event if nothing else happens first."""
        return min((due_s for key in self._viewings if (due_s := self._due_s(key)) is not None), default=None)

    def _due_s(self, key: _Key) -> float | None:
        viewing = self._viewings[key]
        if key != self._current:
            return viewing.since_s + DISMISSED_AFTER_S
        return None if viewing.is_shown else viewing.since_s + SHOWN_AFTER_S

    def _pass_time(self, now_s: float) -> None:
        for key in list(self._viewings):
            due_s = self._due_s(key)
            if due_s is not None and due_s <= now_s:
                if key == self._current:
                    self._report_shown(key)
                else:
                    self._settle(key, "dismissed", now_s)

    def _leave(self, key: _Key, now_s: float) -> None:
        viewing = self._viewings.get(key)
        if viewing is None:
            return
        if viewing.is_partly_accepted:
            self._settle(key, "accepted", now_s)
        elif not viewing.is_shown:
            del self._viewings[key]
        else:
            self._pass_time(now_s)

    def _settle(self, key: _Key, event: Event, now_s: float) -> None:
        self._report_shown(key)
        viewing = self._viewings.pop(key)
        if self._current == key:
            self._current = None
        self._settled[key] = None
        if len(self._settled) > _KEPT_SETTLED:
            self._settled.popitem(last=False)
        elapsed_ms = round((now_s - viewing.since_s) * 1000, 1)
        self._reports.append(Report(*_event(key, event), elapsed_ms))

    def _report_shown(self, key: _Key) -> None:
        viewing = self._viewings[key]
        if not viewing.is_shown:
            viewing.is_shown = True
            self._reports.append(Report(*_event(key, "shown")))


def _event(key: _Key, event: Event) -> tuple[str, Event, int]:
    return key[0], event, key[1]
