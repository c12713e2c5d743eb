"""The server process: bind the port, load the model, serve over HTTP, and shut down in order."""

import asyncio
import contextlib
import ctypes
import gc
import ipaddress
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from types import FrameType

import structlog
import uvicorn
from fastapi import FastAPI

from superdraft.server.edge.http_protocol import bounded
from superdraft.server.errors import CommandError
from superdraft.server.service import Service
from superdraft.server.settings import Settings

INTERRUPTED_EXIT_CODE = 130  # as shells report it
FAILED_EXIT_CODE = 1  # the engine failed: a supervisor should start the server again
_SLACK_S = 5  # for writing the last answers
_LAST_WORDS_S = 0.2  # in which the next requests of clients that were just answered still get their 503
# Longer than clients keep idle connections (httpx: 5 s, as uvicorn by default; Node: 4 s). If the server closes a
# connection just as a request is sent on it, the client sees a reset and no answer.
_KEEP_ALIVE_S = 75
_BACKLOG = 2048  # uvicorn's own
_ACCEPTED_AT_ONCE = 16  # before others have their turn; each takes about as long as a small request
_POLL_S = 0.05  # interval of checks for a second signal
_OTHER_FILES = 256  # open files besides connections: models, logs, libraries

log = structlog.get_logger(__name__)


def run_server(settings: Settings, listener: socket.socket) -> None:
    """Load the model, then answer on `listener` until a signal comes or the engine fails for good.

    Raises:
        SystemExit: a signal ended the server (SIGTERM: with code 0, Ctrl-C: with 130), or the engine failed.
    """
    # uvicorn raises a signal again after a clean shutdown. Without a handler, SIGTERM would end the process as if it
    # had been killed; and in a container, a process that loads its model would not hear it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        _load_and_serve(settings, listener)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED_EXIT_CODE)


def _load_and_serve(settings: Settings, listener: socket.socket) -> None:
    with _garbage_collection_paused():
        app = load_app(settings)
    max_connections = allow_open_files(settings.max_connections)
    gc.collect()
    gc.freeze()  # objects of the libraries stay anyway; searching them for garbage would stop everything for 0.3 s
    _return_freed_memory()
    _listen(listener)
    service: Service = app.state.service
    what = f"{service.model_name} (n-gram model: {service.ngram_models.default or 'none'})"
    server = HttpServer(
        app,
        on_started=lambda: banner(settings.host, listener.getsockname()[1], what),
        max_connections=max_connections,
    )
    server.run(sockets=[listener])
    if service.engine.has_failed:
        sys.exit(FAILED_EXIT_CODE)


