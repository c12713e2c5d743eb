"""Streaming reader for plain and compressed files."""

import io
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import zstandard

_DECOMPRESSORS: Final[dict[str, Callable[[], Any]]] = {
    ".zst": lambda: zstandard.ZstdDecompressor().decompressobj(),
    ".gz": lambda: zlib.decompressobj(wbits=16 + zlib.MAX_WBITS),  # + 16: with the header and checksum of gzip
}
PACKED_SUFFIXES: Final = frozenset(_DECOMPRESSORS)
_READ_BYTES = 1 << 17


def open_unpacked(path: str, on_read: Callable[[int], None] = lambda _: None) -> BinaryIO:
    """Open a file for reading. If its name ends in `.zst` or `.gz`, it is decompressed while reading.

    Reading raises OSError if the data is damaged or truncated.

    Args:
        path: path of the file.
        on_read: called with the number of bytes read from disk, before decompression.
    """
    return cast(BinaryIO, io.BufferedReader(_UnpackedFile(path, on_read), _READ_BYTES))


class _UnpackedFile(io.RawIOBase):
    """The content of a file, which may be compressed in several frames (`.zst`) or members (`.gz`).

    Unlike zstandard's own reader, it does not accept a truncated file.
    """

    def __init__(self, path: str, on_read: Callable[[int], None]) -> None:
        self._file = Path(path).open("rb", buffering=0)  # noqa: SIM115 (closed with this object)
        self._on_read = on_read
        decompressor = _DECOMPRESSORS.get(Path(path).suffix.lower())
        self._blocks = self._read() if decompressor is None else self._decompress(decompressor)
        self._block = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._block:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._block = memoryview(block)
        num_bytes = min(len(buffer), len(self._block))
        buffer[:num_bytes] = self._block[:num_bytes]
        self._block = self._block[num_bytes:]
        return num_bytes

    def _read(self) -> Iterator[bytes]:
        while block := self._file.read(_READ_BYTES):
            self._on_read(len(block))
            yield block

    def _decompress(self, decompressor: Callable[[], Any]) -> Iterator[bytes]:
        frame = None
        for block in self._read():
            packed = block
            # Zeros may follow a gzip member.
            while packed := packed if frame is not None else packed.lstrip(b"\0"):
                frame = decompressor() if frame is None else frame
                try:
                    yield frame.decompress(packed)
                except (zlib.error, zstandard.ZstdError) as error:
                    raise OSError(f"the file is damaged ({error})") from None
                packed, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
        if frame is not None:
            raise OSError("the file is truncated")

    def close(self) -> None:
        self._file.close()
        super().close()
