"""Incremental parser for server-sent events (HTML standard, 9.2.6 "Interpreting an event stream").

No library is used: httpx-sse splits lines with `str.splitlines`, which also splits at characters that may occur in JSON
(U+2028, U+0085), and it does not check that the bytes are UTF-8.
"""

from collections.abc import Iterator

from superdraft.client.errors import InvalidAnswerError

MAX_EVENT_BYTES = 16 << 20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class EventParser:
    """Turns chunks of bytes into the data of each complete event. Event names, ids and retry times are ignored.

    As the standard requires, an event that is incomplete when the stream ends is discarded.
    """

    def __init__(self) -> None:
        self._line = bytearray()  # the line not yet complete
        self._data: list[bytes] = []
        self._num_bytes = 0
        self._is_first_line = True
        self._after_cr = False

    def feed(self, chunk: bytes) -> Iterator[str]:
        """Yield the data of each event that `chunk` completes; multiple data lines are joined by line feeds.

        Raises:
            InvalidAnswerError: the data is not UTF-8, or an event is larger than 16 MiB.
        """
        if self._after_cr and chunk:
            self._after_cr = False
            chunk = chunk.removeprefix(b"\n")
        self._after_cr = self._after_cr or chunk.endswith(b"\r")
        *ends, rest = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        for part in ends:
            self._grow(part)
            yield from self._end_line()
        self._grow(rest)

    def _grow(self, part: bytes) -> None:
        self._line += part
        self._num_bytes += len(part)
        if self._num_bytes > MAX_EVENT_BYTES:
            raise InvalidAnswerError(f"An event of the stream is larger than {MAX_EVENT_BYTES >> 20} MiB.")

    def _end_line(self) -> Iterator[str]:
        line = bytes(self._line)
        self._line.clear()
        if self._is_first_line:
            self._is_first_line = False
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if not line:
            data, self._data, self._num_bytes = self._data, [], 0
            if data:
                yield _text(b"\n".join(data))
            return
        field, _, value = line.partition(b":")
        if field == b"data":
            self._data.append(value.removeprefix(b" "))


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidAnswerError(
            f"An event of the stream is not UTF-8 ({error.reason} at byte {error.start})."
        ) from None
