"""uvicorn's HTTP/1.1 protocol with limits, so that stalled connections do not affect other clients.

uvicorn itself waits without limit for the rest of a request and for a client that does not read its answer, and accepts
any number of connections. It also closes connections at once; if the client is still sending then, the system resets
the connection, and the client may lose the answer that says why.
"""

import asyncio
import ipaddress
import re
import socket
from collections.abc import Mapping, Sequence
from typing import Any, cast

import h11
from h11._readers import ChunkedReader
from h11._receivebuffer import ReceiveBuffer
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from superdraft.server.edge.open_connections import OpenConnections
from superdraft.server.edge.rate_limits import network_of
from superdraft.server.edge.refusals import NO_RETRY, retry_after
from superdraft.server.edge.security_headers import SAFE_HEADERS

_LINGER_S = 2.0
_MAX_REFUSED = 64  # refused connections that linger: they are beyond the limits, and use files all the same
_MAX_HEAD_BYTES = 64 << 10
_MAX_HEADER_FIELDS = 128  # several times what browsers and proxies send; each takes time wherever headers are searched
_SMALL_BYTES = 256
_MAX_SMALL_CHUNKS = 2000  # each takes as much time as a large one, so a body of single bytes would take seconds
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
    "This is not a valid HTTP/1.1 request, or it is over a limit: a head or trailer of 64 KiB with 128 fields, a body "
    "with 2000 chunks of less than 256 bytes. Send the body with a Content-Length.",
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
_TOO_MANY_HERE = _answer(
    "503 Service Unavailable",
    "overloaded_error",
    "too_many_connections",
    "Too many connections are open from this address; use existing ones.",
    {**NO_RETRY, **retry_after(1.0)},
)

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _check_fields(received: bytes) -> None:
    """Refuse a head or a trailer, as far as it has been received, that is too large to be parsed."""
    found = _END_OF_HEAD.search(received)
    end = len(received) if found is None else found.start()
    if end > _MAX_HEAD_BYTES or received.count(b"\n", 0, end) > _MAX_HEADER_FIELDS:
        raise h11.RemoteProtocolError("the head or the trailer is too large")


class _ChunkedReader(ChunkedReader):
    """h11's reader of chunked bodies; it would parse a trailer of any number of fields."""

    def __call__(self, buf: ReceiveBuffer) -> h11.Data | h11.EndOfMessage | None:
        if self._reading_trailer:  # h11 calls again when this begins
            received = bytes(buf)
            if not received.startswith((b"\r\n", b"\n")):  # there is one; otherwise, the next request may follow
                _check_fields(received)
        return super().__call__(buf)


class _Parser(h11.Connection):
    """A parser that refuses requests of very many small parts, whose parsing would hold up everybody."""

    _num_small = 0

    @property
    def has_unparsed(self) -> bool:
        """Whether something has been received that is no event yet. `trailing_data` would copy all of it."""
        return bool(self._receive_buffer)

    def next_event(self) -> Any:
        if self.their_state is h11.IDLE:
            _check_fields(self.trailing_data[0])
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._num_small = 0
            if isinstance(self._reader, ChunkedReader):
                self._reader = _ChunkedReader()
        elif isinstance(event, h11.Data) and len(event.data) < _SMALL_BYTES:
            self._num_small += 1
            if self._num_small > _MAX_SMALL_CHUNKS:
                raise h11.RemoteProtocolError("too many small chunks")
        return event


