"""A server of its own for a benchmark, in another process."""

import contextlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from superdraft.server.errors import CommandError

START_TIMEOUT_S = 180.0  # the model may have to be fetched
STOP_TIMEOUT_S = 30.0
_SERVE = "from superdraft.server.cli import main; main()"
_BANNER_URL = re.compile(r"on (http://[^\s,]+), docs at")


@contextlib.contextmanager
def server_process(options: list[str]) -> Iterator[tuple["subprocess.Popen[bytes]", Path]]:
    """`superdraft serve` with these options on 127.0.0.1, just started, and the file that it logs to; ends it."""
    command = [sys.executable, "-c", _SERVE, "serve", "--host", "127.0.0.1", "--log-level", "warning"]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "serve.log"
        with log.open("wb") as output:
            process = subprocess.Popen([*command, *options], stdout=output, stderr=output)
        try:
            yield process, log
        finally:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def local_server(options: list[str]) -> Iterator[str]:
    """A server on a free port; yields its URL once it answers.

    Raises:
        CommandError: it ended, or did not start in time.
    """
    with server_process(["--port", "0", *options]) as (process, log):
        deadline = time.monotonic() + START_TIMEOUT_S
        while (found := _BANNER_URL.search(log.read_text(errors="replace"))) is None:
            check_running(process, log, deadline)
            time.sleep(0.1)
        yield found[1]


def check_running(process: "subprocess.Popen[bytes]", log: Path, deadline: float) -> None:
    """Say why there is nothing to wait for any more, if so.

    Args:
        process: of `server_process`.
        log: likewise.
        deadline: on time.monotonic.

    Raises:
        CommandError: the server ended, or it is too late.
    """
    text = log.read_text(errors="replace").strip()[-500:]
    if process.poll() is not None:
        raise CommandError(f"the server ended with code {process.returncode}: {text}")
    if time.monotonic() >= deadline:
        raise CommandError(f"the server did not start within {START_TIMEOUT_S:g} s: {text}")
