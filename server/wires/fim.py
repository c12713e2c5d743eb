"""Mistral's fill-in-the-middle wire, `POST /v1/fim/completions`, answered in the shape of a chat.

Continue uses it with servers of the OpenAI kind.
"""

import time
import uuid
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, Field

from superdraft.decoding.outputs import GenerationOutput
from superdraft.decoding.params import MAX_SEED, MIN_SEED
from superdraft.decoding.text.fim import Gap
from superdraft.server.bridge.fan_out import twin_key
from superdraft.server.service import DraftingRequest
from superdraft.server.wires.common import (
    ERROR_RESPONSES,
    MIN_PROBABILITY_SHOWN,
    Boolean,
    Integer,
    Number,
    ServiceDep,
    TolerantStop,
    WireRequest,
    sender,
)
from superdraft.server.wires.editors import asked, fill, shown_from
from superdraft.server.wires.json_body import documented, json_body
from superdraft.server.wires.openai.mapping import openai_finish_reason

# Schemas


class FimRequest(WireRequest):
    """A gap to fill. A null field means its default; unknown fields are ignored."""

    prompt: str = Field(description="The text before the gap.")
    suffix: str = Field(default="", description="The text after it.")
    model: str | None = Field(default=None, description="Absent: the served model.")
    max_tokens: Integer | None = Field(
        default=None, ge=0, description="Maximum number of new tokens, within the server's limit."
    )
    stop: TolerantStop = ()
    stream: Boolean = False
    temperature: Number = Field(default=1.0, description="For the sampling strategies.")
    random_seed: Integer | None = Field(
        default=None, ge=MIN_SEED, le=MAX_SEED, description="For the sampling strategies."
    )
    seed: Integer | None = Field(default=None, ge=MIN_SEED, le=MAX_SEED, description="Another name for random_seed.")
    min_probability_shown: Number | None = MIN_PROBABILITY_SHOWN


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


class FimDelta(BaseModel):
    """A piece of the text."""

    role: Literal["assistant"] = "assistant"
    content: str


class FimChunkChoice(BaseModel):
    """A piece of the best draft."""

    index: int = 0
    delta: FimDelta
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
    parameters = asked(
        service,
        max_tokens=body.max_tokens,
        stop=body.stop,
        temperature=body.temperature,
        seed=body.seed if body.random_seed is None else body.random_seed,
    )
    name = f"fim-{uuid.uuid4().hex}"
    drafting = DraftingRequest(
        sender=sender(),
        id=name,
        asked=parameters,
        model=body.model,
        twin_key=twin_key(http, body),
        display=shown_from(service, body.min_probability_shown),
    )
    filled = await fill(http, service, drafting, Gap(body.prompt, body.suffix))
    head: dict[str, Any] = {"id": name, "created": int(time.time()), "model": service.model_name}
    draft, usage = filled.output.drafts[0], _usage(filled.output)
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
