"""OpenAI's wire: completions and models. Tabby's completions come on the same path."""

import time
import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, ValidationError

from superdraft.decoding.outputs import GenerationOutput
from superdraft.decoding.prompt import Prompt
from superdraft.decoding.text.fim import Gap
from superdraft.server.bridge.fan_out import twin_key
from superdraft.server.display import Display
from superdraft.server.edge.error_map import invalid_request
from superdraft.server.service import DraftingRequest, Service
from superdraft.server.wires.common import ERROR_RESPONSES, ServiceDep, sender, unless_client_gone
from superdraft.server.wires.json_body import documented, json_body
from superdraft.server.wires.openai.mapping import (
    add_warnings,
    asked,
    check,
    choices_of,
    errors_in_request_terms,
    request_warnings,
    usage_of,
)
from superdraft.server.wires.openai.prompts import cut_drafts, echo_texts, engine_prompts, gaps_of
from superdraft.server.wires.openai.schemas import CompletionRequest, CompletionResponse, ModelCard, ModelList
from superdraft.server.wires.openai.stream import CompletionStream
from superdraft.server.wires.streaming import EventStream
from superdraft.server.wires.tabby import complete_segments

WARNINGS_HEADER = "x-superdraft-warnings"
_RESPONSES: dict[int | str, dict[str, Any]] = {
    **ERROR_RESPONSES,
    200: {"content": {"text/event-stream": {}}, "description": "The choices; with `stream`, events that build them."},
}


class JsonObject(BaseModel):
    """Any JSON object: OpenAI's and Tabby's completions share a path, and differ in their fields."""

    model_config = ConfigDict(extra="allow")


router = APIRouter(tags=["OpenAI"])


@router.post("/completions", response_model=CompletionResponse, include_in_schema=False)
@router.post(
    "/v1/completions",
    response_model=CompletionResponse,
    responses=_RESPONSES,
    openapi_extra=documented(CompletionRequest),
    summary="Drafts in the shape of OpenAI's completions",
)
async def create_completion(
    request: Request,
    response: Response,
    service: ServiceDep,
    json_object: Annotated[JsonObject, Depends(json_body(JsonObject))],
) -> CompletionResponse | Response:
    """Complete one prompt or several, with `n` drafts each, from one pass of the model."""
    fields = json_object.model_extra or {}
    if fields.get("segments") is not None and fields.get("prompt") is None:
        return await complete_segments(fields, request, service)
    body = _validated(fields)
    check(body)
    prompts, gap_warnings = await engine_prompts(body, request, service)
    drafting = _drafting_request(body, prompts, request, service)
    head: dict[str, Any] = {"id": drafting.id, "created": int(time.time()), "model": service.model_name}
    limit = service.engine.config.max_tokens
    with errors_in_request_terms(body):
        if body.stream:
            streamed = await unless_client_gone(request, service.stream(drafting))
            warnings = request_warnings(body, streamed.params, limit) + gap_warnings
            render = CompletionStream(head, body, list(drafting.prompts), echo_texts(body, service), warnings)
            return EventStream(streamed.outputs, render, _warnings_header(warnings))
        drafted = await unless_client_gone(request, service.draft(drafting))
    warnings = request_warnings(body, drafted.params, limit) + gap_warnings
    choices = []
    for i, (echo, output) in enumerate(zip(echo_texts(body, service), drafted.outputs, strict=True)):
        choices += choices_of(body, i, echo, output)
        add_warnings(warnings, output)
    response.headers.update(_warnings_header(warnings))
    usage = usage_of(drafted.outputs, body.n)
    return CompletionResponse(**head, choices=choices, usage=usage, warnings=warnings)


def _validated(fields: dict[str, Any]) -> CompletionRequest:
    try:
        return CompletionRequest.model_validate(fields)
    except ValidationError as error:
        raise invalid_request(error) from None


def _drafting_request(
    body: CompletionRequest, prompts: list[Prompt], request: Request, service: Service
) -> DraftingRequest:
    completion_id = f"cmpl-{uuid.uuid4().hex}"
    request_ids = [f"{completion_id}-{i}" for i in range(len(prompts))]
    gaps = dict(zip(request_ids, gaps_of(body), strict=False))  # none without a suffix

    def cut(request_id: str, output: GenerationOutput) -> GenerationOutput:
        return cut_drafts(body, gaps[request_id], output) if gaps else output

    return DraftingRequest(
        sender=sender(),
        id=completion_id,
        prompts=dict(zip(request_ids, prompts, strict=True)),
        asked=asked(body, service.engine),
        model=body.model,
        twin_key=twin_key(request, body) if len(prompts) == 1 else None,
        cut=cut,
        display=Display(Gap(""), body.min_probability_shown) if body.min_probability_shown else None,
        num_shown=body.n,
    )


@router.get("/v1/models", summary="Names that `model` may have")
async def list_models(service: ServiceDep) -> ModelList:
    """The served model under its name and its alias, each also with every strategy and selection."""
    return ModelList(data=[_card(service, name) for name in (*service.model_names, *service.method_aliases)])


@router.get("/v1/models/{model_id:path}", responses={404: ERROR_RESPONSES[404]}, summary="One model")
async def get_model(service: ServiceDep, model_id: str) -> ModelCard:
    """The served model, if this is one of its names."""
    service.method_of(model_id)
    return _card(service, model_id)


def _warnings_header(warnings: list[str]) -> dict[str, str]:
    value = " | ".join(warnings).encode("ascii", "replace").decode()
    return {WARNINGS_HEADER: value} if warnings else {}


def _card(service: Service, name: str) -> ModelCard:
    return ModelCard(id=name, created=service.created, max_model_len=service.engine.max_model_len)
