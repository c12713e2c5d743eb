"""Composition of the app from settings, engine and n-gram models."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from fastapi import Depends, FastAPI
from fastapi.routing import APIRoute
from starlette.middleware.cors import CORSMiddleware

from superdraft.server.bridge.admission import Admission
from superdraft.server.bridge.async_engine import AsyncEngine
from superdraft.server.bridge.engine_protocol import DecodingEngine
from superdraft.server.bridge.fan_out import FanOut
from superdraft.server.bridge.room import places_of
from superdraft.server.drafting import DraftingDefaults
from superdraft.server.edge import error_map
from superdraft.server.edge.access import Access
from superdraft.server.edge.api_keys import ApiKeys
from superdraft.server.edge.browsers import BrowsersMiddleware
from superdraft.server.edge.rate_limits import CallerLimits, TurnstileMiddleware
from superdraft.server.edge.request_context import REQUEST_ID_HEADER, RequestContextMiddleware
from superdraft.server.feedback import Feedback
from superdraft.server.ngrams.registry import NgramModels
from superdraft.server.observe.metrics import Metrics
from superdraft.server.service import Service
from superdraft.server.settings import Settings
from superdraft.server.wires import feedback, fim, llamacpp, operators, pages, tabby
from superdraft.server.wires.editors import fim_tokens_of
from superdraft.server.wires.native import routes as native
from superdraft.server.wires.openai import routes as openai

if TYPE_CHECKING:
    from superdraft.server.observe.traces import Traces

_ROUTES = (openai, native, fim, llamacpp, tabby, feedback, operators)
_CORS: dict[str, Any] = {
    "allow_methods": ("GET", "POST", "DELETE"),
    "allow_headers": ("*",),  # OpenAI's SDK sends a dozen of its own
    "expose_headers": (
        REQUEST_ID_HEADER,
        openai.WARNINGS_HEADER,
        "retry-after",
        "retry-after-ms",
        "x-should-retry",
    ),
}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    401: {"description": "No valid API key, on a server that requires keys."},
    403: {"description": "The API key lacks the scope."},
    429: {"description": "The caller's limits are reached, or the server is full; the headers say when to try again."},
}
_DESCRIPTION = "Autocomplete with k drafts from one pass of a language model, by Superposed Decoding."


def create_app(
    settings: Settings,
    engine: DecodingEngine,
    *,
    model_name: str,
    ngram_models: NgramModels | None = None,
    drafting: DraftingDefaults | None = None,
    traces: "Traces | None" = None,
) -> FastAPI:
    """An app that serves `engine`. The engine's thread lives as long as the app's lifespan.

    Args:
        settings: the server's settings.
        engine: a loaded engine that nothing else uses.
        model_name: the name in answers; `settings.served_model_name` wins over it.
        ngram_models: the models that requests may name; None: there are none.
        drafting: defaults of requests; None: those of the settings.
        traces: where requests are traced, closed at the end of the lifespan; None: as the settings say.

    Raises:
        ModuleNotFoundError: requests are to be traced, and the extra `traces` is not installed.
    """
    metrics = Metrics()
    metrics.watch(engine)
    admission = _admission(settings, engine, metrics)
    metrics.watch_admission(lambda: admission.num_waiting)
    async_engine = AsyncEngine(engine, metrics, admission)
    access = _access(settings, metrics)
    app = FastAPI(
        title="Superdraft",
        version=version("superdraft"),
        description=_DESCRIPTION,
        lifespan=_lifespan,
        docs_url=None,  # FastAPI's own pages load their scripts from another site
        redoc_url=None,
        redirect_slashes=False,  # a redirect would name the host that the client claims, before the key is checked
        # FastAPI's own hold queries and the messages of exceptions, and the environment can switch them on.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.state.settings = settings
    app.state.traces = traces or open_traces(settings)
    app.state.service = Service(
        settings=settings,
        engine=async_engine,
        model_name=settings.served_model_name or model_name,
        ngram_models=ngram_models or NgramModels(),
        feedback=Feedback(metrics, file=settings.feedback_file),
        drafting=drafting or DraftingDefaults.of(settings),
        metrics=metrics,
        fim=fim_tokens_of(engine, settings),
        fan_out=FanOut(min(settings.fan_out, settings.max_num_drafts)),
    )
    error_map.install(app)
    templates = _add_routes(app, access)
    _add_middleware(app, templates, is_guarded=bool(settings.allowed_hosts) or not access.keys.are_required)
    return app


def open_traces(settings: Settings) -> "Traces | None":
    """Where the settings send traces; None: nowhere.

    Raises:
        ModuleNotFoundError: the extra `traces` is not installed.
    """
    if settings.traces == "off":
        return None
    from superdraft.server.observe.traces import Traces  # late: the extra's packages are imported by no other module

    return Traces.over_otlp()


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Run the engine's thread."""
    service: Service = app.state.service
    traces: Traces | None = app.state.traces
    service.engine.start()
    try:
        yield
    finally:
        await service.engine.stop(service.settings.shutdown_grace_s)
        if traces is not None:
            await asyncio.to_thread(traces.close)


def _add_routes(app: FastAPI, access: Access) -> frozenset[str]:
    """Add all routes; returns their path templates."""
    routers = [routes.router for routes in _ROUTES]
    for router in routers:
        app.include_router(router, dependencies=[Depends(access)], responses=_REFUSALS)
    app.include_router(pages.router)  # open to everyone
    routers.append(pages.router)
    return frozenset(route.path for router in routers for route in router.routes if isinstance(route, APIRoute))


def _add_middleware(app: FastAPI, templates: frozenset[str], *, is_guarded: bool) -> None:
    """Add all middleware. The one added last is the outermost: it also sees what the others refuse."""
    service: Service = app.state.service
    settings = service.settings
    app.add_middleware(TurnstileMiddleware, metrics=service.metrics)
    if settings.cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=settings.cors_origins, **_CORS)
    app.add_middleware(
        BrowsersMiddleware, is_guarded=is_guarded, hosts=settings.allowed_hosts, origins=settings.cors_origins
    )
    app.add_middleware(
        RequestContextMiddleware,
        metrics=service.metrics,
        templates=templates,
        traces=app.state.traces,
    )


def _admission(settings: Settings, engine: DecodingEngine, metrics: Metrics) -> Admission:
    return Admission(
        places_of(engine.num_slots),
        settings.max_waiting,
        settings.queue_timeout_ms / 1000,
        settings.target_latency_ms / 1000,
        metrics.count_shed,
        engine.load,
    )


def _access(settings: Settings, metrics: Metrics) -> Access:
    keys = ApiKeys.of(settings)
    return Access(keys, CallerLimits(settings.rate_limit, settings.max_concurrent, metrics.count_shed))
