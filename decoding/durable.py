"""Files and folders that are there as a whole or not at all, also after a crash or a power cut.

What is new is written under another name, forced to the disk, and only then renamed; what it replaces is removed last.
A system that loses power may otherwise keep a name and a size, and lose the content. `facts` tell whether a file is
still what it was, quickly enough for every start.
"""

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

_ABANDONED_S = 3600  # no file takes as long to write: what is older was left by a process that was killed


_SMALL_BYTES = 16 << 20
"""Files up to this size are hashed as a whole."""

_HEAD_BYTES = 1 << 20
_BLOCK_BYTES, _NUM_BLOCKS = 64 << 10, 32


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A file that takes the place of `path` when the context ends, unless it ends with an error.

    Args:
        path: in a folder that exists. Several processes may write the same file.

    Yields:
        Where to write it.
    """
    for left in path.parent.glob(f".{path.name}.*.partial"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > _ABANDONED_S:
                left.unlink()
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        _force(partial)
        partial.replace(path)
        _force(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder that takes the place of `folder` when the context ends, unless it ends with an error.

    What an earlier, killed process left is removed.

    Args:
        folder: in a folder that exists. The caller has locked it.

    Yields:
        An empty folder to fill.
    """
    partial, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("partial", "old"))
    for left in (partial, old):
        shutil.rmtree(left, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        for path in (*partial.rglob("*"), partial):
            _force(path)
        with contextlib.suppress(FileNotFoundError):
            folder.rename(old)
        partial.rename(folder)
        _force(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def locked(path: Path, on_wait: Callable[[], object]) -> Iterator[None]:
    """Lock what `path` stands for against other processes.

    Args:
        path: `.NAME.lock` beside it is the lock.
        on_wait: called if another process has it.
    """
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        on_wait()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def sample(path: Path) -> str:
    """Hash of a small file; of a large one's beginning, end, and blocks at even distances. Hex digits."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= _SMALL_BYTES:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256(file.read(_HEAD_BYTES))
        for block in range(_NUM_BLOCKS):
            file.seek((size - _BLOCK_BYTES) * (block + 1) // _NUM_BLOCKS)
            digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()


def facts(path: Path) -> dict[str, Any]:
    """Size and sample of a file, for a marker in JSON.

    Raises:
        OSError: it cannot be read.
    """
    return {"size": path.stat().st_size, "sample": sample(path)}


def _force(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk."""
    if os.name == "nt" and path.is_dir():  # Windows opens no folders
        return
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
