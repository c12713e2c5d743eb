"""What connections are told and what they may not do: how many there are, pipelining, proxies, heads and chunks."""

import contextlib
import json
import logging
import socket
import threading
from collections import Counter

import httpx
import pytest
import structlog
from support.serving import raw_request, serving
from support.waiting import PATIENCE_S, eventually

from superdraft.server.app import create_app
from superdraft.server.edge.api_keys import add_key
from superdraft.server.edge.http_protocol import BoundedHttpProtocol
from superdraft.server.observe.log_config import configure_logging
from superdraft.server.settings import Settings

REQUEST = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
HEAD = b"POST /v1/drafts HTTP/1.1\r\nHost: x\r\nContent-Length: 3000\r\n"


def connect(url):
    host, port = url.removeprefix("http://").split(":")
    return contextlib.closing(socket.create_connection((host, int(port)), timeout=PATIENCE_S))


def all_of(connection):
    """What the server says until it closes; a reset raises."""
    said = b""
    while piece := connection.recv(65536):
        said += piece
    return said


def one_answer_of(connection):
    """The next answer with an error."""
    said = b""
    while not said.endswith(b"}") and (piece := connection.recv(65536)):
        said += piece
    return said


@pytest.fixture
def serve(engine):
    with contextlib.ExitStack() as stack:
        yield lambda **settings: stack.enter_context(
            serving(create_app(Settings(**settings), engine, model_name="tiny"))
        )


@pytest.mark.parametrize("keys", [None, "ann=0123456789-0123456789"], ids=["too large", "no key"])
def test_who_is_refused_while_sending_reads_the_answer(serve, keys):
    url = serve(api_keys=keys, max_body_bytes=1000)
    body = b"x" * 3_000_000
    head = f"POST /v1/drafts HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    for _ in range(5):
        with connect(url) as connection:
            connection.sendall(head + body)
            assert one_answer_of(connection).startswith(b"HTTP/1.1 413 " if keys is None else b"HTTP/1.1 401 ")
            assert is_healthy(connection)  # it can be used on


def is_healthy(connection):
    connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    return one_answer_of(connection).startswith(b"HTTP/1.1 200")


def half_open(stack, url, number):
    """Connections that were answered once, and have sent half of a head since."""
    opened = [stack.enter_context(connect(url)) for _ in range(number)]
    for connection in opened:
        assert is_healthy(connection)  # the server has it
        connection.sendall(HEAD)
    return opened


def test_half_sent_requests_do_not_keep_out_others(serve):
    url = serve(max_connections=8, receive_timeout_s=600)
    with contextlib.ExitStack() as stack:
        first, *others = half_open(stack, url, 8)
        assert is_healthy(stack.enter_context(connect(url)))
        with contextlib.suppress(ConnectionResetError):
            assert first.recv(1) == b""  # the one that had waited longest
        for connection in others:
            connection.sendall(b"\r\n" + b" " * 3000)
            assert one_answer_of(connection).startswith(b"HTTP/1.1 400 ")


def test_whoever_is_refused_a_connection_reads_why(serve, pieces, stepwise, monkeypatch):
    monkeypatch.setattr("superdraft.server.edge.http_protocol._MAX_REFUSED", 2)
    monkeypatch.setattr("superdraft.server.edge.http_protocol._LAST_WORDS_S", 60)
    url = serve(max_connections=3)
    with contextlib.ExitStack() as stack:
        for _ in range(3):  # none of them waits: all are being answered
            stack.enter_context(raw_request(url, "/v1/drafts", prompt="hi", max_tokens=20))
        assert eventually(lambda: len(pieces) == 3)
        for _ in range(2):
            refused = stack.enter_context(connect(url))
            refused.sendall(REQUEST)  # it is never read
            said = one_answer_of(refused)
            assert said.startswith(b"HTTP/1.1 503 ")
            assert b"too_many_connections" in said
        third = stack.enter_context(connect(url))
        with contextlib.suppress(ConnectionResetError):  # which may overtake the answer
            all_of(third)  # closed at once: few refused connections stay open
        stepwise.release(1000)