def bind(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet.

    Raises:
        CommandError: the address is unknown or in use.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise CommandError(f"cannot listen on {host}: {error.strerror}. Choose another --host.") from None
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        message = f"cannot listen on {host} port {port}: {error.strerror}. Choose another --port or --host."
        raise CommandError(message) from None
    return listener


def _listen(listener: socket.socket) -> None:
    """Take connections. Until now, another process could take the port.

    Raises:
        CommandError: one did.
    """
    try:
        listener.listen(_BACKLOG)
    except OSError as error:
        message = f"cannot listen on port {listener.getsockname()[1]}: {error.strerror}"
        raise CommandError(f"{message}, since the model was being loaded. Choose another --port.") from None


def check_exposure(settings: Settings, address: str) -> None:
    """Refuse to serve other machines without API keys, unless the settings allow it.

    Args:
        settings: of the server.
        address: numeric address that the server listens on.

    Raises:
        CommandError: anyone who reaches the address could use the server.
    """
    has_keys = settings.api_keys is not None or settings.api_keys_file is not None
    if has_keys or settings.allow_unauthenticated or _is_loopback(address):
        return
    raise CommandError(
        f"anyone who reaches {settings.host} could use this server: make a key with `superdraft keys new` and pass "
        "its file with --api-keys-file, or pass --allow-unauthenticated."
    )


def load_app(settings: Settings) -> FastAPI:
    """Load the model and make the app."""
    from superdraft.server.app import create_app, open_traces  # late: torch takes seconds, the port is checked before
    from superdraft.server.loading import load_service

    traces = open_traces(settings)  # before the model is loaded, so that missing packages are reported at once
    loaded = load_service(settings)
    return create_app(
        settings,
        loaded.engine,
        model_name=loaded.model_name,
        ngram_models=loaded.ngram_models,
        drafting=loaded.drafting,
        traces=traces,
    )


def banner(host: str, port: int, what: str) -> None:
    """Print to stderr what is served, and where."""
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    sys.stderr.write(f"Superdraft serves {what} on {url}, docs at {url}/docs\n")
    # A browser cannot open the address that stands for all of this machine's.
    here = f"http://localhost:{port}" if host in ("0.0.0.0", "::") else url  # noqa: S104 (compared, not bound)
    sys.stderr.write(f"To try it, open {here} in a browser.\n")
    sys.stderr.flush()


def _is_loopback(address: str) -> bool:
    """Whether only this machine can reach a numeric address."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


@contextlib.contextmanager
def _garbage_collection_paused() -> Iterator[None]:
    """Pause garbage collection: during loading it finds little and takes a quarter of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _return_freed_memory() -> None:
    """Return memory freed after loading to the system, 140 MB with the default model; glibc would keep it."""
    if sys.platform != "linux":
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # absent from other C libraries
    if trim is not None:
        trim(0)


def allow_open_files(max_connections: int) -> int:
    """Raise this process' limit of open files, often 1024, to what connections need or the system allows.

    Returns:
        How many connections may be open. One beyond that could not even be accepted to close another one for it.
    """
    if sys.platform == "win32":
        return max_connections
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max_connections + _OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return max_connections
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    if limit == wanted:
        return max_connections
    allowed = max(limit - _OTHER_FILES, limit // 2)
    log.warning(
        "max_connections_lowered",
        reason="the system allows too few open files",
        max_connections=allowed,
        instead_of=max_connections,
        open_files=limit,
        remedy=f"ulimit -n {wanted}, or LimitNOFILE={wanted} in a systemd unit",
    )
    return allowed


class HttpServer(uvicorn.Server):
    """Serves an app of `create_app` until a signal comes or the engine fails for good.

    By itself, uvicorn first stops listening and tells the app about the shutdown after the last request. Here the
    engine is told first: running requests get the grace time of the settings, and meanwhile new requests are answered
    with 503. A second signal also ends the running requests; a third one ends the process.

    Args:
        app: the app.
        on_started: called when the server listens.
        max_connections: open at once; None: those of the settings.
    """

    def __init__(
        self, app: FastAPI, on_started: Callable[[], None] = lambda: None, max_connections: int | None = None
    ) -> None:
        service: Service = app.state.service
        settings = service.settings
        self._engine, self._grace_s = service.engine, settings.shutdown_grace_s
        self._on_started = on_started
        self._protocol = bounded(settings.receive_timeout_s, max_connections or settings.max_connections)
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            http=self._protocol,
            proxy_headers=bool(settings.proxy_networks),
            forwarded_allow_ips=list(settings.proxy_networks),  # not FORWARDED_ALLOW_IPS, nor this machine
            reset_contextvars=True,  # a pipelined request would inherit those of the one before it, its key's name too
            ws="none",
            timeout_keep_alive=_KEEP_ALIVE_S,
            backlog=_ACCEPTED_AT_ONCE,  # asyncio takes as many connections at once as may wait: see startup
            timeout_graceful_shutdown=_SLACK_S,
        )
        super().__init__(config)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(_BACKLOG)  # asyncio has set it to those it takes at once
        if self.started:
            self._on_started()

    async def on_tick(self, counter: int) -> bool:
        """Called several times per second: whether to shut down."""
        if self._engine.has_failed:
            log.critical("server_failed", reason="the engine has failed; the server must be started again")
            return True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End running requests, then stop listening, then stop the app."""
        self._close_after_answers()
        stopping = asyncio.create_task(self._engine.stop(self._grace_s))
        while not stopping.done() and not self.force_exit:
            await asyncio.wait({stopping}, timeout=_POLL_S)
        if self.force_exit:
            await self._engine.stop(grace_s=0)
        await asyncio.sleep(_LAST_WORDS_S)
        for connection in list(self.server_state.connections):
            is_receiving = getattr(connection, "is_receiving", False)  # the rest of a request that will not be answered
            if self.force_exit or is_receiving:
                connection.transport.abort()
        await super().shutdown(sockets)
        for connection in list(self._protocol.refused):  # uvicorn does not know them
            connection.transport.abort()
        await stopping

    def _close_after_answers(self) -> None:
        """Tell clients to send their next request on a new connection, which may reach another server."""
        close = (b"connection", b"close")
        self.server_state.default_headers = [*self.server_state.default_headers, close]
        for connection in self.server_state.connections:
            cycle = getattr(connection, "cycle", None)
            if cycle is not None and not cycle.response_started:
                cycle.default_headers = [*cycle.default_headers, close]

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle a signal: the first one starts the shutdown."""
        if self.should_exit:
            self.force_exit = True
            signal.signal(sig, signal.SIG_DFL)
        super().handle_exit(sig, frame)
