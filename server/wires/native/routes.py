"""The native wire: drafts with scores, work and timings, in one answer or as they grow."""

import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel

from superdraft.decoding.outputs import StepOutput
from superdraft.server.edge.error_map import ErrorResponse
from superdraft.server.service import DraftingRequest
from superdraft.server.wires.common import ERROR_RESPONSES, ServiceDep, engine_prompt, unless_client_gone
from superdraft.server.wires.json_body import documented, json_body
from superdraft.server.wires.native.mapping import (
    asked,
    drafts_response,
    drafts_snapshot,
    request_warnings,
    session_of,
    timeout_of,
)
from superdraft.server.wires.native.schemas import DraftsRequest, DraftsResponse
from superdraft.server.wires.streaming import EventStream

SESSION_HEADER = "x-session-id"
_RESPONSES: dict[int | str, dict[str, Any]] = {
    **ERROR_RESPONSES,
    200: {"content": {"text/event-stream": {}}, "description": "The drafts; with `stream`, events that end with them."},
    499: {"model": ErrorResponse, "description": "A newer request of the same session replaced this one."},
}

router = APIRouter(tags=["Superdraft"])


@router.post(
    "/v1/drafts",
    response_model=DraftsResponse,
    responses=_RESPONSES,
    openapi_extra=documented(DraftsRequest),
    summary="Drafts with scores, work and timings",
)
async def create_drafts(
    request: Request,
    service: ServiceDep,
    body: Annotated[DraftsRequest, Depends(json_body(DraftsRequest))],
) -> DraftsResponse | EventStream:
    """Complete one prompt with k drafts from one pass of the model."""
    drafts_id = f"drafts-{uuid.uuid4().hex}"
    drafting = DraftingRequest(
        id=drafts_id,
        prompts={drafts_id: engine_prompt(body.prompt, special_tokens=False)},
        asked=asked(body),
        asks_for_paper=body.asks_for_paper,
        model=body.model,
        names_ngram_model=body.names_ngram_model,
        ngram_model=body.ngram_model,
        session_id=session_of(body, request.headers.get(SESSION_HEADER)),
        timeout_s=timeout_of(body, service.settings.max_timeout_ms),
    )
    if not body.stream:
        drafted = await unless_client_gone(request, service.draft(drafting))
        warnings = request_warnings(body, drafted.params.strategy, has_ngram_model=drafted.has_ngram_model)
        return drafts_response(drafts_id, service.model_name, drafted.outputs[0], warnings)

    streamed = await unless_client_gone(request, service.stream(drafting))
    warnings = request_warnings(body, streamed.params.strategy, has_ngram_model=streamed.has_ngram_model)

    def render(step: StepOutput) -> BaseModel:
        if step.snapshot is not None:
            return drafts_snapshot(drafts_id, step.snapshot)
        assert step.output is not None
        return drafts_response(drafts_id, service.model_name, step.output, warnings)

    return EventStream(streamed.outputs, render)
