"""Limits per caller: an API key, or a network address on a server without keys.

Rates and requests at once are counted where the settings limit them. A turnstile is always there: of an address that is
refused all the time, most requests are turned away before they cost much. To refuse a request, its body is parsed and
checked, its parameters are worked out, and it waits for its turn. That costs about as much as a tenth of an answer.
Clients that do not heed refusals can send thousands of requests per second, and the time for their refusals would be
missing for everybody's answers.
"""

import asyncio
import ipaddress
import math
import random
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar

import limits
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from superdraft.server.edge.error_map import response_of
from superdraft.server.edge.refusals import OverloadedError, TooManyRequestsError
from superdraft.server.observe.metrics import Metrics
from superdraft.server.observe.request_record import current_record

MAX_REFUSED_PER_S = 250.0
"""Refusals of one network address per second beyond which some requests are turned away: about a fifth of a core."""

HOLD_S = 0.06
"""A client that sends its next request as soon as this one is refused would otherwise come back at once."""

OVERLOADED = "overloaded"  # the code of a refusal for lack of room
_MEMORY_S = 1.0
_MAX_CALLERS = 1024
_MESSAGE = (
    "The server is full, and refuses most of what comes from this address. Send the next keystroke, not this one again."
)

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


class Rate:
    """Events per second, with a memory of about a second."""

    def __init__(self) -> None:
        self._count = self._last_s = 0.0

    def add(self, now_s: float) -> None:
        """Note an event."""
        self._count, self._last_s = self.per_s(now_s) * _MEMORY_S + 1, now_s

    def per_s(self, now_s: float) -> float:
        """The rate now."""
        return self._count * math.exp((self._last_s - now_s) / _MEMORY_S) / _MEMORY_S


class TurnstileMiddleware:
    """ASGI middleware. Of an address's requests, it lets so many through that about `max_refused_per_s` are refused.

    Args:
        app: the app behind it.
        metrics: where it counts whom it turns away.
        max_refused_per_s: refusals per second and address.
        hold_s: seconds after which a request that is turned away is answered.
        clock: the time in seconds.
        chance: a random number in [0, 1).
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        max_refused_per_s: float = MAX_REFUSED_PER_S,
        hold_s: float = HOLD_S,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._max_refused_per_s = max_refused_per_s
        self._hold_s = hold_s
        self._clock = clock
        self._chance = chance
        self._refused: OrderedDict[str, Rate] = OrderedDict()  # in order of their latest refusals

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        client = scope.get("client")
        caller = network_of(client[0] if client else None)
        if self._is_turned_away(caller):
            self._note(caller)
            self._metrics.count_shed("turned_away")
            current_record().is_turned_away = True
            await asyncio.sleep(self._hold_s)
            await response_of(OverloadedError(_MESSAGE, code=OVERLOADED))(scope, receive, send)
            return

        async def noting_refusals(message: Message) -> None:
            # Not one that was refused for the caller's own limits: that costs little, and has another remedy.
            if message["type"] == "http.response.start" and current_record().error_code == OVERLOADED:
                self._note(caller)
            await send(message)

        await self._app(scope, receive, noting_refusals)

    def _is_turned_away(self, caller: str) -> bool:
        rate = self._refused.get(caller)
        if rate is None:
            return False
        per_s = rate.per_s(self._clock())
        return per_s > self._max_refused_per_s and self._chance() >= self._max_refused_per_s / per_s

    def _note(self, caller: str) -> None:
        self._refused.setdefault(caller, Rate()).add(self._clock())
        self._refused.move_to_end(caller)
        if len(self._refused) > _MAX_CALLERS:
            self._refused.popitem(last=False)
