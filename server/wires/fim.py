"""Mistral's fill-in-the-middle wire, which Continue speaks to servers of the OpenAI kind."""

import time
import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from superdraft.decoding.outputs import GenerationOutput
from superdraft.decoding.text.fim import Gap
from superdraft.server.bridge.fan_out import twin_key
from superdraft.server.wires.editors import EditorRequest, editor_params, fill
from superdraft.server.wires.fim_schemas import (
    FimChoice,
    FimChunk,
    FimChunkChoice,
    FimCompletion,
    FimDelta,
    FimMessage,
    FimRequest,
    FimUsage,
)
from superdraft.server.wires.json_body import documented, json_body
from superdraft.server.wires.openai.mapping import openai_finish_reason
from superdraft.server.wires.openai.routes import ERROR_RESPONSES, ServiceDep

router = APIRouter(tags=["Fill in the middle"])


@router.post(
    "/v1/fim/completions",
    response_model=FimCompletion,
    responses={**ERROR_RESPONSES, 200: {"content": {"text/event-stream": {}}, "description": "The best draft."}},
    openapi_extra=documented(FimRequest),
    summary="Fill the gap between two texts",
)
async def create_fim_completion(
    http: Request, service: ServiceDep, body: Annotated[FimRequest, Depends(json_body(FimRequest))]
) -> FimCompletion | Response:
    """The best draft for the gap; in a stream it goes out when it is final, in one piece."""
    params = editor_params(
        service,
        max_tokens=body.max_tokens,
        stop=body.stop,
        strategy=service.strategy_of(body.model),
        temperature=body.temperature,
        seed=body.seed if body.random_seed is None else body.random_seed,
    )
    name = f"fim-{uuid.uuid4().hex}"
    request = EditorRequest(name, params, twin_key(http, body))
    filled = await fill(http, service, request, Gap(body.prompt, body.suffix))
    share = filled.share
    service.feedback.remember(service.feedback.asked(name), share.output.drafts[:1])
    head: dict[str, Any] = {"id": name, "created": int(time.time()), "model": service.model_name}
    draft, usage = share.output.drafts[0], _usage(share.output)
    if not body.stream:
        message = FimMessage(content=draft.text)
        choice = FimChoice(message=message, finish_reason=openai_finish_reason(draft))
        return FimCompletion(**head, choices=[choice], usage=usage, warnings=filled.warnings)
    text = FimChunkChoice(delta=FimDelta(content=draft.text), finish_reason=None)
    end = FimChunkChoice(delta=FimDelta(content=""), finish_reason=openai_finish_reason(draft))
    chunks = [FimChunk(**head, choices=[text]), FimChunk(**head, choices=[end], usage=usage, warnings=filled.warnings)]
    return Response(_event_stream(chunks), media_type="text/event-stream")


def _usage(output: GenerationOutput) -> FimUsage:
    prompt_tokens, completion_tokens = output.usage.prompt_tokens, output.usage.completion_tokens
    return FimUsage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
    )


def _event_stream(chunks: list[FimChunk]) -> str:
    return "".join(f"data: {chunk.model_dump_json()}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
