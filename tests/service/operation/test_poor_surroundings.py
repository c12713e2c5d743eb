"""A real process that lacks something: a stderr that takes what is written, files that it may open."""

import contextlib
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from support.serving import SERVE_FAKE, TESTS
from support.waiting import PATIENCE_S, eventually


@contextlib.contextmanager
def served(stderr, prepare=lambda: None, **options):
    """The URL of a server that ends well when told to. `prepare` runs in its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options |= {"port": port}
    command = [sys.executable, "-c", SERVE_FAKE, "serve"]
    process = subprocess.Popen(
        [*command, *(part for name, value in options.items() for part in (f"--{name}", str(value)))],
        stderr=stderr,
        preexec_fn=prepare,
        cwd=TESTS,
        env={name: value for name, value in os.environ.items() if not name.startswith("SUPERDRAFT_")},
    )
    url = f"http://127.0.0.1:{port}"
    try:
        assert eventually(lambda: listens(port) or process.poll() is not None)
        assert process.poll() is None
        yield url
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait(PATIENCE_S)


def listens(port):
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(params=["full disk", "no reader", "closed"])
def stderr(request):
    """A file for stderr; None: the process closes its own."""
    if request.param == "full disk":
        if not Path("/dev/full").exists():
            pytest.skip("there is no /dev/full")
        with Path("/dev/full").open("wb") as full:
            yield full
    elif request.param == "no reader":
        reader, writer = os.pipe()
        os.close(reader)
        with os.fdopen(writer, "wb") as pipe:
            yield pipe
    else:
        yield None


def test_a_server_needs_no_stderr(stderr):
    with served(stderr, lambda: os.close(2) if stderr is None else None) as url:
        drafts = f"{url}/v1/drafts"
        assert httpx.post(drafts, json={"prompt": "hi", "max_tokens": 1}).status_code == 200
        assert httpx.post(drafts, json={"prompt": 1}).status_code == 400  # this one is logged


def test_where_few_files_may_be_open_idle_connections_keep_nobody_out(tmp_path):
    def allow_few():
        resource.setrlimit(resource.RLIMIT_NOFILE, (400, 400))

    log = tmp_path / "serve.log"
    patient = {"receive-timeout-s": 600}  # the others stay
    with log.open("wb") as out, served(out, allow_few, **patient) as url, contextlib.ExitStack() as stack:
        host, port = url.removeprefix("http://").split(":")
        for number in range(500):
            source = (f"127.0.0.{2 + number % 3}", 0)
            stack.enter_context(
                contextlib.closing(socket.create_connection((host, int(port)), PATIENCE_S, source_address=source))
            )
        assert httpx.get(f"{url}/health").status_code == 200
    assert "max_connections=200 open_files=400" in log.read_text()
    assert "out of system resource" not in log.read_text()
