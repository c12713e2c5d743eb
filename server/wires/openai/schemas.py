"""Schemas of OpenAI's wire: legacy completions, in one answer or as the chunks of a stream, and models."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator

from superdraft.server.wires import examples
from superdraft.server.wires.common import (
    SPECIAL_TOKENS,
    Boolean,
    Integer,
    Logprob,
    Number,
    Prompt,
    TokenUsage,
    is_token_ids,
    without_nulls,
)
from superdraft.server.wires.drafting_fields import DraftingFields

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


class CompletionRequest(DraftingFields):
    """A request for drafts. A null field means its default; unknown fields are ignored.

    `strategy`, `selection`, `max_branches`, `min_probability`, `min_probability_shown`, `token_healing`, `single_line`
    and `special_tokens` go beyond OpenAI.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [examples.COMPLETION_REQUEST]})

    prompt: Annotated[list[Prompt], PlainValidator(_prompts), WithJsonSchema(_PROMPT_SCHEMA)] = Field(
        description="One prompt or several, as text or token ids; null is an empty prompt."
    )
    n: Integer = Field(
        default=1, ge=1, description="Drafts in the answer, best first; there may be fewer distinct ones."
    )
    best_of: Integer | None = Field(default=None, ge=1, description="Drafts to keep while decoding; n or more.")
    top_p: Number = Field(
        default=1.0, ge=0, le=1, description="Probability of the nucleus, for the sampling strategies."
    )
    logprobs: Integer | None = Field(
        default=None, ge=0, le=5, description="Exact log-probabilities of each token and of this many alternatives."
    )
    echo: Boolean = Field(default=False, description="Put the prompt before each draft.")
    suffix: str | None = Field(
        default=None,
        description="The text after the gap. Drafts do not repeat it; models without fill-in-the-middle tokens do not "
        "see it.",
    )
    stream: Boolean = Field(default=False, description="Server-sent events: text as soon as it can no longer change.")
    stream_options: Annotated[dict[str, Any] | None, AfterValidator(_stream_options)] = Field(
        default=None, description="Only with stream. {include_usage: true}: one more chunk, with the usage."
    )
    special_tokens: Boolean | None = SPECIAL_TOKENS
    min_probability_shown: Number = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Withhold drafts whose first word is less probable, with selection distinct. If none is left, "
        "there is one empty choice.",
    )
    user: str | None = Field(
        default=None, max_length=256, description="Identical requests of different users do not share drafts."
    )

    @model_validator(mode="before")
    @classmethod
    def _nulls_are_defaults(cls, data: Any) -> Any:
        if isinstance(data, dict) and "prompt" in data and data["prompt"] is None:
            data = {**data, "prompt": ""}
        return without_nulls(data)

    @property
    def num_drafts(self) -> int:
        """k: drafts to decode, of which n are in the answer."""
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
    """One draft; index 0 is the best. With several prompts, the drafts of prompt i have the indices from i * n.

    `score` goes beyond OpenAI's shape and is that of `/v1/drafts`.
    """

    index: int
    text: str
    logprobs: Logprobs | None = None
    finish_reason: Literal["stop", "length"] = Field(
        description="length: max_tokens. stop: end of text, a stop string, the draft's line break with single_line or "
        "inside a line, the suffix, or the draft had become too improbable."
    )
    score: Logprob


class ChunkChoice(BaseModel):
    """The next text of one draft, which is final; the last chunk of a draft has a `finish_reason` and a `score`."""

    index: int
    text: str
    logprobs: Logprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None
    score: float | None = None


class CompletionUsage(TokenUsage):
    """Tokens of all prompts and of all choices.

    `forward_rows` and `limited_by_load` go beyond OpenAI's shape: model rows of all decode steps, for all drafts that
    were decoded; whether drafts are shorter because the server had much to do.
    """

    forward_rows: int
    limited_by_load: bool


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
    """An event of the stream. The one that ends the last choice has the `warnings`."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[ChunkChoice]
    system_fingerprint: str | None = None
    warnings: list[str] = []


class CompletionChunkWithUsage(CompletionChunk):
    """An event of a stream with `include_usage`: null except in the last chunk, which has no choices."""

    usage: CompletionUsage | None = None


class ModelCard(BaseModel):
    """One served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "superdraft"
    max_model_len: int


class ModelList(BaseModel):
    """Every name that `model` may have."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
