"""An app on a real socket, and what clients and tests see of it."""

import contextlib
import json
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families
from support.waiting import PATIENCE_S, eventually

from superdraft.server.edge.http_protocol import BoundedHttpProtocol
from superdraft.server.serving import HttpServer

TESTS = Path(__file__).parents[1]
MAIN = "from superdraft.server.cli.main import main; main()"
SERVE_FAKE = f"""
from support.engine import FakeEngine
from superdraft.server import serving
from superdraft.server.app import create_app
serving.load_app = lambda settings: create_app(settings, FakeEngine(), model_name="fake")
{MAIN}
"""
"""`superdraft`, whose `serve` loads no model: torch alone takes seconds. Run in the folder TESTS."""


@contextlib.contextmanager
def serving(app: FastAPI, port: int = 0) -> Iterator[str]:
    """Serve `app` on 127.0.0.1 at `port` (0: any free port) and yield its URL. Shuts the server down on exit."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        server = HttpServer(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            assert eventually(lambda: server.started)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(PATIENCE_S)
            assert not thread.is_alive()


def raw_request(url: str, path: str, **body: object) -> socket.socket:
    """Send a JSON request and return the connection without reading from it."""
    host, port = url.removeprefix("http://").split(":")
    content = json.dumps(body).encode()
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect((host, int(port)))
    connection.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)
    return connection


def expire(connection: BoundedHttpProtocol, timer_name: str) -> None:
    """Let a timer of a server's connection end now, and wait until it has."""
    timer, is_over = getattr(connection, timer_name), threading.Event()

    def end() -> None:
        timer._run()
        timer.cancel()
        is_over.set()

    connection.loop.call_soon_threadsafe(end)
    assert is_over.wait(PATIENCE_S)


def num_commands(app: FastAPI) -> int:
    """Number of commands that the engine thread has not yet received, because it is in a step."""
    return app.state.service.engine._thread.num_commands


def sessions(app: FastAPI) -> set[tuple[str, str]]:
    """Caller and name of the typing sessions that have been heard of; the name is empty for requests without one."""
    callers = app.state.service.engine.typists._callers.values()
    return {(caller.name, session) for caller in callers for session in caller.typists}


def num_twins(app: FastAPI) -> int:
    """Number of requests that are waiting for a run that they may share."""
    return sum(run.num_waiting for run in app.state.service.fan_out._runs.values())


def metrics_of(url: str, **labels: str) -> Counter[str]:
    """The server's metrics, each summed over its samples that have these labels."""
    totals: Counter[str] = Counter()
    for family in text_string_to_metric_families(httpx.get(f"{url}/metrics", timeout=60).text):
        for sample in family.samples:
            totals[sample.name] += sample.value if labels.items() <= sample.labels.items() else 0
    return totals


def read_to_end(connection: socket.socket) -> bytes:
    """Read a connection until the end of a chunked response."""
    content = b""
    while not content.endswith(b"0\r\n\r\n"):
        piece = connection.recv(1 << 16)
        assert piece, "the connection was closed"
        content += piece
    return content
