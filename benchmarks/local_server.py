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
STOP_TIMEOUT_S = 60.0
_SERVE = "from superdraft.server.cli import main; main()"
_BANNER_URL = re.compile(r"on (http://[^\s,]+), docs at")


@contextlib.contextmanager
def local_server(options: list[str], log: Path | None = None) -> Iterator[str]:
    """`superdraft serve` with these options on a free port of 127.0.0.1; yields its URL.

    Args:
        options: of `superdraft serve`; they win over the address and the log level that are set here.
        log: for what it writes; None: nobody reads it.

    Raises:
        CommandError: it ended, or did not start in time.
    """
    command = [sys.executable, "-c", _SERVE, "serve", "--host", "127.0.0.1", "--port", "0", "--log-level", "warning"]
    with tempfile.TemporaryDirectory() as folder:
        log = log or Path(folder) / "serve.log"
        with log.open("wb") as output:
            process = subprocess.Popen([*command, *options], stdout=output, stderr=output)
        try:
            yield _wait_for_url(process, log)
        finally:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for_url(process: "subprocess.Popen[bytes]", log: Path) -> str:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        text = log.read_text(errors="replace")
        if found := _BANNER_URL.search(text):
            return found[1]
        if process.poll() is not None:
            raise CommandError(f"the server ended with code {process.returncode}: {text.strip()[-500:]}")
        time.sleep(0.1)
    raise CommandError(f"the server did not start within {START_TIMEOUT_S:g} s: {text.strip()[-500:]}")
