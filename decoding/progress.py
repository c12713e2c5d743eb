"""Stages of a long start: what is being done is shown on standard error, for as long as it is done."""

import contextlib
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner

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
        measured: tells the bytes done so far, or None; without it, `advance` does.

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


def _show(current: Stage, is_over: threading.Event, stream: TextIO) -> None:
    if is_over.wait(FIRST_S):
        return
    with contextlib.suppress(OSError, ValueError):  # the stream was closed
        console = Console(file=stream, highlight=False)
        if console.is_terminal and not console.is_dumb_terminal:
            # Not in place of the standard streams, which other libraries replace and put back meanwhile.
            options = {"auto_refresh": False, "transient": True, "redirect_stdout": False, "redirect_stderr": False}
            spinner = Spinner("dots", current.what)
            with Live(spinner, console=console, **options) as live:  # type: ignore[arg-type]
                while not is_over.wait(TERMINAL_S):
                    spinner.update(text=str(current))
                    live.refresh()
            return
        stream.write(f"{current}\n")
        stream.flush()
        while not is_over.wait(LOG_S):
            stream.write(f"{current}\n")
            stream.flush()
        stream.write(f"{current.what}: done in {math.ceil(current.seconds)} s\n")
        stream.flush()
