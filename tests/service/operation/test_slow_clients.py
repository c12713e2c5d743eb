"""Clients that hang: heads and bodies drop by drop, connections that say nothing, readers that take nothing."""

import contextlib
import json
import logging
import resource
import socket
import time

import httpx
import pytest
from support.counting import calls_of_new_threads
from support.engine import FakeEngine
from support.serving import expire, raw_request, serving
from support.waiting import PATIENCE_S, eventually

from superdraft.server.app import create_app
from superdraft.server.settings import Settings

TIMEOUT_S = 0.5
HEAD = b"POST /v1/drafts HTTP/1.1\r\nHost: x\r\nContent-Length: 3000\r\n"
BODY = {"prompt": "hi", "max_tokens": 1}


@pytest.fixture
def limited(engine):
    settings = Settings(receive_timeout_s=TIMEOUT_S, max_connections=20)
    with serving(create_app(settings, engine, model_name="tiny")) as url:
        yield url


@pytest.fixture
def patient(engine):
    """A server that gives requests time to arrive."""
    settings = Settings(receive_timeout_s=600, max_connections=20, max_body_bytes=1 << 20)
    with serving(create_app(settings, engine, model_name="tiny")) as url:
        yield url


def connect(url):
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
    return contextlib.closing(connection)


def all_of(connection):
    """What the server says until it closes; a reset counts as closed."""
    said = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            said += piece
    return said


def is_healthy(connection):
    connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    said = b""
    while not said.endswith(b"}") and (piece := connection.recv(65536)):
        said += piece
    return said.startswith(b"HTTP/1.1 200")


def answered_and_closed(connection):
    """The one answer before the server closed: its head in lower case, and its error."""
    head, _, body = all_of(connection).partition(b"\r\n\r\n")
    return head.decode().lower(), json.loads(body)["error"]


def breaks_while_dripping(connection, data):
    """Send a byte every few milliseconds; whether the connection broke before all were sent."""
    try:
        for byte in data:
            connection.sendall(bytes([byte]))
            time.sleep(0.02)
    except OSError:
        return True
    return False


@pytest.mark.parametrize("begun", [HEAD, HEAD + b'\r\n{"prompt": "hi"'], ids=["head", "body"])
@pytest.mark.parametrize("dripping", [True, False])
def test_a_request_that_does_not_arrive_is_given_up(limited, engine, begun, dripping):
    with connect(limited) as connection:
        connection.sendall(begun)
        if dripping:  # progress does not help, for all of a minute
            assert breaks_while_dripping(connection, b"X-Pad: " + b"a" * 2900 if begun == HEAD else b" " * 2900)
        said = all_of(connection)
    if said:  # a reset may overtake the answer to a client that still sends
        assert said.startswith(b"HTTP/1.1 408 ")
        assert json.loads(said.partition(b"\r\n\r\n")[2])["error"]["code"] == "request_timeout"
    assert said or dripping
    assert engine.seen == []


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\r\n\r\n",  # TLS
        b"GET /health HTTP/1.1\r\n\r\n",  # no host
        b"POST /v1/drafts HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/drafts HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n{}\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nX-Pad: " + b"a" * 70_000,
    ],
    ids=["garbage", "head", "length", "chunk", "long head"],
)
def test_what_is_no_http_is_told_so_in_the_error_shape(patient, engine, sent):
    with connect(patient) as connection:
        connection.sendall(sent)
        head, error = answered_and_closed(connection)
    assert head.startswith("http/1.1 400 ")
    assert "\r\nx-content-type-options: nosniff\r\n" in head
    assert (set(error), error["code"]) == ({"message", "type", "param", "code"}, "invalid_http")
    assert engine.seen == []


def test_who_asks_for_a_websocket_gets_http_and_makes_no_noise_in_the_log(patient, caplog):
    with connect(patient) as connection:
        upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n" + upgrade)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert not [record for record in warnings if record.name.startswith("uvicorn")]


def test_a_body_that_breaks_behind_its_answer_closes_the_connection(patient, caplog):
    with connect(patient) as connection:
        connection.sendall(b"POST /nowhere HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        said = b""
        while b"route_not_found" not in said:
            said += connection.recv(65536)
        connection.sendall(b"ZZ\r\n")
        assert b"HTTP/1.1" not in all_of(connection)
    assert not [record for record in caplog.records if record.exc_info]


def test_a_slow_head_on_a_used_connection_is_given_up_too(patient, connections):
    with connect(patient) as connection:
        assert is_healthy(connection)
        assert eventually(lambda: not connections[0].is_receiving)  # no time limit between two requests
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n")
        assert eventually(lambda: connections[0].is_receiving)
        expire(connections[0], "_receiving")
        assert all_of(connection).startswith(b"HTTP/1.1 408 ")


def test_a_connection_that_says_nothing_is_closed_without_a_word(limited):
    with connect(limited) as connection:
        assert all_of(connection) == b""


def test_a_request_that_is_here_may_take_its_time(patient, engine, connections):
    were_receiving = []
    engine.on_step = lambda: were_receiving.append(connections[0].is_receiving)
    assert httpx.post(f"{patient}/v1/drafts", json=BODY).status_code == 200
    assert were_receiving == [False]


def test_when_too_many_are_open_the_longest_idle_makes_room(patient):
    with contextlib.ExitStack() as stack:
        connections = []
        for _ in range(20):
            connections.append(stack.enter_context(connect(patient)))
            assert is_healthy(connections[-1])
        assert httpx.post(f"{patient}/v1/drafts", json=BODY).status_code == 200
        assert all_of(connections[0]) == b""
        assert is_healthy(connections[1])


def test_those_that_were_given_up_leave_room(limited):
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(connect(limited)).sendall(HEAD)
        assert eventually(lambda: answers(limited))


def answers(url):
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{url}/health").status_code == 200
    return False


def test_a_reader_that_takes_nothing_is_cut_off(patient, engine, connections):
    engine.max_model_len = 1_000_000
    finished = 'superdraft_requests_total{route="/v1/completions"'
    # Six echoes of the prompt are more than the system buffers, and none of them can be left out.
    wanted = {"prompt": "x" * 900_000, "echo": True, "n": 6, "max_tokens": 2, "stream": True}
    with contextlib.closing(raw_request(patient, "/v1/completions", **wanted)) as connection:
        assert eventually(lambda: len(engine.seen) == 1)
        assert eventually(lambda: not engine.jobs)  # the engine is done, whatever the reader does
        assert eventually(lambda: connections[0]._stuck is not None)
        expire(connections[0], "_stuck")
        assert eventually(lambda: finished in httpx.get(f"{patient}/metrics").text)
        assert len(all_of(connection)) < 6 * 900_000  # what is left in the buffers


def test_a_thousand_idle_connections_and_a_hundred_slow_ones_disturb_nobody():
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 3000:  # both ends are in this process
        pytest.skip("the limit of open files is too low")
    app = create_app(Settings(), FakeEngine(), model_name="tiny")
    with calls_of_new_threads() as calls, serving(app) as url, contextlib.ExitStack() as stack:

        def median_work():
            """Calls of functions that the server makes for a request."""
            with httpx.Client(base_url=url) as http:
                counts = []
                for _ in range(20):
                    before = calls.total
                    assert http.post("/v1/drafts", json=BODY).status_code == 200
                    counts.append(calls.total - before)
            return sorted(counts)[10]

        alone = median_work()
        for _ in range(1000):
            stack.enter_context(connect(url))
        slow = [stack.enter_context(connect(url)) for _ in range(100)]
        for connection in slow:
            connection.sendall(HEAD)
        assert 100 < median_work() < 1.5 * alone
