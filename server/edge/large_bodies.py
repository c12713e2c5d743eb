"""Turns for large bodies.

While a body is parsed, the event loop does nothing else: for a mebibyte of text a millisecond or two, for one of nested
lists forty. A few clients that send such bodies without a pause would have the event loop to themselves.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from superdraft.server.edge.refusals import OverloadedError

LARGE_BYTES = 64 << 10
MAX_WAITING = 32
_PAUSE_SHARE = 3.0  # of the time that the parsing took, so that others have three quarters of the event loop


class LargeBodies:
    """Lets large bodies be parsed one at a time, first come, first served, with a pause after each.

    The pause is a multiple of the time that the parsing took. So bodies of text, which are parsed quickly, hardly wait.

    Args:
        clock: monotonic seconds.
        sleep: waits for some seconds.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._clock, self._sleep = clock, sleep
        self._turns = asyncio.Lock()
        self._num_waiting = 0
        self._free_s = clock()

    @asynccontextmanager
    async def turn(self, num_bytes: int) -> AsyncIterator[None]:
        """Wait for a turn to parse a body, in the context, without awaiting anything.

        Args:
            num_bytes: size of the body. A small one has its turn at once.

        Raises:
            OverloadedError: too many large bodies wait.
        """
        if num_bytes < LARGE_BYTES:
            yield
            return
        if self._num_waiting >= MAX_WAITING:
            raise OverloadedError(
                f"{MAX_WAITING} bodies of {LARGE_BYTES >> 10} KiB or more wait to be read. Send a shorter text.",
                code="overloaded",
            )
        self._num_waiting += 1
        try:
            async with self._turns:
                await self._sleep(max(0.0, self._free_s - self._clock()))
                begun_s = self._clock()
                try:
                    yield
                finally:
                    ended_s = self._clock()
                    self._free_s = ended_s + _PAUSE_SHARE * (ended_s - begun_s)
        finally:
            self._num_waiting -= 1
