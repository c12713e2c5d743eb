"""Delay between a key press and its request, adapted to the typist and the server."""

import bisect
from collections import deque
from collections.abc import Sequence

_KEPT_PAUSES = 48
_ENOUGH_PAUSES = 12
_FREE_SHARE = 0.1  # low, since an answer that arrives after the next key still helps if a draft contains that key
_LONGEST_PAUSE_S = 3.0
_FIRST_LATENCY_S = 0.1
_FIRST_MISS_SHARE = 0.7
_LATENCY_WEIGHT = 0.25  # weight of a new value in the running mean
_MISS_WEIGHT = 1 / 16

# Used until enough real pauses are known: those of a 60 wpm typist, log-normal with median 0.15 s and sigma 0.5.
_USUAL_PAUSES_S = (0.06, 0.08, 0.1, 0.12, 0.14, 0.16, 0.19, 0.23, 0.29, 0.41)


class Pace:
    """Estimates how long to wait before sending, from the pauses between keys and the server's latency.

    Requests should be few, yet an answer should sometimes arrive before the next key. Two conditions must therefore
    hold for the pauses that are longer than the wait. Their share of all pauses is within the budget, given how often
    a key press has no draft yet; and at least one in ten of them lasts until the answer arrives.

    Args:
        requests_per_key: the budget, requests per key press.
        max_delay_s: upper limit of the wait, even if the budget is exceeded.
    """

    def __init__(self, requests_per_key: float, max_delay_s: float) -> None:
        self._requests_per_key = requests_per_key
        self._max_delay_s = max_delay_s
        self._pauses: deque[float] = deque(maxlen=_KEPT_PAUSES)
        self._last_key_s: float | None = None
        self._miss_share = _FIRST_MISS_SHARE
        self.latency_s = _FIRST_LATENCY_S

    def key(self, now_s: float) -> None:
        """Record that a character was typed."""
        if self._last_key_s is not None:
            self._pauses.append(min(now_s - self._last_key_s, _LONGEST_PAUSE_S))
        self._last_key_s = now_s

    def interrupt(self) -> None:
        """Record an action other than typing; the pause before the next key is then ignored."""
        self._last_key_s = None

    def looked(self, *, found: bool) -> None:
        """Record whether a key press was answered from the cache."""
        self._miss_share += _MISS_WEIGHT * ((not found) - self._miss_share)

    def answered(self, latency_s: float) -> None:
        """Record the latency of a request."""
        self.latency_s += _LATENCY_WEIGHT * (latency_s - self.latency_s)

    @property
    def delay_s(self) -> float:
        """Seconds to wait for another key before sending a request."""
        pauses = sorted([*self._pauses, *(_USUAL_PAUSES_S if len(self._pauses) < _ENOUGH_PAUSES else ())])
        share_skipped = max(0.0, 1 - self._requests_per_key / max(self._miss_share, 1e-9))
        for_budget_s = pauses[min(int(share_skipped * len(pauses)), len(pauses) - 1)] if share_skipped else 0.0
        return min(max(for_budget_s, _until_likely_free(pauses, self.latency_s)), self._max_delay_s)


def _until_likely_free(pauses: Sequence[float], latency_s: float) -> float:
    """Return the shortest wait after which enough of the sorted `pauses` last at least `latency_s` longer."""
    for wait_s in (0.0, *pauses):
        num_going_on = len(pauses) - bisect.bisect_right(pauses, wait_s)
        num_long_enough = len(pauses) - bisect.bisect_right(pauses, wait_s + latency_s)
        if num_long_enough >= _FREE_SHARE * num_going_on:
            return wait_s
    return pauses[-1]
