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
_SERVE = "from superdraft.server.cli.main import main; main()"
_ARGUMENTS = ("serve", "--host", "127.0.0.1", "--port", "0", "--log-level", "warning")
_BANNER_URL = re.compile(r"on (http://[^\s,]+), docs at")


class LocalServer:
    """`superdraft serve` on 127.0.0.1, just started, on a free port unless the options name one.

    Args:
        options: of `superdraft serve`.
        log: where its output goes.

    Attributes:
        process: the server.
        url: where it answers; empty while that is not known.
    """

    def __init__(self, options: list[str], log: Path) -> None:
        self.url = ""
        self._log = log
        self._deadline_s = time.monotonic() + START_TIMEOUT_S
        command = [sys.executable, "-c", _SERVE, *_ARGUMENTS, *options]
        with log.open("wb") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output)

    @classmethod
    def ready(cls, options: list[str], log: Path) -> "LocalServer":
        """One that answers.

        Raises:
            CommandError: it ended, or did not start in time.
        """
        server = cls(options, log)
        try:
            while (found := _BANNER_URL.search(log.read_text(errors="replace"))) is None:
                server.check_running()
                time.sleep(0.1)
            server.url = found[1]
        except BaseException:
            server.stop()
            raise
        return server

    def check_running(self) -> None:
        """Say why there is nothing to wait for any more, if so.

        Raises:
            CommandError: it ended, or did not start in time.
        """
        text = self._log.read_text(errors="replace").strip()[-500:]
        if self.process.poll() is not None:
            raise CommandError(f"the server ended with code {self.process.returncode}: {text}")
        if time.monotonic() >= self._deadline_s:
            raise CommandError(f"the server did not start within {START_TIMEOUT_S:g} s: {text}")

    def stop(self) -> None:
        """End it, by force if need be."""
        self.process.terminate()
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def starting_server(options: list[str]) -> Iterator[LocalServer]:
    """A server that was just started; it ends with the context."""
    with tempfile.TemporaryDirectory() as folder:
        server = LocalServer(options, Path(folder) / "serve.log")
        try:
            yield server
        finally:
            server.stop()


@contextlib.contextmanager
def local_server(options: list[str], log: Path | None = None) -> Iterator[str]:
    """A server as long as the context lasts; yields its URL.

    Args:
        options: of `superdraft serve`.
        log: for what it writes; None: nobody reads it.

    Raises:
        CommandError: it ended, or did not start in time.
    """
    with tempfile.TemporaryDirectory() as folder:
        server = LocalServer.ready(options, log or Path(folder) / "serve.log")
        try:
            yield server.url
        finally:
            server.stop()
