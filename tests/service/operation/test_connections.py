"""What connections are told and what they may not do: closing, limits per address, pipelining, targets, proxies."""

import contextlib
import json
import logging
import socket
import threading
from collections import Counter

import httpx
import pytest
import structlog
from support.serving import serving
from support.waiting import PATIENCE_S, eventually

from superdraft.server.app import create_app
from superdraft.server.edge.api_keys import add_key
from superdraft.server.edge.http_protocol import BoundedHttpProtocol
from superdraft.server.observe.log_config import configure_logging
from superdraft.server.settings import Settings

HEAD = b"POST /v1/drafts HTTP/1.1\r\nHost: x\r\nContent-Length: 3000\r\n"


def connect(url, source="127.0.0.1"):
    host, port = url.removeprefix("http://").split(":")
    return contextlib.closing(
        socket.create_connection((host, int(port)), timeout=PATIENCE_S, source_address=(source, 0))
    )


def all_of(connection):
    """What the server says until it closes; a reset raises."""
    said = b""
    while piece := connection.recv(65536):
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
    head = f"POST /v1/drafts HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    for _ in range(5):
        with connect(url) as connection:
            connection.sendall(head + body)
            assert all_of(connection).startswith(b"HTTP/1.1 413 " if keys is None else b"HTTP/1.1 401 ")


def test_what_is_no_http_is_told_so_however_much_of_it_there_is(serve):
    with connect(serve()) as connection:
        connection.sendall(b"\x16\x03\x01\r\n\r\n" + b"x" * 2_000_000)
        assert all_of(connection).startswith(b"HTTP/1.1 400 ")


def test_who_never_stops_sending_is_cut_off(serve, monkeypatch):
    monkeypatch.setattr("superdraft.server.edge.http_protocol._LINGER_S", 0.2)
    with connect(serve(max_body_bytes=1000)) as connection:
        head = b"POST /v1/drafts HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 900000000\r\n\r\n"
        connection.sendall(head)

        def is_cut_off():
            try:
                connection.sendall(b"x" * 1000)
            except OSError:
                return True
            return False

        assert eventually(is_cut_off)


def is_healthy(connection):
    connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    said = b""
    while not said.endswith(b"}") and (piece := connection.recv(65536)):
        said += piece
    return said.startswith(b"HTTP/1.1 200")


def half_open(stack, url, number, source="127.0.0.1"):
    for _ in range(number):
        connection = stack.enter_context(connect(url, source))
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(65536)  # the server has it
        connection.sendall(HEAD)


def test_one_address_does_not_take_all_connections(serve):
    url = serve(max_connections_per_address=5, receive_timeout_s=600)
    with contextlib.ExitStack() as stack:
        half_open(stack, url, 5)

        def is_refused():
            with connect(url) as more:
                return b"from this address" in all_of(more) if not is_quiet(more) else False

        assert eventually(is_refused)
        assert is_healthy(stack.enter_context(connect(url, "127.0.0.2")))


def is_quiet(connection):
    connection.settimeout(0.5)
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except TimeoutError:
        return True


def test_a_few_addresses_with_half_sent_requests_do_not_keep_out_others(serve):
    url = serve(max_connections=8, max_connections_per_address=4, receive_timeout_s=600)
    with contextlib.ExitStack() as stack:
        half_open(stack, url, 4, "127.0.0.2")
        half_open(stack, url, 4, "127.0.0.3")
        for _ in range(3):
            assert is_healthy(stack.enter_context(connect(url)))
        with connect(url, "127.0.0.2") as refused:  # idle ones make room for them, of whom they are
            assert is_healthy(refused)


def test_a_server_that_ends_does_not_wait_for_half_sent_requests(engine, caplog):
    app = create_app(Settings(receive_timeout_s=600), engine, model_name="tiny")
    with contextlib.ExitStack() as stack, serving(app) as url:
        half_open(stack, url, 3)
        for _ in range(3):
            stack.enter_context(connect(url)).sendall(HEAD + b"\r\n{")
        assert is_healthy(stack.enter_context(connect(url)))
    assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


REQUEST = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("limit", "said"),
    [("max_connections_per_address", b"are open from this address"), ("max_connections", b"connections are open;")],
)
def test_who_is_refused_a_connection_reads_why_though_its_request_is_never_read(serve, limit, said):
    url = serve(receive_timeout_s=600, **{limit: 3})
    with contextlib.ExitStack() as stack:
        half_open(stack, url, 3)
        for _ in range(10):  # those that stay open take no place, and give none away
            refused = stack.enter_context(connect(url))
            refused.sendall(REQUEST)
            assert said in all_of(refused)


