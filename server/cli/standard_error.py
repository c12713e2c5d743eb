"""stderr that cannot fail.

A server writes progress and its log to stderr. Where that is a file on a full disk, a pipe without a reader
or closed, writing raises, and the server would end because of a line that is never seen anyway.
"""

import contextlib
import os
import sys
from pathlib import Path
from typing import Any, TextIO, cast

_LAST_STANDARD_DESCRIPTOR = 2


class _HarmlessStream:
    """A text stream from which what cannot be written is lost."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


def make_stderr_harmless() -> None:
    """Lose what cannot be written to stderr. One that is not the interpreter's own stays as it is."""
    if sys.stderr is not sys.__stderr__:
        return
    if sys.stderr is None:
        # Otherwise the next files and sockets would take the free descriptors, and libraries write to those.
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _LAST_STANDARD_DESCRIPTOR:
            pass
        os.close(descriptor)
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 (open until the process ends)
    else:
        sys.stderr = cast(TextIO, _HarmlessStream(sys.stderr))