def test_a_server_that_ends_does_not_wait_for_half_sent_requests(engine, caplog):
    app = create_app(Settings(receive_timeout_s=600), engine, model_name="tiny")
    with contextlib.ExitStack() as stack, serving(app) as url:
        half_open(stack, url, 3)
        for _ in range(3):
            stack.enter_context(connect(url)).sendall(HEAD + b"\r\n{")
        assert is_healthy(stack.enter_context(connect(url)))
    assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_rush_of_connections_lets_others_have_their_turn(serve, monkeypatch):
    turns = []  # of the event loop, in which a connection was made
    turn = 0
    made = BoundedHttpProtocol.connection_made

    def count_turns(loop):
        nonlocal turn
        turn += 1
        if len(turns) < 200:
            loop.call_soon(count_turns, loop)

    def noted(self, transport):
        made(self, transport)
        if not turns:
            count_turns(self.loop)
            assert are_waiting.wait(PATIENCE_S)  # the event loop stands still, and connections queue up
        turns.append(turn)

    are_waiting = threading.Event()
    monkeypatch.setattr(BoundedHttpProtocol, "connection_made", noted)
    with contextlib.ExitStack() as stack:
        url = serve()
        for _ in range(200):
            stack.enter_context(connect(url))
        are_waiting.set()
        assert eventually(lambda: len(turns) == 200)
    assert max(Counter(turns).values()) <= 16


@pytest.mark.parametrize(("networks", "is_believed"), [((), False), (("127.0.0.1",), True), (("10.0.0.0/8",), False)])
def test_who_a_client_is_is_taken_from_configured_proxies_alone(serve, monkeypatch, networks, is_believed):
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    url = serve(proxy_networks=networks, rate_limit="1/hour")
    statuses = [
        httpx.post(
            f"{url}/v1/drafts", json={"prompt": "a", "max_tokens": 1}, headers={"x-forwarded-for": f"192.0.2.{i}"}
        ).status_code
        for i in range(3)
    ]
    assert statuses == ([200] * 3 if is_believed else [200, 429, 429])


def test_a_pipelined_request_has_nothing_of_the_one_before_it(serve, tmp_path, capsys):
    file = tmp_path / "keys.toml"
    key = add_key(file, "ann", ["complete"])
    body = b'{"prompt": "a", "max_tokens": 1}'
    head = b"POST /v1/drafts HTTP/1.1\r\nHost: x\r\n%bContent-Length: 32\r\n\r\n"
    assert len(body) == 32
    root, config = logging.getLogger(), structlog.get_config()
    handlers, level = root.handlers, root.level
    configure_logging("debug", "json")  # requests that succeed are logged at this level
    try:
        with connect(serve(api_keys_file=file)) as connection:
            named = head % f"Authorization: Bearer {key}\r\n".encode() + body
            connection.sendall(named + head % b"Connection: close\r\n" + body)
            answers = all_of(connection)
    finally:
        root.handlers, root.level = handlers, level
        structlog.configure(**config)
    assert answers.count(b"HTTP/1.1 200 ") == answers.count(b"HTTP/1.1 401 ") == 1
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines() if '"event": "request"' in line]
    assert [(line["status"], line.get("api_key")) for line in lines] == [(200, "ann"), (401, None)]


def test_a_head_of_thousands_of_fields_is_refused(serve):
    url = serve()
    for fields, status in ((100, 200), (200, 400), (10_000, 400)):
        with connect(url) as connection:
            connection.sendall(
                b"GET /health HTTP/1.1\r\nConnection: close\r\nHost: x\r\n" + b"a:b\r\n" * fields + b"\r\n"
            )
            assert all_of(connection).startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.parametrize(("size", "is_refused"), [(1, True), (1000, False)])
def test_a_body_of_very_many_small_chunks_is_refused(serve, engine, size, is_refused):
    content = json.dumps({"prompt": "a", "path": "b" * 1000, "stop": ["c" * 20_000]}).encode()
    pieces = [content[start : start + size] for start in range(0, len(content), size)]
    body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    with connect(serve()) as connection:
        head = b"POST /v1/drafts HTTP/1.1\r\nConnection: close\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head + body + b"0\r\n\r\n")
        said = all_of(connection)
    assert said.startswith(b"HTTP/1.1 400 " if is_refused else b"HTTP/1.1 200 ")
    assert said.count(b"content-length: ") == 1
    assert (b"2000 chunks" in said) == is_refused
