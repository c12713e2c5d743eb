"""Progress of a long start on standard error: `stage` for as long as something takes, `say` once."""

import contextlib
import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from superdraft.decoding.memory import shown

FIRST_S = 0.5
"""Shorter stages say nothing."""

LOG_S = 5.0
TERMINAL_S = 0.2


class Stage:
    """Something that takes long, and how far it is.

    Args:
        what: what is being done, such as "Reading x.gguf".
        total: bytes to do; None: unknown.
        measured: returns the bytes done so far, or None; without it, `advance` does.

    Attributes:
        what: as above; it may change.
        total: as above; it may change.
    """

    def __init__(self, what: str, total: int | None = None, measured: Callable[[], int | None] | None = None) -> None:
        self.what = what
        self.total = total
        self._measured = measured
        self._done: int | None = None
        self._begin = time.monotonic()

    def advance(self, num_bytes: float) -> None:
        """Count bytes that are done."""
        self._done = (self._done or 0) + int(num_bytes)

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._begin

    def __str__(self) -> str:
        seconds = self.seconds
        done = self._done if self._measured is None else self._measured()
        parts = [f"{seconds:.0f} s"]
        if done is not None and done > 0:
            # An estimated total is not always reached exactly.
            of = "" if self.total is None else f" of {shown(self.total)}"
            parts += [f"{shown(done if self.total is None else min(done, self.total))}{of}"]
            parts += [f"{shown(done / seconds)}/s"] if seconds >= 1 else []
        return f"{self.what}: {', '.join(parts)}"


@contextlib.contextmanager
def stage(what: str, *, total: int | None = None, measured: Callable[[], int | None] | None = None) -> Iterator[Stage]:
    """Show what is being done: on a terminal in a line that is updated, elsewhere in a line every five seconds.

    Args:
        what: see `Stage`.
        total: see `Stage`.
        measured: see `Stage`. Another thread calls it.
    """
    current, is_over = Stage(what, total, measured), threading.Event()
    # The stream itself: some libraries put another one in its place while they work.
    shower = threading.Thread(target=_show, args=(current, is_over, sys.stderr), name="progress", daemon=True)
    shower.start()
    try:
        yield current
    finally:
        is_over.set()
        shower.join()


def say(message: str) -> None:
    """Write a line."""
    _write(sys.stderr, f"{message}\n")


def _show(current: Stage, is_over: threading.Event, stream: TextIO) -> None:
    if is_over.wait(FIRST_S):
        return
    if _can_erase(stream):
        while not is_over.wait(TERMINAL_S):
            _write(stream, str(current)[: shutil.get_terminal_size().columns - 1])
        _write(stream, "")
        return
    _write(stream, f"{current}\n")
    while not is_over.wait(LOG_S):
        _write(stream, f"{current}\n")
    _write(stream, f"{current.what}: done in {math.ceil(current.seconds)} s\n")


def _can_erase(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def _write(stream: TextIO, text: str) -> None:
    """Write in place of an unfinished line."""
    with contextlib.suppress(OSError, ValueError):  # the stream was closed
        stream.write(f"\r\x1b[2K{text}" if _can_erase(stream) else text)
        stream.flush()
