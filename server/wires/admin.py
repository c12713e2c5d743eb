"""For whoever runs the server: whether it is alive and takes requests, what it does, and how well."""

import time
from importlib.metadata import version
from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from superdraft.server.observe.stats import OutcomeStats, RowStats, ServerStats, SlotStats, TokenStats, share_of
from superdraft.server.service import Service
from superdraft.server.wires.openai.routes import ServiceDep

router = APIRouter(tags=["Operation"])


class Health(BaseModel):
    """Answer of `/health`."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """Answer of `/ready`."""

    status: Literal["ready", "not ready"]
    model: str


@router.get("/health", summary="The process answers")
async def health() -> Health:
    """Alive: the event loop answers."""
    return Health()


@router.get("/ready", summary="Requests are taken", responses={503: {"model": Readiness}})
async def ready(service: ServiceDep, response: Response) -> Readiness:
    """Ready (200), or stopping or failing again and again (503)."""
    if service.engine.is_ready:
        return Readiness(status="ready", model=service.model_name)
    response.status_code = 503
    return Readiness(status="not ready", model=service.model_name)


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}, "description": "Prometheus' or OpenMetrics' text format."}},
)
def metrics(request: Request, service: ServiceDep) -> Response:  # not async: a thread's work, the event loop goes on
    """Everything that is counted and measured, for a Prometheus server."""
    body, content_type = service.metrics.exposition(request.headers.get("accept", ""))
    return Response(body, headers={"content-type": content_type})


@router.get("/v1/stats", summary="How the server is doing, for people")
async def stats(service: ServiceDep) -> ServerStats:
    """Load, outcomes, latency of the last minutes, and what sharing rows and prefixes has saved."""
    return _stats_of(service)


def _stats_of(service: Service) -> ServerStats:
    def total(name: str) -> int:
        return round(service.metrics.total(name))

    prompt, cached = total("superdraft_prompt_tokens_total"), total("superdraft_cached_tokens_total")
    superposed, separate = total("superdraft_superposed_rows_total"), total("superdraft_separate_rows_total")
    return ServerStats(
        model=service.model_name,
        version=version("superdraft"),
        ready=service.engine.is_ready,
        uptime_s=int(time.time()) - service.created,
        slots=SlotStats(total=total("superdraft_slots"), used=total("superdraft_used_slots")),
        running=total("superdraft_running_sequences"),
        waiting=total("superdraft_waiting_requests") + total("superdraft_waiting_sequences"),
        requests=OutcomeStats.model_validate(service.statistics.outcomes),
        latency=service.statistics.latency(),
        tokens=TokenStats(
            prompt=prompt,
            cached=cached,
            completion=total("superdraft_completion_tokens_total"),
            prefix_hit_share=share_of(cached, prompt),
        ),
        rows=RowStats(superposed=superposed, separate=separate, saved_share=share_of(separate - superposed, separate)),
    )
