"""Reading files that may be packed, as a stream."""

import gzip
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import zstandard

PACKED_SUFFIXES: Final = frozenset({".zst", ".gz"})
_READ_BYTES = 1 << 17


def open_unpacked(path: str, on_read: Callable[[int], None]) -> BinaryIO:
    """Open a file for reading; one that ends in `.zst` or `.gz` is unpacked on the way.

    Reading damaged or truncated data raises OSError, EOFError or zstandard.ZstdError.

    Args:
        path: of the file.
        on_read: called with the number of bytes taken from the disk.
    """
    suffix = Path(path).suffix.lower()
    file = _CountedFile(path, on_read)
    if suffix == ".zst":
        return cast(BinaryIO, io.BufferedReader(_ZstdFile(file), buffer_size=_READ_BYTES))
    if suffix == ".gz":
        return cast(BinaryIO, io.BufferedReader(_GzipFile(file), buffer_size=_READ_BYTES))
    return io.BufferedReader(file, buffer_size=_READ_BYTES)


class _CountedFile(io.FileIO):
    """A file that tells how much of it is read."""

    def __init__(self, path: str, on_read: Callable[[int], None]) -> None:
        super().__init__(path)
        self._on_read = on_read

    def readinto(self, buffer: Any) -> int:
        num_bytes = super().readinto(buffer)
        self._on_read(num_bytes)
        return num_bytes

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(-1 if size is None else size)
        self._on_read(len(data))
        return data


class _GzipFile(gzip.GzipFile):
    """A `.gz` file that closes the file it reads: gzip leaves one that it did not open itself."""

    def __init__(self, file: io.FileIO) -> None:
        super().__init__(fileobj=file, mode="rb")
        self._packed = file

    def close(self) -> None:
        super().close()
        self._packed.close()


class _ZstdFile(io.RawIOBase):
    """The frames of a `.zst` file, one after another.

    zstandard's own reader takes a truncated file for a shorter one.
    """

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._compressed = b""
        self._decoded = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._decoded:
            data = self._compressed or self._file.read(_READ_BYTES)
            if not data:
                if self._frame is not None:
                    raise EOFError("it is truncated")
                return 0
            self._frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
            self._decoded = memoryview(self._frame.decompress(data))
            self._compressed = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        num_bytes = min(len(buffer), len(self._decoded))
        buffer[:num_bytes] = self._decoded[:num_bytes]
        self._decoded = self._decoded[num_bytes:]
        return num_bytes

    def close(self) -> None:
        self._file.close()
        super().close()
