"""Streaming reader for plain and compressed files."""

import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import zstandard

_DECOMPRESSORS: Final[dict[str, Callable[[], Any]]] = {
    ".zst": lambda: zstandard.ZstdDecompressor().decompressobj(),
    ".gz": lambda: zlib.decompressobj(wbits=16 + zlib.MAX_WBITS),  # + 16: with the header and checksum of gzip
}
PACKED_SUFFIXES: Final = frozenset(_DECOMPRESSORS)
_READ_BYTES = 1 << 17


def open_unpacked(path: str, on_read: Callable[[int], None]) -> BinaryIO:
    """Open a file for reading. If its name ends in `.zst` or `.gz`, it is decompressed while reading.

    Reading raises OSError if the data is damaged or truncated.

    Args:
        path: path of the file.
        on_read: called with the number of bytes read from disk, before decompression.
    """
    file = io.BufferedReader(_CountedFile(path, on_read), _READ_BYTES)
    decompressor = _DECOMPRESSORS.get(Path(path).suffix.lower())
    if decompressor is None:
        return file
    return cast(BinaryIO, io.BufferedReader(_DecompressedFile(file, decompressor), _READ_BYTES))


class _CountedFile(io.FileIO):
    """A file that reports how many bytes are read from it."""

    def __init__(self, path: str, on_read: Callable[[int], None]) -> None:
        super().__init__(path)
        self._on_read = on_read

    def readinto(self, buffer: Any) -> int:
        num_bytes = super().readinto(buffer)
        self._on_read(num_bytes)
        return num_bytes


class _DecompressedFile(io.RawIOBase):
    """The content of a compressed file, which may consist of several frames (`.zst`) or members (`.gz`).

    Unlike zstandard's own reader, it does not accept a truncated file.
    """

    def __init__(self, file: "io.BufferedReader[_CountedFile]", decompressor: Callable[[], Any]) -> None:
        self._file = file
        self._decompressor = decompressor
        self._frame: Any = None
        self._compressed = b""
        self._decompressed = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._decompressed:
            data = self._compressed or self._file.read1(_READ_BYTES)
            if not data:
                if self._frame is not None:
                    raise OSError("the file is truncated")
                return 0
            self._decompress(data)
        num_bytes = min(len(buffer), len(self._decompressed))
        buffer[:num_bytes] = self._decompressed[:num_bytes]
        self._decompressed = self._decompressed[num_bytes:]
        return num_bytes

    def _decompress(self, data: bytes) -> None:
        self._compressed = b""
        if self._frame is None:
            data = data.lstrip(b"\0")  # a gzip member may be followed by zeros
            if not data:
                return
            self._frame = self._decompressor()
        try:
            self._decompressed = memoryview(self._frame.decompress(data))
        except (zlib.error, zstandard.ZstdError) as error:
            raise OSError(f"the file is damaged ({error})") from None
        if self._frame.eof:
            self._compressed, self._frame = self._frame.unused_data, None

    def close(self) -> None:
        self._file.close()
        super().close()
