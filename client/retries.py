"""Retry policy for failed requests: the server's instructions, or else exponential backoff."""

import email.utils
import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from superdraft.client.errors import (
    ClientError,
    ConnectionFailedError,
    InvalidAddressError,
    StatusError,
    StreamBrokenError,
)

_RETRIED_STATUSES = (408, 409, 429)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Which failures are retried, and after what delay.

    The server's `x-should-retry` decides. Without this header, failed connections and the statuses 408, 409, 429 and
    5xx are retried. Timeouts are never retried: the caller has no time left.

    Attributes:
        max_retries: maximum number of attempts after the first.
        first_delay_s: delay before the first retry if the server names none. It doubles with each retry. Up to a
            quarter is subtracted at random, so that clients that failed together do not retry together.
        max_delay_s: the longest delay. If the server asks for a longer one, the error is raised instead.
    """

    max_retries: int = 2
    first_delay_s: float = 0.2
    max_delay_s: float = 5.0

    def __post_init__(self) -> None:
        if not isinstance(self.max_retries, int) or self.max_retries < 0:
            raise ValueError(f"max_retries must be an integer of at least 0, got {self.max_retries!r}")

    def delay_s(
        self, error: ClientError, num_retries: int, chance: Callable[[], float] = random.random
    ) -> float | None:
        """Return the seconds to wait before the next attempt, or None if there should be no further attempt.

        Args:
            error: the error of the last attempt.
            num_retries: number of retries so far.
            chance: returns a random number from 0 to 1.
        """
        if num_retries >= self.max_retries or not _is_temporary(error):
            return None
        if isinstance(error, StatusError) and error.retry_after_s is not None:
            return error.retry_after_s if error.retry_after_s <= self.max_delay_s else None
        return min(self.first_delay_s * 2.0**num_retries, self.max_delay_s) * (1 - chance() / 4)


def _is_temporary(error: ClientError) -> bool:
    if isinstance(error, StatusError):
        if error.should_retry is not None:
            return error.should_retry
        return error.status in _RETRIED_STATUSES or error.status >= 500
    return isinstance(error, ConnectionFailedError) and not isinstance(error, InvalidAddressError | StreamBrokenError)


def should_retry(headers: Mapping[str, str]) -> bool | None:
    """Return the header `x-should-retry`, or None if it is missing or neither true nor false."""
    return {"true": True, "false": False}.get(headers.get("x-should-retry", "").strip().lower())


def retry_after_s(headers: Mapping[str, str], now_s: Callable[[], float] = time.time) -> float | None:
    """Return seconds from `retry-after-ms` or else `retry-after` (seconds or a date), or None if neither is valid."""
    if (milliseconds := _number(headers.get("retry-after-ms"))) is not None:
        return milliseconds / 1000
    if (seconds := _number(headers.get("retry-after"))) is not None:
        return seconds
    try:
        date = email.utils.parsedate_to_datetime(headers.get("retry-after", ""))
    except ValueError:
        return None
    return max(0.0, date.timestamp() - now_s())


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None
