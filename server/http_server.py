"""uvicorn around the app, with a shutdown that ends running requests in order."""

import asyncio
import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from superdraft.server.service import Service

_SLACK_S = 5.0  # for the last answers to be written
# Longer than clients keep idle connections (httpx: 5 s, as uvicorn by default; Node: 4 s): when the server closes one
# just as a request is sent on it, the client sees a reset and no answer.
_KEEP_ALIVE_S = 75


class HttpServer(uvicorn.Server):
    """Serves an app of `create_app` until a signal comes.

    By itself, uvicorn tells the app of a shutdown after the last request has ended. Here the engine hears of it first:
    running requests get the grace time of the settings, what comes in is refused.

    Args:
        app: the app.
        on_started: called when the server listens.
    """

    def __init__(self, app: FastAPI, on_started: Callable[[], None] = lambda: None) -> None:
        service: Service = app.state.service
        self._engine, self._grace_s = service.engine, service.settings.shutdown_grace_s
        self._on_started = on_started
        timeout_s = round(self._grace_s + _SLACK_S)
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=timeout_s,
        )
        super().__init__(config)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        await super().startup(sockets)
        if self.started:
            self._on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, end what runs, then stop the app."""
        stopping = asyncio.create_task(self._engine.stop(self._grace_s))
        await super().shutdown(sockets)
        await self._engine.stop(grace_s=0)  # nobody is connected any more, or a second signal came
        await stopping
