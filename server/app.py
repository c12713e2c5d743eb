"""The only place of composition: settings, engine and n-gram models become an app."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI

from superdraft.decoding.params import DEFAULT_ALPHA, DEFAULT_TAU
from superdraft.server import error_map, routes_admin, routes_native, routes_openai
from superdraft.server.async_engine import AsyncEngine
from superdraft.server.engine_protocol import DecodingEngine
from superdraft.server.request_context import RequestContextMiddleware
from superdraft.server.service import NgramModels, Service
from superdraft.server.settings import Settings

_DESCRIPTION = "Autocomplete with k drafts from one pass of a language model, by Superposed Decoding."


def create_app(
    settings: Settings,
    engine: DecodingEngine,
    *,
    model_name: str,
    ngram_models: NgramModels | None = None,
    alpha: float = DEFAULT_ALPHA,
    tau: float = DEFAULT_TAU,
) -> FastAPI:
    """An app that serves `engine`. The engine's thread lives as long as the app's lifespan.

    Args:
        settings: the server's settings.
        engine: a loaded engine that nothing else uses.
        model_name: the name in answers; `settings.served_model_name` wins over it.
        ngram_models: the loaded n-gram models; None means there are none.
        alpha: the n-gram model's weight for requests that don't say.
        tau: the temperature for requests that don't say.
    """
    async_engine = AsyncEngine(engine)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async_engine.start()
        try:
            yield
        finally:
            await async_engine.stop(settings.shutdown_grace_s)

    app = FastAPI(title="Superdraft", version=version("superdraft"), description=_DESCRIPTION, lifespan=lifespan)
    app.state.settings = settings
    app.state.service = Service(
        settings=settings,
        engine=async_engine,
        model_name=settings.served_model_name or model_name,
        ngram_models=ngram_models or NgramModels(),
        alpha=alpha,
        tau=tau,
    )
    app.add_middleware(RequestContextMiddleware)
    error_map.install(app)
    for routes in (routes_openai, routes_native, routes_admin):
        app.include_router(routes.router)
    return app
