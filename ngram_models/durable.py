"""Files and folders that survive a power cut, and folders that one process uses at a time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

LOCK_FILE: Final = "lock"


def force(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk: a power cut may otherwise leave zeros."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def rename_durably(partial: Path, final: Path) -> Path:
    """Rename a finished file after syncing its content, so that the new name never points to incomplete data."""
    force(partial)
    return partial.replace(final)


@contextmanager
def locked(folder: Path, error: Exception) -> Iterator[None]:
    """Lock a folder for this process; raise `error` if another process has locked it."""
    try:
        with FileLock(folder / LOCK_FILE, blocking=False):
            yield
    except Timeout:
        raise error from None
