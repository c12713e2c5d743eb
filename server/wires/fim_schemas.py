"""`POST /v1/fim/completions`: Mistral's fill-in-the-middle, answered in the shape of a chat."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator

from superdraft.server.wires.common import Boolean, Integer, Number, without_nulls
from superdraft.server.wires.llamacpp_schemas import STOP_SCHEMA, tolerant_stops


class FimRequest(BaseModel):
    """A gap to fill. A null field means its default; fields that are not known here are left aside."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    prompt: str = Field(description="The text before the gap.")
    suffix: str = Field(default="", description="The text after it.")
    model: str | None = Field(default=None, description="Absent: the served model.")
    max_tokens: Integer | None = Field(default=None, ge=0, description="New tokens, within the server's limit.")
    stop: Annotated[tuple[str, ...], PlainValidator(tolerant_stops), WithJsonSchema(STOP_SCHEMA)] = ()
    stream: Boolean = False
    temperature: Number = Field(default=1.0, description="Of the sampling strategies.")
    random_seed: Integer | None = Field(default=None, ge=-(2**63), lt=2**63, description="Of the sampling strategies.")
    seed: Integer | None = Field(default=None, ge=-(2**63), lt=2**63, description="Another name of it.")

    @model_validator(mode="before")
    @classmethod
    def _nulls_are_defaults(cls, data: Any) -> Any:
        return without_nulls(data)


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
    """An event of the stream; `warnings` are in the last.

    Continue reads `choices[0].delta.content` of each, so none is without.
    """

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[FimChunkChoice]
    usage: FimUsage | None = None
    warnings: list[str] = []
