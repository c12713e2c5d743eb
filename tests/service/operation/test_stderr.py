"""A real process whose stderr takes nothing: a full disk, a pipe without a reader, closed. It serves all the same."""

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from support.models import tiny_model_folder
from support.serving import eventually

PATIENCE_S = 180  # for what takes seconds on an idle machine


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model_folder(tmp_path_factory.mktemp("models"), "llama")


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


def test_a_server_needs_no_stderr(model, stderr):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from superdraft.server.cli.main import main; main()", "serve"]
    options = {"model": model, "ngram-model": "none", "num-threads": 1, "kv-memory": "64MiB", "port": port}
    process = subprocess.Popen(
        [*command, *(part for name, value in options.items() for part in (f"--{name}", str(value)))],
        stderr=stderr,
        preexec_fn=None if stderr is not None else lambda: os.close(2),
        env={name: value for name, value in os.environ.items() if not name.startswith("SUPERDRAFT_")},
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S) as http:

            def answers():
                with contextlib.suppress(httpx.ConnectError):
                    return http.get("/health").status_code == 200
                return False

            assert eventually(lambda: answers() or process.poll() is not None, PATIENCE_S)
            assert process.poll() is None
            assert http.post("/v1/drafts", json={"prompt": "hi", "max_tokens": 1}).status_code == 200
            assert http.post("/v1/drafts", json={"prompt": 1}).status_code == 400  # this one is logged
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait(PATIENCE_S)
