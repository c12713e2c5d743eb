"""The OpenAI wire: completions and the list of models."""

import time
import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from superdraft.server.completions import choices_of, generation_params, request_warnings, usage_of
from superdraft.server.error_map import ErrorResponse, NotFoundError
from superdraft.server.json_body import documented, json_body
from superdraft.server.schemas import ModelCard, ModelList, Prompt
from superdraft.server.schemas_openai import CompletionRequest, CompletionResponse
from superdraft.server.service import Service, all_or_none, get_service, unless_client_gone

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

router = APIRouter(tags=["OpenAI"])
ServiceDep = Annotated[Service, Depends(get_service)]


@router.post(
    "/v1/completions",
    response_model=CompletionResponse,
    responses=ERROR_RESPONSES,
    openapi_extra=documented(CompletionRequest),
    summary="Drafts in the shape of OpenAI's completions",
)
async def create_completion(
    request: Request,
    response: Response,
    service: ServiceDep,
    body: Annotated[CompletionRequest, Depends(json_body(CompletionRequest))],
) -> CompletionResponse:
    """Complete one prompt or several; `n` drafts each, from one pass of the model."""
    service.check_model(body.model)
    params = generation_params(body, service)
    completion_id, scorer = f"cmpl-{uuid.uuid4().hex}", service.ngram_models.default_scorer
    works = [
        service.engine.generate(f"{completion_id}-{i}", prompt, params, scorer) for i, prompt in enumerate(body.prompt)
    ]
    outputs = await unless_client_gone(request, all_or_none(works))
    warnings = request_warnings(body)
    choices = []
    for i, (prompt, output) in enumerate(zip(body.prompt, outputs, strict=True)):
        choices += choices_of(body, i, _text_of(service, prompt) if body.echo else "", output)
        warnings += [warning for warning in output.warnings if warning not in warnings]
    if warnings:
        response.headers[WARNINGS_HEADER] = header_value(warnings)
    return CompletionResponse(
        id=completion_id,
        created=int(time.time()),
        model=service.model_name,
        choices=choices,
        usage=usage_of(outputs, body.n),
        warnings=warnings,
    )


@router.get("/v1/models", summary="The names that `model` takes")
async def list_models(service: ServiceDep) -> ModelList:
    """The served model under its name and its alias."""
    return ModelList(data=[_card(service, name) for name in service.model_names])


@router.get("/v1/models/{model_id:path}", responses={404: ERROR_RESPONSES[404]}, summary="One model")
async def get_model(service: ServiceDep, model_id: str) -> ModelCard:
    """The served model, if this is one of its names."""
    if model_id not in service.model_names:
        message = f"This model is not served here; served: {', '.join(service.model_names)}."
        raise NotFoundError(message, param="model", code="model_not_found")
    return _card(service, model_id)


def header_value(warnings: list[str]) -> str:
    """Warnings as one header line."""
    return " | ".join(warnings).encode("ascii", "replace").decode()


def _card(service: Service, name: str) -> ModelCard:
    return ModelCard(id=name, created=service.created, max_model_len=service.engine.engine.max_model_len)


def _text_of(service: Service, prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else service.engine.engine.tokenizer.decode(prompt)