def test_those_who_are_refused_and_have_left_make_no_noise_in_the_log(serve, caplog):
    url = serve(receive_timeout_s=600, max_connections_per_address=3)
    with contextlib.ExitStack() as stack:
        half_open(stack, url, 3)
        for _ in range(100):
            with connect(url):
                pass
        with connect(url) as last:
            assert all_of(last).startswith(b"HTTP/1.1 503 ")
    assert not [record for record in caplog.records if record.exc_info]


def test_few_refused_connections_wait_for_their_clients_and_not_for_long(serve, monkeypatch):
    monkeypatch.setattr("superdraft.server.edge.http_protocol._MAX_REFUSED", 2)
    monkeypatch.setattr("superdraft.server.edge.http_protocol._LINGER_S", 3.0)
    url = serve(receive_timeout_s=600, max_connections_per_address=3)
    with contextlib.ExitStack() as stack:
        half_open(stack, url, 3)

        def is_reset():
            refused = stack.enter_context(connect(url))
            refused.sendall(REQUEST)
            with contextlib.suppress(ConnectionResetError):
                return all_of(refused) == b""
            return True

        assert [is_reset() for _ in range(4)] == [False, False, True, True]
        assert eventually(lambda: not is_reset())


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


def test_an_address_with_an_idle_connection_gets_a_new_one_for_it(serve):
    url = serve(max_connections_per_address=3)
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(connect(url)) for _ in range(3)]
        assert all(map(is_healthy, connections))
        assert is_healthy(stack.enter_context(connect(url)))
        with contextlib.suppress(ConnectionResetError):
            assert connections[0].recv(1) == b""
        assert is_healthy(connections[1])


def test_a_proxy_may_connect_for_many(serve):
    url = serve(max_connections_per_address=2, receive_timeout_s=600, proxy_networks=("127.0.0.0/8",))
    with contextlib.ExitStack() as stack:
        half_open(stack, url, 6)
        assert is_healthy(stack.enter_context(connect(url)))


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


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"http://x/health", b"200"),
        (b"HTTP://x:80/v1/models?a=b", b"200"),
        (b"https://user@x/health", b"200"),
        (b"http://x", b"200"),
        (b"http://x/nothing", b"404"),
        (b"http://[::1/health", b"404"),
    ],
)
def test_targets_in_absolute_form_are_paths(serve, target, status):
    with connect(serve()) as connection:
        connection.sendall(b"GET %b HTTP/1.1\r\nHost: y\r\nConnection: close\r\n\r\n" % target)
        assert all_of(connection).split()[1] == status


def test_the_host_of_an_absolute_target_counts(engine):
    with serving(create_app(Settings(), engine, model_name="tiny", is_local=True)) as url:
        for host, status in ((b"localhost", b"200"), (b"evil.example", b"403")):
            with connect(url) as connection:
                target = b"http://%b/v1/models" % host
                connection.sendall(b"GET %b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % target)
                assert all_of(connection).split()[1] == status


def test_a_head_of_thousands_of_fields_is_refused(serve):
    url = serve()
    for fields, status in ((100, 200), (200, 400), (50_000, 400)):
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


@pytest.mark.parametrize(("fields", "status"), [(0, 200), (100, 200), (200, 400), (10_000, 400)])
@pytest.mark.parametrize("pause", ["", "before the trailer", "within"])
def test_a_trailer_of_thousands_of_fields_is_refused(serve, pieces, fields, status, pause):
    head = b"POST /v1/drafts HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = b'10\r\n{"prompt": "hi"}\r\n0\r\n'
    trailer = b"a:b\r\n" * fields + b"\r\n"
    # The head of what follows has as many fields as are allowed, and they are not the trailer's.
    follows = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + b"a:b\r\n" * 125 + b"\r\n"
    sent = head + body + trailer + follows
    cut = {"": 0, "before the trailer": len(head + body), "within": len(head + body) + fields}[pause]
    with connect(serve()) as connection:
        connection.sendall(sent[:cut])
        assert eventually(lambda: sum(map(len, pieces)) >= cut)
        with contextlib.suppress(ConnectionError):  # it may have been refused by now
            connection.sendall(sent[cut:])
        said = all_of(connection)
    assert said.startswith(b"HTTP/1.1 %d " % status)
    assert said.count(b"content-length: ") == (2 if status == 200 else 1)
