"""Event loop with virtual time: when there is nothing to do, its clock jumps to the next timer."""

import asyncio
import selectors
from typing import Any


class _JumpingSelector(selectors.SelectSelector):
    """Never sleeps for a timer; adds up the time that it skipped."""

    def __init__(self) -> None:
        super().__init__()
        self.skipped_s = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout:
            self.skipped_s += timeout
        return super().select(timeout if timeout is None else 0)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """For coroutines that wait only for timers and for each other, not for input or output."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.skipped_s
