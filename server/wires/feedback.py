"""`POST /v1/feedback`: what users did with drafts."""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from superdraft.server.edge.error_map import ErrorResponse
from superdraft.server.observe.metrics import DraftEvent
from superdraft.server.wires.common import ERROR_RESPONSES, Integer, Number, ServiceDep, WireRequest, sender
from superdraft.server.wires.json_body import documented, json_body

MAX_ELAPSED_MS = 24 * 3600 * 1000

router = APIRouter(tags=["Superdraft"])


class FeedbackRequest(WireRequest):
    """What the user did with a draft. A null field means its default; unknown fields are errors."""

    model_config = ConfigDict(extra="forbid")

    completion_id: str = Field(min_length=1, max_length=128, description="The `id` of the answer.")
    event: DraftEvent
    index: Integer = Field(default=0, ge=0, description="Index of the draft or choice in the answer.")
    elapsed_ms: Number | None = Field(
        default=None, ge=0, le=MAX_ELAPSED_MS, description="Milliseconds since the draft was shown."
    )


class FeedbackResponse(BaseModel):
    """The answer to an event."""

    object: Literal["feedback"] = "feedback"
    completion_id: str
    event: DraftEvent
    rank: int = Field(description="The draft's place among those of its run; 0 is the best.")
    counted: bool = Field(description="False: the event had been counted before.")


@router.post(
    "/v1/feedback",
    responses={
        **ERROR_RESPONSES,
        404: {"model": ErrorResponse, "description": "No such answer is remembered for this key."},
    },
    openapi_extra=documented(FeedbackRequest),
    summary="What the user did with a draft",
)
async def feedback(
    service: ServiceDep, body: Annotated[FeedbackRequest, Depends(json_body(FeedbackRequest))]
) -> FeedbackResponse:
    """Count the event under the draft's rank, once however often it is sent."""
    outcome = service.feedback.take(
        body.completion_id,
        body.event,
        body.index,
        caller=sender().name,
        elapsed_s=None if body.elapsed_ms is None else body.elapsed_ms / 1000,
    )
    return FeedbackResponse(
        completion_id=body.completion_id, event=body.event, rank=outcome.rank, counted=outcome.is_new
    )
