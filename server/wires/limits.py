"""What requests may ask for here, for whoever offers a choice of it."""

from typing import Literal, get_args

from fastapi import APIRouter
from pydantic import BaseModel, Field

from superdraft.server.wires.common import Strategy
from superdraft.server.wires.openai.routes import ServiceDep

router = APIRouter(tags=["Superdraft"])


class Limits(BaseModel):
    """The answer of `/v1/limits`."""

    object: Literal["limits"] = "limits"
    model: str = Field(description="The served model's name.")
    max_model_len: int = Field(description="Tokens of prompt and draft together.")
    max_tokens: int = Field(description="New tokens of each draft.")
    max_num_drafts: int = Field(description="k.")
    max_branches: int = Field(description="Rows of the sampling strategies.")
    max_body_bytes: int
    max_timeout_ms: int
    strategies: list[Strategy]
    default_strategy: Strategy = Field(description="Of requests that don't say.")
    token_healing: bool = Field(description="Whether requests that don't say have token healing.")


@router.get("/v1/limits", summary="What requests may ask for")
async def get_limits(service: ServiceDep) -> Limits:
    """The limits and defaults of this server's settings."""
    engine, settings = service.engine.engine, service.settings
    return Limits(
        model=service.model_name,
        max_model_len=engine.max_model_len,
        max_tokens=engine.config.max_tokens,
        max_num_drafts=engine.config.max_num_drafts,
        max_branches=engine.num_slots,
        max_body_bytes=settings.max_body_bytes,
        max_timeout_ms=settings.max_timeout_ms,
        strategies=list(get_args(Strategy)),
        default_strategy=settings.default_strategy,
        token_healing=settings.token_healing,
    )
