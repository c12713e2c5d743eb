"""`POST /v1/completions`: OpenAI's legacy completions, at once or as chunks of a stream."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator

from superdraft.server.wires import examples
from superdraft.server.wires.common import (
    HEALING_DESCRIPTION,
    Boolean,
    Integer,
    LogitBias,
    Number,
    Prompt,
    PromptTokensDetails,
    Selection,
    Stop,
    Strategy,
    is_token_ids,
    without_nulls,
)

_PROMPT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}},
        {"type": "array", "items": {"type": "integer"}},
        {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
    ]
}


def _prompts(value: Any) -> list[Prompt]:
    """One prompt or a batch, as a batch."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if is_token_ids(value):
            return [value]
        if all(isinstance(item, str) for item in value) or all(is_token_ids(item) for item in value):
            return value
    raise ValueError("must be a string, a list of token ids, or a list of either that is not empty")


def _stream_options(value: dict[str, Any] | None) -> dict[str, Any] | None:
    if not isinstance((value or {}).get("include_usage"), bool | None):
        raise ValueError("must have true or false for include_usage")
    return value


class CompletionRequest(BaseModel):
    """A request for drafts. A null field means its default; fields that are not known here are left aside."""

    model_config = ConfigDict(
        extra="ignore", frozen=True, json_schema_extra={"examples": [examples.COMPLETION_REQUEST]}
    )

    prompt: Annotated[list[Prompt], PlainValidator(_prompts), WithJsonSchema(_PROMPT_SCHEMA)] = Field(
        description="One prompt or several, as text or token ids; null is an empty prompt."
    )
    model: str | None = Field(default=None, description="Absent: the served model.")
    max_tokens: Integer = Field(default=16, ge=0, description="New tokens of each draft, at most.")
    n: Integer = Field(default=1, ge=1, description="Drafts to show, best first; there may be fewer distinct ones.")
    best_of: Integer | None = Field(default=None, ge=1, description="Drafts to keep while decoding; n or more.")
    stop: Stop = Field(default=(), description="A draft ends before the first of these.")
    logprobs: Integer | None = Field(
        default=None, ge=0, le=5, description="Exact log-probabilities of each token and of this many alternatives."
    )
    echo: Boolean = Field(default=False, description="Put the prompt before each draft.")
    suffix: str | None = Field(
        default=None,
        description="The text after the gap. A model without tokens for gaps does not see it; drafts keep out of it.",
    )
    stream: Boolean = Field(default=False, description="Server-sent events: text as soon as it can no longer change.")
    stream_options: Annotated[dict[str, Any] | None, AfterValidator(_stream_options)] = Field(
        default=None, description="Only with stream. {include_usage: true}: one more chunk, with the usage."
    )
    user: str | None = Field(default=None, max_length=256, description="Requests of different users are not twins.")
    temperature: Number = Field(default=1.0, ge=0, le=2, description="Of the sampling strategies.")
    top_p: Number = Field(default=1.0, ge=0, le=1, description="Of the sampling strategies.")
    seed: Integer | None = Field(default=None, ge=-(2**63), lt=2**63, description="Of the sampling strategies.")
    frequency_penalty: Number = Field(default=0.0, ge=-2, le=2, description="For each time a draft has the token.")
    presence_penalty: Number = Field(default=0.0, ge=-2, le=2, description="Once, if a draft has the token.")
    logit_bias: LogitBias = Field(default={}, description="{token id: added to its logit}; -100 forbids a token.")
    strategy: Strategy = Field(
        default="superposed", description="Beyond OpenAI: how to decode; absent: the model alias's, the server's."
    )
    selection: Selection | None = Field(
        default=None, description="Beyond OpenAI: Which drafts superposed decoding keeps; absent: the server's."
    )
    max_branches: Integer | None = Field(
        default=None,
        ge=1,
        description="Beyond OpenAI: Rows for the drafts, with selection distinct; absent: the server's.",
    )
    min_probability: Number | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Beyond OpenAI: Less probable drafts grow no further, with selection distinct.",
    )
    token_healing: Boolean | None = Field(
        default=None, description=f"Beyond OpenAI: {HEALING_DESCRIPTION[0].lower()}{HEALING_DESCRIPTION[1:]}"
    )
    single_line: Boolean = Field(default=False, description="Beyond OpenAI: a draft ends before its first line break.")

    @model_validator(mode="before")
    @classmethod
    def _nulls_are_defaults(cls, data: Any) -> Any:
        if isinstance(data, dict) and "prompt" in data and data["prompt"] is None:
            data = {**data, "prompt": ""}
        return without_nulls(data)

    @property
    def num_drafts(self) -> int:
        """k: the drafts to decode, of which n are shown."""
        return self.n if self.best_of is None else self.best_of

    @property
    def include_usage(self) -> bool:
        """Whether the stream ends with a chunk that holds the usage."""
        return bool((self.stream_options or {}).get("include_usage"))


class Logprobs(BaseModel):
    """Log-probabilities of one choice; offsets are in characters of the choice's `text`."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class Choice(BaseModel):
    """One draft; index 0 is the best. Of several prompts, prompt i has the indices from i * n on.

    `score` goes beyond OpenAI's shape and is that of `/v1/drafts`.
    """

    index: int
    text: str
    logprobs: Logprobs | None = None
    finish_reason: Literal["stop", "length"] = Field(
        description="length: max_tokens. stop: end of text, a stop string, or going on was improbable."
    )
    score: float


class ChunkChoice(BaseModel):
    """Text that one draft goes on with, for good; its last part has a `finish_reason` and a `score`."""

    index: int
    text: str
    logprobs: Logprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None
    score: float | None = None


class CompletionUsage(BaseModel):
    """Tokens of all prompts and of the shown choices.

    `forward_rows` goes beyond OpenAI's shape: the model rows of all decode steps, drafts that are not shown included.
    """

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    forward_rows: int


class CompletionResponse(BaseModel):
    """The answer; `warnings` goes beyond OpenAI's shape."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.COMPLETION_RESPONSE]})

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[Choice]
    system_fingerprint: str | None = None
    usage: CompletionUsage
    warnings: list[str] = []


class CompletionChunk(BaseModel):
    """An event of the stream. `warnings` are in the one that ends the last choice."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[ChunkChoice]
    system_fingerprint: str | None = None
    warnings: list[str] = []


class CompletionChunkWithUsage(CompletionChunk):
    """The same where `include_usage` is asked for: null but in the last chunk, which has no choices."""

    usage: CompletionUsage | None = None
