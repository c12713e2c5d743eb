"""Routes for operators and user interfaces: health, metrics, limits and n-gram models."""

from typing import Literal, get_args

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from superdraft.decoding.params import DEFAULT_STRATEGY, Strategy
from superdraft.server.wires.common import ServiceDep
from superdraft.server.wires.native.schemas import MAX_TIMEOUT_MS

router = APIRouter()

# Health and metrics


class Health(BaseModel):
    """Answer of `/health`."""

    status: Literal["ok", "failed"] = "ok"


class Readiness(BaseModel):
    """Answer of `/ready`."""

    status: Literal["ready", "not ready"]
    model: str


@router.get("/health", tags=["Operation"], summary="Whether the process is alive", responses={503: {"model": Health}})
async def health(service: ServiceDep, response: Response) -> Health:
    """Alive (200): the event loop answers. 503: the engine has failed for good, so restart the process."""
    if not service.engine.has_failed:
        return Health()
    response.status_code = 503
    return Health(status="failed")


@router.get("/ready", tags=["Operation"], summary="Whether requests are taken", responses={503: {"model": Readiness}})
async def ready(service: ServiceDep, response: Response) -> Readiness:
    """Ready (200), or stopping or failing repeatedly (503)."""
    if service.engine.is_ready:
        return Readiness(status="ready", model=service.model_name)
    response.status_code = 503
    return Readiness(status="not ready", model=service.model_name)


@router.get(
    "/metrics",
    tags=["Operation"],
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}, "description": "Prometheus' or OpenMetrics' text format."}},
)
def metrics(request: Request, service: ServiceDep) -> Response:  # not async: runs in a thread, not on the event loop
    """All counters and measurements, for a Prometheus server."""
    body, content_type = service.metrics.exposition(request.headers.get("accept", ""))
    return Response(body, headers={"content-type": content_type})


# Limits


class Limits(BaseModel):
    """The answer of `/v1/limits`."""

    object: Literal["limits"] = "limits"
    model: str = Field(description="The served model's name.")
    max_model_len: int = Field(description="Maximum number of tokens of a prompt and a draft together.")
    max_tokens: int = Field(description="Maximum number of new tokens per draft.")
    max_num_drafts: int = Field(description="Largest k.")
    max_branches: int = Field(description="Maximum number of model rows of a request.")
    max_body_bytes: int
    max_timeout_ms: int
    strategies: list[Strategy]
    default_strategy: Strategy = Field(description="For requests that name none.")
    token_healing: bool = Field(description="Whether token healing is on by default.")
    min_probability_shown: float = Field(description="Default of requests whose trigger is automatic.")
    sees_suffix: bool = Field(description="Whether the model sees the text after the cursor.")


@router.get("/v1/limits", tags=["Superdraft"], summary="Limits and defaults of requests")
async def get_limits(service: ServiceDep) -> Limits:
    """The limits and defaults that this server's settings give."""
    engine, settings = service.engine, service.settings
    return Limits(
        model=service.model_name,
        max_model_len=engine.max_model_len,
        max_tokens=engine.config.max_tokens,
        max_num_drafts=engine.config.max_num_drafts,
        max_branches=engine.config.max_num_rows,
        max_body_bytes=settings.max_body_bytes,
        max_timeout_ms=MAX_TIMEOUT_MS,
        strategies=list(get_args(Strategy)),
        default_strategy=DEFAULT_STRATEGY,
        token_healing=settings.token_healing,
        min_probability_shown=settings.min_probability_shown,
        sees_suffix=service.fim is not None,
    )


# N-gram models


class NgramModelCard(BaseModel):
    """One n-gram model."""

    name: str
    order: int | None = Field(description="The longest n-gram, in tokens; null if the model is damaged.")
    size_bytes: int | None = Field(description="Of the binary; null if the model is damaged.")
    tokenizer: str | None = Field(description="Tokenizer whose token ids it uses; null if unknown.")
    fits_tokenizer: bool = Field(description="Whether that is the served model's tokenizer; other models are refused.")
    loaded: bool = Field(description="If false, the first request that names it waits for it.")


class NgramModelList(BaseModel):
    """The answer of `/v1/ngram_models`."""

    object: Literal["list"] = "list"
    data: list[NgramModelCard]
    default: str | None = Field(description="For requests that name none; null: no n-gram model.")


@router.get("/v1/ngram_models", tags=["Superdraft"], summary="Names that `ngram_model` may have")
async def list_ngram_models(service: ServiceDep) -> NgramModelList:
    """The models that are on disk now; a new one can be used at once."""
    models = service.ngram_models
    cards = [
        NgramModelCard(
            name=model.name,
            order=None if model.manifest is None else model.manifest.order,
            size_bytes=None if model.manifest is None else model.manifest.binary_bytes,
            tokenizer=None if model.manifest is None else model.manifest.tokenizer.name,
            fits_tokenizer=models.fits(model),
            loaded=models.is_loaded(model.name),
        )
        for model in await models.listed()
    ]
    return NgramModelList(data=cards, default=models.default)
