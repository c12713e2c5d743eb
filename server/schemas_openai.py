"""`POST /v1/completions`: OpenAI's legacy completions, one answer at once (no streaming)."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator

from superdraft.server import examples
from superdraft.server.schemas import (
    Boolean,
    Integer,
    LogitBias,
    Number,
    Prompt,
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
    echo: bool = Field(default=False, description="Put the prompt before each draft.")
    suffix: str | None = Field(default=None, description="Not supported unless empty.")
    stream: bool = Field(default=False, description="Not supported yet.")
    stream_options: dict[str, Any] | None = Field(default=None, description="Only with stream.")
    user: str | None = None
    temperature: Number = Field(default=1.0, ge=0, le=2, description="Of the sampling strategies.")
    top_p: Number = Field(default=1.0, ge=0, le=1, description="Of the sampling strategies.")
    seed: Integer | None = Field(default=None, ge=-(2**63), lt=2**63, description="Of the sampling strategies.")
    frequency_penalty: Number = Field(default=0.0, ge=-2, le=2, description="For each time a draft has the token.")
    presence_penalty: Number = Field(default=0.0, ge=-2, le=2, description="Once, if a draft has the token.")
    logit_bias: LogitBias = Field(default={}, description="{token id: added to its logit}; -100 forbids a token.")
    strategy: Strategy = Field(default="superposed", description="Beyond OpenAI: how drafts are decoded.")
    token_healing: Boolean | None = Field(
        default=None,
        description="Beyond OpenAI: finish a half typed word; absent: the server's default. Not with echo or logprobs.",
    )

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


class Logprobs(BaseModel):
    """Log-probabilities of one choice; offsets are in characters of the choice's `text`."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class Choice(BaseModel):
    """One draft; index 0 is the best. Of several prompts, prompt i has the indices from i * n on."""

    index: int
    text: str
    logprobs: Logprobs | None = None
    finish_reason: Literal["stop", "length"]


class PromptTokensDetails(BaseModel):
    """Part of `usage`."""

    cached_tokens: int


class CompletionUsage(BaseModel):
    """Tokens of all prompts and all shown choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


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
