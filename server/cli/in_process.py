"""The server's app in this process, for commands that load a model themselves."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
from fastapi import FastAPI

from superdraft.server.observe.log_config import configure_logging
from superdraft.server.serving import load_app
from superdraft.server.settings_sources import load_settings


def load(flags: Mapping[str, Any]) -> FastAPI:
    """Load the model that the settings name. Only this process can ask it, so no API key is needed."""
    settings = load_settings(flags).model_copy(update={"api_keys": None, "api_keys_file": None})
    configure_logging("warning", settings.log_format)
    return load_app(settings)


@asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[httpx.AsyncBaseTransport]:
    """Run the app; yields what connects a client to it."""
    async with app.router.lifespan_context(app):
        yield httpx.ASGITransport(app, raise_app_exceptions=False)
