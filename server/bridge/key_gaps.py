"""How long typists pause between two keys, as far as their requests show it."""

from collections import OrderedDict
from dataclasses import dataclass

MAX_SESSIONS = 4096
_LONGEST_S = 1.0  # a longer pause is for thought, and says nothing about the next one
_SMOOTHING = 1 / 8


@dataclass(slots=True)
class _Session:
    last_s: float
    gap_s: float | None = None


class KeyGaps:
    """The usual time between the requests of each typing session. For one event loop."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[str, _Session] = OrderedDict()

    def note(self, session: str, now_s: float) -> float | None:
        """Note that a request came.

        Returns:
            The usual seconds until the next one; None: the session has had no two requests in a row.
        """
        known = self._sessions.get(session)
        if known is None:
            self._sessions[session] = _Session(now_s)
            if len(self._sessions) > MAX_SESSIONS:
                self._sessions.popitem(last=False)
            return None
        gap_s, known.last_s = now_s - known.last_s, now_s
        if gap_s <= _LONGEST_S:
            known.gap_s = gap_s if known.gap_s is None else known.gap_s + _SMOOTHING * (gap_s - known.gap_s)
        self._sessions.move_to_end(session)
        return known.gap_s
