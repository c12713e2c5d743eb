"""Files of accepted texts, one a user: what was written is there after a crash, and nobody else may read it."""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from superdraft.ngram_models.scoring.personal import AcceptedText

FILE_MODE: Final = 0o600
FOLDER_MODE: Final = 0o700


class AcceptedTexts:
    """A file of JSON lines, the oldest text first. For one thread of one process.

    A line that was not finished, because the process was killed, is left out when reading and cut off before the next
    one is written. All methods raise OSError when the disk does not do what it should.

    Args:
        path: of the file; its folder is made when needed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[AcceptedText]:
        """All texts; none if there is no file."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return []
        return [text for line in content.split(b"\n")[:-1] if (text := _parse(line)) is not None]

    def append(self, text: AcceptedText) -> None:
        """Add a text; returns when it is on the disk."""
        is_new = not self.path.exists()
        if is_new:
            make_private_folder(self.path.parent)
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, FILE_MODE)
        try:
            size = _finished_size(descriptor)
            os.ftruncate(descriptor, size)
            try:
                _write(descriptor, _line(text))
                os.fsync(descriptor)
            except OSError:
                # The caller will say that it failed: a later reading must not find it.
                os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)
        if is_new:
            _sync_folder(self.path.parent)

    def replace(self, texts: Sequence[AcceptedText]) -> None:
        """Put other texts in place of all that there are; a crash leaves the ones or the others."""
        partial = self.path.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
        try:
            _write(descriptor, b"".join(map(_line, texts)))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        partial.replace(self.path)
        _sync_folder(self.path.parent)

    def delete(self) -> None:
        """Remove the file; returns when it is gone from the disk."""
        with suppress(FileNotFoundError):
            self.path.with_suffix(".partial").unlink()
        with suppress(FileNotFoundError):
            self.path.unlink()
            _sync_folder(self.path.parent)


def make_private_folder(folder: Path) -> None:
    """Make a folder, and those above it, that only its owner may look into."""
    if not folder.is_dir():
        make_private_folder(folder.parent)
        folder.mkdir(mode=FOLDER_MODE, exist_ok=True)
        _sync_folder(folder.parent)


def _line(text: AcceptedText) -> bytes:
    return json.dumps(text._asdict()).encode() + b"\n"


def _parse(line: bytes) -> AcceptedText | None:
    """The text of a line; None if it is damaged."""
    try:
        row = json.loads(line)
        before, text = row["before"], row["text"]
    except (ValueError, TypeError, KeyError):
        return None
    return AcceptedText(before, text) if isinstance(before, str) and isinstance(text, str) else None


def _finished_size(descriptor: int) -> int:
    """Bytes up to the end of the last whole line."""
    position = os.fstat(descriptor).st_size
    while position:
        start = max(0, position - 4096)
        os.lseek(descriptor, start, os.SEEK_SET)
        newline = os.read(descriptor, position - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        position = start
    return 0


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _sync_folder(folder: Path) -> None:
    """Put the folder's own list of files on the disk, where the system can do that."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
