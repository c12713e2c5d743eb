"""The native wire: drafts with their scores, work and timings, at once or as they grow."""

import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel

from superdraft.decoding.outputs import StepOutput
from superdraft.decoding.request import EngineRequest
from superdraft.server.edge.error_map import ErrorResponse
from superdraft.server.service import unless_client_gone
from superdraft.server.wires.json_body import documented, json_body
from superdraft.server.wires.native.mapping import (
    drafts_response,
    drafts_snapshot,
    generation_params,
    request_warnings,
    session_of,
    timeout_of,
)
from superdraft.server.wires.native.schemas import DraftsRequest, DraftsResponse
from superdraft.server.wires.openai.routes import ERROR_RESPONSES, ServiceDep
from superdraft.server.wires.streaming import EventStream

SESSION_HEADER = "x-session-id"
_RESPONSES: dict[int | str, dict[str, Any]] = {
    **ERROR_RESPONSES,
    200: {"content": {"text/event-stream": {}}, "description": "The drafts; with `stream`, events that end with them."},
    499: {"model": ErrorResponse, "description": "A newer request of the same session took this one's place."},
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
    body = service.with_strategy(body)
    models, chooses = service.ngram_models, not body.uses_default_ngram_model
    scorer = await (models.choose(body.ngram_model) if chooses else models.current_default())
    tuning = await models.tuning(body.ngram_model) if chooses else None
    params = generation_params(
        body,
        service.drafting_for(tuning),
        token_healing=service.settings.token_healing,
    )
    session_id = session_of(body, request.headers.get(SESSION_HEADER))
    timeout_s = timeout_of(body, service.settings.max_timeout_ms)
    drafts_id, warnings = f"drafts-{uuid.uuid4().hex}", request_warnings(body, scorer)
    asked = service.feedback.asked(drafts_id)
    asks = EngineRequest(drafts_id, body.prompt, params, scorer, session_id=session_id, timeout_s=timeout_s)
    if not body.stream:
        output = await unless_client_gone(request, service.engine.generate(asks))
        service.feedback.remember(asked, output.drafts)
        return drafts_response(drafts_id, service.model_name, output, warnings)

    def render(step: StepOutput) -> BaseModel:
        if step.snapshot is not None:
            return drafts_snapshot(drafts_id, step.snapshot)
        assert step.output is not None
        service.feedback.remember(asked, step.output.drafts)
        return drafts_response(drafts_id, service.model_name, step.output, warnings)

    return EventStream(await unless_client_gone(request, service.engine.stream(asks)), render)
