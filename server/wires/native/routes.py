"""The native wire: drafts with scores, work and timings, in one answer or as they grow."""

import uuid
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel

from superdraft.decoding.outputs import GenerationOutput, StepOutput
from superdraft.decoding.prompt import Prompt
from superdraft.decoding.text.fim import Gap
from superdraft.server.edge.error_map import ErrorResponse
from superdraft.server.service import DraftingRequest, Service
from superdraft.server.wires.common import ERROR_RESPONSES, ServiceDep, engine_prompt, sender, unless_client_gone
from superdraft.server.wires.editors import cut_at_gap, prepare_gap
from superdraft.server.wires.json_body import documented, json_body
from superdraft.server.wires.native.mapping import (
    INSIDE_A_LINE,
    asked,
    deadline_of,
    display_of,
    drafts_response,
    drafts_snapshot,
    gap_of,
    is_silent,
    request_warnings,
    session_of,
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
    gap = gap_of(body)
    display = display_of(body, gap, service.settings.min_probability_shown)
    prompt, own_warnings = await _prompt_of(body, gap, request, service)
    asks = asked(body, gap, is_code_model=service.fim is not None)
    if is_silent(body, gap, sees_suffix=service.fim is not None):
        asks = replace(asks, max_tokens=0)  # only runs the prompt, for the requests to come
        own_warnings = [INSIDE_A_LINE]
    drafting = DraftingRequest(
        sender=sender(),
        id=drafts_id,
        prompts={drafts_id: prompt},
        asked=asks,
        asks_for_paper=body.asks_for_paper,
        model=body.model,
        names_ngram_model=body.names_ngram_model,
        ngram_model=body.ngram_model,
        session_id=session_of(body, request.headers.get(SESSION_HEADER)),
        deadline_s=deadline_of(body),
        cut=partial(_cut, gap),
        display=display,
    )
    if not body.stream:
        drafted = await unless_client_gone(request, service.draft(drafting))
        warnings = request_warnings(body, drafted.params, has_ngram_model=drafted.has_ngram_model)
        return drafts_response(drafts_id, service.model_name, drafted.outputs[0], [*own_warnings, *warnings])

    streamed = await unless_client_gone(request, service.stream(drafting))
    params = streamed.params
    warnings = [*own_warnings, *request_warnings(body, params, has_ngram_model=streamed.has_ngram_model)]

    def render(step: StepOutput) -> BaseModel:
        if step.snapshot is not None:
            return drafts_snapshot(drafts_id, display.shown_so_far(step.snapshot, params))
        assert step.output is not None
        return drafts_response(drafts_id, service.model_name, step.output, warnings)

    return EventStream(streamed.outputs, render)


async def _prompt_of(body: DraftsRequest, gap: Gap, request: Request, service: Service) -> tuple[Prompt, list[str]]:
    """The engine's prompt, and warnings about it."""
    if not (body.suffix or body.path):
        return engine_prompt(body.prompt, special_tokens=False), []
    prepared, warnings = await prepare_gap(request, service, gap, body.max_tokens)
    return prepared.prompt, warnings


def _cut(gap: Gap, _id: str, output: GenerationOutput) -> GenerationOutput:
    """The output with drafts that keep out of the text after the gap. One without text suggests nothing."""
    if gap.suffix:
        output = cut_at_gap(output, gap)
    return replace(output, drafts=tuple(draft for draft in output.drafts if draft.text))
