"""Waits for what must come. They end when it comes; the limit is there for what never does."""

import asyncio
import time
from collections.abc import Callable

PATIENCE_S = 300.0
"""Long enough for a machine that is slow, crowded, and does nothing else first."""


def eventually(condition: Callable[[], object]) -> bool:
    """Wait until `condition` holds; False if it still does not after PATIENCE_S."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.005)
    return True


async def until(condition: Callable[[], object]) -> None:
    """Let other tasks run until `condition` holds.

    Raises:
        AssertionError: it still does not after PATIENCE_S.
    """
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, "what was waited for did not come"
        await asyncio.sleep(0.002)
