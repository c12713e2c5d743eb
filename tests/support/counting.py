"""Work, counted in calls of functions: the same on every machine, unlike its time."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from types import FrameType


class Calls:
    """Counts the calls that a thread makes, of functions in Python and in C."""

    def __init__(self) -> None:
        self._numbers = count()
        self._num_read = 0

    @property
    def total(self) -> int:
        """Calls so far."""
        self._num_read += 1
        return next(self._numbers) + 1 - self._num_read

    def note(self, _frame: FrameType, event: str, _arg: object) -> None:
        """For sys.setprofile."""
        if event in ("call", "c_call"):
            next(self._numbers)


def num_calls(function: Callable[[], object]) -> int:
    """Number of calls that a call of `function` makes."""
    calls, before = Calls(), sys.getprofile()
    sys.setprofile(calls.note)
    try:
        function()
    finally:
        sys.setprofile(before)
    return calls.total


@contextmanager
def calls_of_new_threads() -> Iterator[Calls]:
    """Counts the calls of all threads that are started meanwhile."""
    calls = Calls()
    threading.setprofile(calls.note)
    try:
        yield calls
    finally:
        threading.setprofile(None)  # type: ignore[arg-type]
