"""uvicorn around the app, with a shutdown that ends running requests in order."""

import asyncio
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from superdraft.server.edge.http_protocol import bounded
from superdraft.server.service import Service

_SLACK_S = 5  # for the last answers to be written
_LAST_WORDS_S = 0.2  # in which those who ask again as soon as they are answered hear that the server stops
# Longer than clients keep idle connections (httpx: 5 s, as uvicorn by default; Node: 4 s): when the server closes one
# just as a request is sent on it, the client sees a reset and no answer.
_KEEP_ALIVE_S = 75
_LOOK_AGAIN_S = 0.05  # whether a second signal has come


class HttpServer(uvicorn.Server):
    """Serves an app of `create_app` until a signal comes.

    By itself, uvicorn stops listening first and tells the app of a shutdown after the last request has ended. Here the
    engine hears of it first: running requests get the grace time of the settings, and as long as they run, what comes
    in is answered, with 503. A second signal ends them, too; a third one the process.

    Args:
        app: the app.
        on_started: called when the server listens.
    """

    def __init__(self, app: FastAPI, on_started: Callable[[], None] = lambda: None) -> None:
        service: Service = app.state.service
        settings = service.settings
        self._engine, self._grace_s = service.engine, settings.shutdown_grace_s
        self._on_started = on_started
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            http=bounded(settings.receive_timeout_s, settings.max_connections),
            ws="none",
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_SLACK_S,
        )
        super().__init__(config)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        await super().startup(sockets)
        if self.started:
            self._on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End what runs, then stop listening, then stop the app."""
        self._close_after_answers()
        stopping = asyncio.create_task(self._engine.stop(self._grace_s))
        while not stopping.done() and not self.force_exit:
            await asyncio.wait({stopping}, timeout=_LOOK_AGAIN_S)
        if self.force_exit:
            await self._engine.stop(grace_s=0)
        await asyncio.sleep(_LAST_WORDS_S)
        if self.force_exit:
            for connection in list(self.server_state.connections):
                connection.transport.abort()
        await super().shutdown(sockets)
        await stopping

    def _close_after_answers(self) -> None:
        """Tell clients that each answer is their connection's last: what they send next goes to another server."""
        close = (b"connection", b"close")
        self.server_state.default_headers = [*self.server_state.default_headers, close]
        for connection in self.server_state.connections:
            cycle = getattr(connection, "cycle", None)
            if cycle is not None and not cycle.response_started:
                cycle.default_headers = [*cycle.default_headers, close]

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came."""
        if self.should_exit:
            self.force_exit = True
            signal.signal(sig, signal.SIG_DFL)
        super().handle_exit(sig, frame)
