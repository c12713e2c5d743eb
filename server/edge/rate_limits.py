"""Rate and concurrency limits per caller: an API key, or a network address on a server without keys."""

import ipaddress
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar

import limits
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from superdraft.server.edge.refusals import TooManyRequestsError

_IPV6_NETWORK_BITS = 64  # what one household or machine usually has

_counted: ContextVar[str] = ContextVar("counted_caller", default="")


def counted_caller() -> str:
    """The caller that the current request counts for: its API key, or its network address on a server without keys."""
    return _counted.get()


class CallerLimits:
    """Counts every caller's requests. For one event loop.

    Args:
        rate_limit: requests per time, for callers without a limit of their own; None: no limit.
        max_concurrent: requests at once, for callers without a limit of their own; None: no limit.
        on_shed: called with the reason for every request that is refused.
    """

    def __init__(
        self,
        rate_limit: str | None = None,
        max_concurrent: int | None = None,
        on_shed: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._rate_limit = rate_limit
        self._max_concurrent = max_concurrent
        self._on_shed = on_shed
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._running: Counter[str] = Counter()

    @asynccontextmanager
    async def counted(
        self, caller: str, rate_limit: str | None = None, max_concurrent: int | None = None
    ) -> AsyncIterator[None]:
        """Count a request for as long as the context lasts.

        Args:
            caller: who sent it.
            rate_limit: the caller's own; None: the common one.
            max_concurrent: the caller's own; None: the common one.

        Raises:
            TooManyRequestsError: a limit is reached.
        """
        most = max_concurrent or self._max_concurrent
        if most is not None and self._running[caller] >= most:
            self._on_shed("max_concurrent")
            message = f"This caller has {most} requests running, its limit; wait for one of them to end."
            raise TooManyRequestsError(message, code="too_many_concurrent_requests")
        await self._hit(caller, rate_limit or self._rate_limit)
        self._running[caller] += 1
        _counted.set(caller)
        try:
            yield
        finally:
            self._running[caller] -= 1
            if not self._running[caller]:
                del self._running[caller]

    async def _hit(self, caller: str, rate_limit: str | None) -> None:
        if rate_limit is None:
            return
        item = limits.parse(rate_limit)
        if not await self._limiter.hit(item, caller):
            self._on_shed("rate_limit")
            window = await self._limiter.get_window_stats(item, caller)
            message = f"This caller has sent {item}, its limit."
            wait_s = max(0.001, window.reset_time - time.time())
            raise TooManyRequestsError(message, code="rate_limit_exceeded", retry_after_s=wait_s)


def network_of(address: str | None) -> str:
    """The caller's name for a client without a key: its IPv4 address, or the network of its IPv6 address."""
    try:
        parsed = ipaddress.ip_address(address or "")
    except ValueError:  # a Unix socket, for instance
        return address or "unknown"
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, _IPV6_NETWORK_BITS), strict=False))
    return str(parsed)
