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
_ARGUMENTS = ("serve", "--host", "127.0.0.1", "--port", "0", "--log-level", "warning")
_BANNER_URL = re.compile(r"on (http://[^\s,]+), docs at")


class LocalServer:
    """`superdraft serve` on 127.0.0.1, on a free port unless the options name one.

    Args:
        options: of `superdraft serve`.
        log: where its output goes.

    Raises:
        CommandError: it ended, or did not start in time.
    """

    def __init__(self, options: list[str], log: Path) -> None:
        command = [sys.executable, "-c", _SERVE, *_ARGUMENTS, *options]
        with log.open("wb") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            self.url = _wait_for_url(self.process, log)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End it, by force if need be."""
        self.process.terminate()
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def local_server(options: list[str]) -> Iterator[str]:
    """A LocalServer as long as the context lasts; yields its URL. Raises CommandError: it did not start."""
    with tempfile.TemporaryDirectory() as folder:
        server = LocalServer(options, Path(folder) / "serve.log")
        try:
            yield server.url
        finally:
            server.stop()


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
