"""Fair shares of the engine among callers, and among the sessions of one caller."""

from collections import Counter, OrderedDict

REMEMBERED_S = 10.0
"""Seconds after a request during which room is kept for the next one of its caller or session."""

MAX_REMEMBERED = 1024
"""Callers, and sessions of a caller, that are remembered."""

_Key = tuple[str, ...]  # (caller,) or (caller, session)


class FairShares:
    """Who has rows in the engine, and who asked for some not long ago.

    Someone who has rows leaves room for everyone else who has none and asked recently: a row that was given cannot be
    taken back before its draft ends. Whoever is alone may have everything.

    Args:
        max_kept: rows that are kept free for others, at most.
    """

    def __init__(self, max_kept: int) -> None:
        self._max_kept = max_kept
        self._rows: Counter[_Key] = Counter()
        self._asked: dict[_Key, OrderedDict[_Key, tuple[float, int]]] = {(): OrderedDict()}  # by caller: time, rows

    def ask(self, caller: str, session: str | None, num_rows: int, now_s: float) -> None:
        """Remember that a request came."""
        for key in _keys(caller, session):
            asked = self._asked.setdefault(key[:-1], OrderedDict())
            asked[key] = (now_s, num_rows)
            asked.move_to_end(key)
            while len(asked) > MAX_REMEMBERED or now_s - next(iter(asked.values()))[0] > REMEMBERED_S:
                forgotten, _ = asked.popitem(last=False)
                self._asked.pop(forgotten, None)

    def add(self, caller: str, session: str | None, num_rows: int) -> None:
        """Count rows that were given, or, if negative, given back."""
        for key in _keys(caller, session):
            self._rows[key] += num_rows
            if not self._rows[key]:
                del self._rows[key]

    def rank(self, caller: str, session: str | None) -> tuple[int, ...]:
        """Whose turn it is: the lowest rank's."""
        return tuple(self._rows[key] for key in _keys(caller, session))

    def kept_for_others(self, caller: str, session: str | None, now_s: float) -> tuple[int, int]:
        """The room that a request must leave free for others, in rows and in requests."""
        return max(self._kept(key, now_s) for key in _keys(caller, session))

    def _kept(self, key: _Key, now_s: float) -> tuple[int, int]:
        rows = requests = 0
        if self._rows[key]:
            for other, (asked_s, num_rows) in reversed(self._asked.get(key[:-1], {}).items()):
                if now_s - asked_s > REMEMBERED_S or rows >= self._max_kept:
                    break
                if other != key and not self._rows[other]:
                    rows += num_rows
                    requests += 1
        return min(rows, self._max_kept), requests


def _keys(caller: str, session: str | None) -> tuple[_Key, _Key]:
    return (caller,), (caller, session or "")
