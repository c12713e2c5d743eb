"""uvicorn's HTTP/1.1 protocol with limits, so that a few clients do not take the server from all others.

uvicorn itself waits without limit for the rest of a request and for a client that does not read its answer, and accepts
any number of connections. What these limits leave to a proxy is in docs/security.md.
"""

import asyncio
import re
import socket
from collections.abc import Mapping
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from superdraft.server.edge.browsers import SAFE_HEADERS
from superdraft.server.edge.refusals import NO_RETRY, retry_after

_MAX_HEAD_BYTES = 64 << 10
_MAX_HEADER_FIELDS = 128  # several times what browsers and proxies send; each takes time wherever headers are searched
_SMALL_BYTES = 256
_MAX_SMALL_CHUNKS = 2000  # each takes as much time as a large one, so a body of single bytes would take seconds
_MAX_REFUSED = 64  # refused connections that stay for a moment: they are beyond the limit, and use files all the same
_LAST_WORDS_S = 1.0
_END_OF_HEAD = re.compile(rb"\n\r?\n")


def _answer(status: str, kind: str, code: str, message: str, headers: Mapping[str, str] | None = None) -> bytes:
    """A complete answer without the app; the connection is closed after it."""
    body = f'{{"error":{{"message":"{message}","type":"{kind}","param":null,"code":"{code}"}},"request_id":null}}'
    own = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
    lines = [f"{name}: {value}" for name, value in {**own, **SAFE_HEADERS, **(headers or {})}.items()]
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", body]).encode()


_NOT_HTTP = _answer(
    "400 Bad Request",
    "invalid_request_error",
    "invalid_http",
    "This is not a valid HTTP/1.1 request, or it is over a limit: a head of 64 KiB with 128 fields, a body with 2000 "
    "chunks of less than 256 bytes. Send the body with a Content-Length.",
)
_TIMED_OUT = _answer(
    "408 Request Timeout",
    "invalid_request_error",
    "request_timeout",
    "The request did not arrive completely in time; send it again.",
)
_TOO_MANY = _answer(
    "503 Service Unavailable",
    "overloaded_error",
    "too_many_connections",
    "Too many connections are open; use existing ones.",
    {**NO_RETRY, **retry_after(1.0)},
)


class _Parser(h11.Connection):
    """A parser that refuses requests of very many small parts, whose parsing would hold up all others."""

    _num_small = 0

    def next_event(self) -> Any:
        if self.their_state is h11.IDLE:
            head, *_ = _END_OF_HEAD.split(self.trailing_data[0], 1)
            if len(head) > _MAX_HEAD_BYTES or head.count(b"\n") > _MAX_HEADER_FIELDS:
                raise h11.RemoteProtocolError("the head is too large")
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._num_small = 0
        elif isinstance(event, h11.Data) and len(event.data) < _SMALL_BYTES:
            self._num_small += 1
            if self._num_small > _MAX_SMALL_CHUNKS:
                raise h11.RemoteProtocolError("too many small chunks")
        return event


