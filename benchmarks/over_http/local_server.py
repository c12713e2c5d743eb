"""A server in another process, started for a benchmark."""

import contextlib
import gc
import re
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
from httpx_aiohttp import AiohttpTransport

from superdraft.server.errors import CommandError

START_TIMEOUT_S = 180.0  # the model may have to be fetched
STOP_TIMEOUT_S = 60.0
ANSWER_TIMEOUT_S = 60.0
LOG_LINES = 5  # of the server's log, in errors
_MAX_CONNECTIONS = 100_000  # for aiohttp no limit means a hundred
_SERVE = "from superdraft.server.cli.main import main; main()"
_ARGUMENTS = ("serve", "--host", "127.0.0.1", "--port", "0", "--log-level", "warning")
_BANNER_URL = re.compile(r"on (http://[^\s,]+), docs at")


def http_client(url: str, verify: ssl.SSLContext | bool = True) -> httpx.AsyncClient:
    """A client with as many connections as it needs. It must not take the server's processor time.

    Over aiohttp, since a request costs httpx's own transport three times as much (1.5 ms): with many clients, what they
    spent was what was measured. And what was imported is not searched for garbage, which stops all clients for 0.1 s.
    """
    gc.collect()
    gc.freeze()
    limits = httpx.Limits(max_connections=_MAX_CONNECTIONS)
    transport = AiohttpTransport(verify=verify, limits=limits)
    return httpx.AsyncClient(base_url=url, transport=transport, timeout=ANSWER_TIMEOUT_S)


def serve_options(**settings: object) -> list[str]:
    """Options of `superdraft serve` for the settings that are not None."""
    flags = {f"--{name.replace('_', '-')}": value for name, value in settings.items() if value is not None}
    return [part for flag, value in flags.items() for part in (flag, str(value))]


class LocalServer:
    """`superdraft serve` on 127.0.0.1, just started, on a free port unless the options name one.

    Args:
        options: of `superdraft serve`.
        log: file for its output.

    Attributes:
        process: the server.
        url: its address; empty while unknown.
    """

    def __init__(self, options: Sequence[str], log: Path) -> None:
        self.url = ""
        self._log = log
        self._deadline_s = time.monotonic() + START_TIMEOUT_S
        command = [sys.executable, "-c", _SERVE, *_ARGUMENTS, *options]
        with log.open("wb") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output)

    @classmethod
    def ready(cls, options: Sequence[str], log: Path) -> "LocalServer":
        """A server that listens.

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
        """Check that the server may still become ready.

        Raises:
            CommandError: it ended, or did not start in time.
        """
        text = "\n".join(self._log.read_text(errors="replace").strip().splitlines()[-LOG_LINES:])
        if self.process.poll() is not None:
            raise CommandError(f"the server ended with code {self.process.returncode}: {text}")
        if time.monotonic() >= self._deadline_s:
            raise CommandError(
                f"the server did not start within {START_TIMEOUT_S:g} s. On a busy machine, try again later; if the "
                f"model is still being fetched, run `superdraft models pull` first. Its last words:\n{text}"
            )

    def stop(self) -> None:
        """End the server, by force if necessary."""
        self.process.terminate()
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def starting_server(options: Sequence[str]) -> Iterator[LocalServer]:
    """A server that was just started and may not listen yet; it is stopped at the end of the context."""
    with tempfile.TemporaryDirectory() as folder:
        server = LocalServer(options, Path(folder) / "serve.log")
        try:
            yield server
        finally:
            server.stop()


@contextlib.contextmanager
def local_server(options: Sequence[str]) -> Iterator[str]:
    """A server that listens during the context; yields its URL.

    Args:
        options: of `superdraft serve`.

    Raises:
        CommandError: it ended, or did not start in time.
    """
    with tempfile.TemporaryDirectory() as folder:
        server = LocalServer.ready(options, Path(folder) / "serve.log")
        try:
            yield server.url
        finally:
            server.stop()
