"""For whoever runs the server: whether it is alive and takes requests."""

from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel

from superdraft.server.routes_openai import ServiceDep

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