class BoundedHttpProtocol(H11Protocol):
    """One connection.

    A request, head and body, must be complete `receive_timeout_s` after its first byte, however many pieces it comes
    in. For the first request of a connection, the time counts from when the connection was opened. A client that reads
    nothing for as long is disconnected.

    For a connection beyond `max_connections`, the one is closed that has waited longest for a request or for the rest
    of one. If requests of all connections are being answered, the new one gets 503.

    The limits are attributes of subclasses made by `bounded`, since uvicorn makes the objects.

    Attributes:
        waiting: the connections that wait for a request, or for the rest of one, longest first.
        refused: those that got 503, and are open a moment longer, so that their clients read it. They do not count.
    """

    receive_timeout_s: float
    max_connections: int
    waiting: "dict[BoundedHttpProtocol, None]"
    refused: "set[BoundedHttpProtocol]"

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.conn = _Parser(h11.SERVER, _MAX_HEAD_BYTES)
        self._receiving: asyncio.TimerHandle | None = None
        self._stuck: asyncio.TimerHandle | None = None

    # Called by asyncio

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        peer = transport.get_extra_info("socket")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # detects clients that vanished
        if len(self.connections) > self.max_connections and not self._drop_longest_waiting():
            self._refuse()
            return
        self.waiting[self] = None
        self._start_receive_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended."""
        self.waiting.pop(self, None)
        self.refused.discard(self)
        self._stop_receive_timer()
        self._stop_write_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Part of a request has arrived."""
        if self not in self.refused:
            super().data_received(data)
            self._watch()

    def pause_writing(self) -> None:
        """The client reads more slowly than the server writes."""
        super().pause_writing()
        self._stop_write_timer()
        self._stuck = self.loop.call_later(self.receive_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._stop_write_timer()
        super().resume_writing()

    # Called by uvicorn

    def on_response_complete(self) -> None:
        """An answer has been written."""
        super().on_response_complete()
        self._watch()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 (uvicorn always passes the same text)
        """Answer what is not HTTP. uvicorn would use plain text, and fail if the request had been answered already."""
        if self.cycle is not None:
            self.cycle.disconnected = True  # the app's answer must not follow this one
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.write(_NOT_HTTP)
        self.transport.close()

    def _unsupported_upgrade_warning(self) -> None:
        """Do nothing. uvicorn would log advice to install a library whenever a client asks for a WebSocket."""

    def timeout_keep_alive_handler(self) -> None:
        """No further request came in time."""
        if self.transport.get_write_buffer_size():  # the last answer was not read, and closing would wait for that
            self.transport.abort()
        super().timeout_keep_alive_handler()

    # Own methods

    @property
    def is_receiving(self) -> bool:
        """Whether a request, or the rest of one, is awaited, and not for long."""
        return self._receiving is not None

    def _watch(self) -> None:
        """Run the receive timer while a request is arriving, from its first byte, and keep `waiting` up to date."""
        is_answered = self.cycle is None or self.cycle.response_complete
        is_arriving = self.conn.their_state is h11.SEND_BODY
        is_arriving |= self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0])
        if self.transport.is_closing() or not (is_answered or is_arriving):
            self.waiting.pop(self, None)
        else:
            self.waiting.setdefault(self)  # in its old place, if it still waits
        if not is_arriving or self.transport.is_closing():
            self._stop_receive_timer()
        elif self._receiving is None:
            self._start_receive_timer()

    def _drop_longest_waiting(self) -> bool:
        """Close a connection for a new one; returns False if none waits."""
        longest = next(iter(self.waiting), None)
        if longest is None:
            return False
        del self.waiting[longest]
        self.connections.discard(longest)
        longest.transport.abort()
        return True

    def _refuse(self) -> None:
        """Answer 503. Closed before its request is read, the connection would be reset, and the answer lost."""
        self.connections.discard(self)
        self.transport.write(_TOO_MANY)
        if len(self.refused) < _MAX_REFUSED:
            self.refused.add(self)
            self.loop.call_later(_LAST_WORDS_S, self.transport.close)
        else:
            self.transport.close()

    def _start_receive_timer(self) -> None:
        self._receiving = self.loop.call_later(self.receive_timeout_s, self._on_receive_timeout)

    def _stop_receive_timer(self) -> None:
        if self._receiving is not None:
            self._receiving.cancel()
            self._receiving = None

    def _stop_write_timer(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None

    def _on_receive_timeout(self) -> None:
        self._receiving = None
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # the app's answer must not follow this one
            is_answered = self.cycle.response_started
        else:
            is_answered = not self.conn.trailing_data[0]
        if not is_answered:
            self.transport.write(_TIMED_OUT)
        self.transport.close()


def bounded(receive_timeout_s: float, max_connections: int) -> type[BoundedHttpProtocol]:
    """A subclass of the protocol with these limits, and with connections of its own."""
    own = {"receive_timeout_s": receive_timeout_s, "max_connections": max_connections, "waiting": {}, "refused": set()}
    return type("BoundedHttpProtocol", (BoundedHttpProtocol,), own)
