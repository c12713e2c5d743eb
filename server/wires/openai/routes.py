"""The OpenAI wire: completions and the list of models."""

import time
import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, ValidationError

from superdraft.decoding.outputs import GenerationOutput
from superdraft.server.bridge.fan_out import twin_key
from superdraft.server.edge.error_map import ErrorResponse, invalid_request
from superdraft.server.service import Service, get_service, unless_client_gone
from superdraft.server.wires.common import ModelCard, ModelList
from superdraft.server.wires.json_body import documented, json_body
from superdraft.server.wires.openai.mapping import (
    add_warnings,
    choices_of,
    errors_in_request_terms,
    generation_params,
    request_warnings,
    usage_of,
)
from superdraft.server.wires.openai.prompts import echo_texts, engine_prompts, gaps_of
from superdraft.server.wires.openai.runs import CompletionRuns
from superdraft.server.wires.openai.schemas import CompletionRequest, CompletionResponse
from superdraft.server.wires.openai.stream import CompletionStream
from superdraft.server.wires.streaming import EventStream

WARNINGS_HEADER = "x-superdraft-warnings"
ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": description}
    for status, description in {
        400: "A field or the body is wrong.",
        404: "The named model is not served here.",
        413: "The body is too large.",
        500: "The server failed on this request.",
        503: "The server is shutting down.",
    }.items()
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    **ERROR_RESPONSES,
    200: {"content": {"text/event-stream": {}}, "description": "The choices; with `stream`, events that build them."},
}


class JsonObject(BaseModel):
    """Any JSON object: OpenAI's and Tabby's completions share a path, and are told apart by their fields."""

    model_config = ConfigDict(extra="allow")


router = APIRouter(tags=["OpenAI"])
ServiceDep = Annotated[Service, Depends(get_service)]


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
    """Complete one prompt or several; `n` drafts each, from one pass of the model."""
    fields = json_object.model_extra or {}
    if fields.get("segments") is not None and fields.get("prompt") is None:
        from superdraft.server.wires.tabby import complete_segments  # it imports this module

        return await complete_segments(fields, request)
    body = service.with_strategy(_validated(fields))
    params, warnings = generation_params(body, service), request_warnings(body, service)
    prompts, more_warnings = await engine_prompts(body, service)
    warnings += more_warnings
    completion_id = f"cmpl-{uuid.uuid4().hex}"
    runs = CompletionRuns(
        service,
        completion_id,
        prompts={f"{completion_id}-{i}": prompt for i, prompt in enumerate(prompts)},
        params=params,
        twin_key=twin_key(request, body) if len(prompts) == 1 else None,
        gaps={f"{completion_id}-{i}": gap for i, gap in enumerate(gaps_of(body))},
    )
    asked = service.feedback.asked(completion_id)

    def remember(prompt_index: int, output: GenerationOutput) -> None:
        service.feedback.remember(asked, output.drafts[: body.n], prompt_index * body.n)

    head: dict[str, Any] = {"id": completion_id, "created": int(time.time()), "model": service.model_name}
    echoes = echo_texts(body, service)
    with errors_in_request_terms(body):
        if body.stream:
            stream = await unless_client_gone(request, runs.stream())
            render = CompletionStream(head, body, list(runs.prompts), echoes, warnings, remember, runs.shown)
            return EventStream(stream, render, _warnings_header(warnings))
        outputs = await unless_client_gone(request, runs.outputs())
    choices = [
        choice
        for i, (echo, output) in enumerate(zip(echoes, outputs, strict=True))
        for choice in choices_of(body, i, echo, output)
    ]
    for i, output in enumerate(outputs):
        remember(i, output)
        add_warnings(warnings, output)
    response.headers.update(_warnings_header(warnings))
    return CompletionResponse(**head, choices=choices, usage=usage_of(outputs, body.n), warnings=warnings)


def _validated(fields: dict[str, Any]) -> CompletionRequest:
    try:
        return CompletionRequest.model_validate(fields)
    except ValidationError as error:
        raise invalid_request(error) from None


@router.get("/v1/models", summary="The names that `model` takes")
async def list_models(service: ServiceDep) -> ModelList:
    """The served model under its name, its alias, and both with each strategy."""
    return ModelList(data=[_card(service, name) for name in (*service.model_names, *service.strategy_aliases)])


@router.get("/v1/models/{model_id:path}", responses={404: ERROR_RESPONSES[404]}, summary="One model")
async def get_model(service: ServiceDep, model_id: str) -> ModelCard:
    """The served model, if this is one of its names."""
    service.strategy_of(model_id)
    return _card(service, model_id)


def _warnings_header(warnings: list[str]) -> dict[str, str]:
    value = " | ".join(warnings).encode("ascii", "replace").decode()
    return {WARNINGS_HEADER: value} if warnings else {}


def _card(service: Service, name: str) -> ModelCard:
    return ModelCard(id=name, created=service.created, max_model_len=service.engine.engine.max_model_len)