class BoundedHttpProtocol(H11Protocol):
    """One connection.

    A request, head and body, must be complete `receive_timeout_s` after its first byte, however many pieces it comes
    in. For the first request of a connection, the time counts from when the connection was opened. A client that reads
    nothing for as long is disconnected. When too many connections are open, another one is closed for a new one, or the
    new one is answered 503: see `OpenConnections`.

    A client that is still sending when its connection is closed gets time to read the answer.

    The limits are attributes of subclasses made by `bounded`, since uvicorn makes the objects. So are the connections
    that were refused and linger: they are not among the open ones, which give their places away when they linger.
    """

    conn: _Parser
    receive_timeout_s: float
    proxies: Sequence[Network]
    open_connections: OpenConnections
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
        self._lingering: asyncio.TimerHandle | None = None
        self.network: str | None = None

    # Called by asyncio

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(cast(asyncio.Transport, _PoliteTransport(transport, self)))
        peer = transport.get_extra_info("socket")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # detects clients that vanished
        self.network = None if self.client is None or self._is_proxy(self.client[0]) else network_of(self.client[0])
        limit = self.open_connections.add(self)
        if limit is not None:
            self._refuse(transport, _TOO_MANY_HERE if limit == "address" else _TOO_MANY)
            return
        self._receiving = self.loop.call_later(self.receive_timeout_s, self._on_receive_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended."""
        self.open_connections.remove(self)
        self.refused.discard(self)
        self._stop_receive_timer()
        self._stop_write_timer()
        if self._lingering is not None:
            self._lingering.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Part of a request has arrived."""
        if self.is_lingering:
            return
        super().data_received(data)
        self._watch()
        self.open_connections.note(self)

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
        self.open_connections.note(self)

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
    def is_lingering(self) -> bool:
        """Whether the connection has been answered for the last time, and what still comes is thrown away."""
        return self._lingering is not None

    @property
    def is_sending(self) -> bool:
        """Whether the client may be sending something that will not be read."""
        return self.conn.their_state in (h11.SEND_BODY, h11.ERROR) or self.conn.has_unparsed

    def linger(self, transport: asyncio.Transport) -> None:
        """End the answer, and close when the client has closed, or after a moment."""
        if self._lingering is None:
            self._lingering = self.loop.call_later(_LINGER_S, transport.close)
            self.flow.resume_reading()
            try:
                transport.write_eof()
            except OSError:  # the client has reset the connection
                transport.abort()
            self.open_connections.note(self)

    def _refuse(self, transport: asyncio.Transport, answer: bytes) -> None:
        """Answer and close. Most clients send a request at once; closed before it is read, they would get a reset."""
        self.connections.discard(self)
        transport.write(answer)
        if len(self.refused) < _MAX_REFUSED:
            self.refused.add(self)
            self.linger(transport)
        else:
            transport.close()

    @property
    def is_idle(self) -> bool:
        """Whether no part of a request is being received or answered."""
        is_answered = self.cycle is None or self.cycle.response_complete
        return is_answered and not self.transport.is_closing() and not self.conn.has_unparsed

    @property
    def is_dispensable(self) -> bool:
        """Whether the connection may be closed for a new one."""
        return self.is_idle or self.is_lingering

    @property
    def is_receiving(self) -> bool:
        """Whether a request, or the rest of one, is awaited, and not for long."""
        return self._receiving is not None

    def drop(self) -> None:
        """Close the connection for a new one."""
        self.connections.discard(self)
        self.transport.abort()

    def _watch(self) -> None:
        """Run the receive timer while a request is arriving, from its first byte."""
        is_arriving = self.conn.their_state is h11.SEND_BODY
        is_arriving |= self.conn.their_state is h11.IDLE and self.conn.has_unparsed
        if not is_arriving or self.transport.is_closing():
            self._stop_receive_timer()
        elif self._receiving is None:
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
            is_answered = self.is_idle
        if not is_answered:
            self.transport.write(_TIMED_OUT)
        self.transport.close()

    def _is_proxy(self, address: str) -> bool:
        return any(ipaddress.ip_address(address.partition("%")[0]) in network for network in self.proxies)


class _PoliteTransport:
    """A connection's transport, which lingers if it is closed while the client is sending."""

    def __init__(self, transport: asyncio.Transport, protocol: BoundedHttpProtocol) -> None:
        self._transport = transport
        self._protocol = protocol

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self._protocol.is_lingering or self._transport.is_closing()

    def close(self) -> None:
        if self._protocol.is_sending and not self._transport.is_closing():
            self._protocol.linger(self._transport)
        else:
            self._transport.close()


def bounded(
    receive_timeout_s: float,
    max_connections: int,
    max_connections_per_address: int,
    proxies: Sequence[str] = (),
) -> type[BoundedHttpProtocol]:
    """A subclass of the protocol with these limits.

    Args:
        receive_timeout_s: seconds.
        max_connections: of all clients.
        max_connections_per_address: of one IPv4 address, or one IPv6 network.
        proxies: addresses and networks that connect for many clients, and so have no limit of their own.
    """
    limits = {
        "receive_timeout_s": receive_timeout_s,
        "proxies": [ipaddress.ip_network(proxy) for proxy in proxies],
        "open_connections": OpenConnections(max_connections, max_connections_per_address),
        "refused": set(),
    }
    return type("BoundedHttpProtocol", (BoundedHttpProtocol,), limits)
