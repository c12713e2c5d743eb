"""Mistral's fill-in-the-middle wire, `POST /v1/fim/completions`, answered in the shape of a chat.

Continue uses it with servers of the OpenAI kind.
"""

import time
import uuid
from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, Field

from superdraft.decoding.params import MAX_SEED, MIN_SEED
from superdraft.decoding.text.fim import Gap
from superdraft.server.wires.common import (
    ERROR_RESPONSES,
    Boolean,
    Integer,
    ServiceDep,
    TolerantStop,
)
from superdraft.server.wires.editors import EditorRequest, drafting_request, fill
from superdraft.server.wires.json_body import documented, json_body
from superdraft.server.wires.openai.mapping import openai_finish_reason

# Schemas


class FimRequest(EditorRequest):
    """A gap to fill. A null field means its default; unknown fields are ignored."""

    prompt: str = Field(description="The text before the gap.")
    suffix: str = Field(default="", description="The text after it.")
    model: str | None = Field(default=None, description="Absent: the served model.")
    max_tokens: Integer | None = Field(
        default=None, ge=0, description="Maximum number of new tokens, within the server's limit."
    )
    stop: TolerantStop = ()
    stream: Boolean = False
    random_seed: Integer | None = Field(
        default=None, ge=MIN_SEED, le=MAX_SEED, description="For the sampling strategies."
    )
    seed: Integer | None = Field(default=None, ge=MIN_SEED, le=MAX_SEED, description="Another name for random_seed.")


class FimMessage(BaseModel):
    """The text for the gap."""

    role: Literal["assistant"] = "assistant"
    content: str


class FimChoice(BaseModel):
    """The best draft."""

    index: int = 0
    message: FimMessage
    finish_reason: Literal["stop", "length"]


class FimUsage(BaseModel):
    """Tokens of the prompt and of the answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class FimCompletion(BaseModel):
    """The answer without `stream`; `warnings` goes beyond Mistral's shape."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[FimChoice]
    usage: FimUsage
    warnings: list[str] = []


class FimChunkChoice(BaseModel):
    """A piece of the best draft."""

    index: int = 0
    delta: FimMessage
    finish_reason: Literal["stop", "length"] | None


class FimChunk(BaseModel):
    """An event of the stream; the last one has the `warnings`.

    Continue reads `choices[0].delta.content` of every event, so each has one.
    """

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[FimChunkChoice]
    usage: FimUsage | None = None
    warnings: list[str] = []


# The route

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
    """The best draft for the gap; in a stream it is sent whole when it is final."""
    drafting = drafting_request(
        http,
        service,
        body,
        f"fim-{uuid.uuid4().hex}",
        max_tokens=body.max_tokens,
        stop=body.stop,
        seed=body.seed if body.random_seed is None else body.random_seed,
    )
    output, _ = await fill(http, service, replace(drafting, model=body.model), Gap(body.prompt, body.suffix))
    head: dict[str, Any] = {"id": drafting.id, "created": int(time.time()), "model": service.model_name}
    draft, used = output.drafts[0], output.usage
    usage = FimUsage(
        prompt_tokens=used.prompt_tokens,
        completion_tokens=used.completion_tokens,
        total_tokens=used.prompt_tokens + used.completion_tokens,
    )
    end: dict[str, Any] = {"usage": usage, "warnings": output.warnings}
    message, reason = FimMessage(content=draft.text), openai_finish_reason(draft)
    if not body.stream:
        return FimCompletion(**head, choices=[FimChoice(message=message, finish_reason=reason)], **end)
    chunks = [
        FimChunk(**head, choices=[FimChunkChoice(delta=message, finish_reason=None)]),
        FimChunk(**head, choices=[FimChunkChoice(delta=FimMessage(content=""), finish_reason=reason)], **end),
    ]
    events = "".join(f"data: {chunk.model_dump_json()}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    return Response(events, media_type="text/event-stream")
