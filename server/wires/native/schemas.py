"""`POST /v1/drafts`: the native wire. Unknown fields are an error."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator

from superdraft.decoding.outputs import FinishReason
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

NgramChoice = str | dict[str, float] | None

SCORE = (
    "What drafts are ranked by. Selection distinct: ln of the language model's probability that the text goes on with "
    "the draft's first word, given the typed text. Selection paper: the mean over the draft's tokens of ln p_f, the "
    "language model's and the n-gram model's scores interpolated. Sampling and greedy: the mean of the tokens' "
    "log-probabilities."
)

# Wider than anybody needs, and narrow enough for sums and shares of weights to be exact numbers above 0.
_MIN_WEIGHT, _MAX_WEIGHT = 0.001, 1000


def _prompt(value: Any) -> Prompt:
    if isinstance(value, str) or is_token_ids(value):
        return value  # type: ignore[no-any-return]
    raise ValueError("must be a string or a list of token ids")


def _ngram_model(value: Any) -> NgramChoice:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, dict) and value:
        weights = value.values()
        if all(type(weight) in (int, float) and _MIN_WEIGHT <= weight <= _MAX_WEIGHT for weight in weights):
            return value
    raise ValueError(f"must be null, a name, or an object of names with weights from {_MIN_WEIGHT} to {_MAX_WEIGHT}")


_PROMPT_SCHEMA = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "integer"}}]}
_NGRAM_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "object", "additionalProperties": {"type": "number", "minimum": _MIN_WEIGHT, "maximum": _MAX_WEIGHT}},
        {"type": "null"},
    ]
}


class DraftsRequest(BaseModel):
    """A request for drafts. A null field means its default, except `ngram_model`, where null means none."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra={"examples": [examples.DRAFTS_REQUEST]})

    prompt: Annotated[Prompt, PlainValidator(_prompt), WithJsonSchema(_PROMPT_SCHEMA)]
    model: str | None = Field(default=None, description="Absent: the served model.")
    num_drafts: Integer = Field(default=3, ge=1, description="k; there may be fewer distinct drafts.")
    max_tokens: Integer = Field(default=16, ge=0, description="New tokens of each draft, at most.")
    alpha: Number | None = Field(
        default=None, ge=0, le=1, description="Weight of the n-gram model; absent: the server's."
    )
    tau: Number | None = Field(
        default=None, ge=0.001, le=100, description="Temperature of the language model's part; absent: the server's."
    )
    candidates_per_draft: Integer | None = Field(
        default=None,
        ge=1,
        description="m, the next tokens that every draft may go on with; absent: k squared.",
    )
    ngram_model: Annotated[NgramChoice, PlainValidator(_ngram_model), WithJsonSchema(_NGRAM_SCHEMA)] = Field(
        default=None, description="A model's name, or {name: weight} of several; null: none; absent: the server's."
    )
    stop: Stop = Field(default=(), description="A draft ends before the first of these.")
    strategy: Strategy = Field(default="superposed", description="How drafts are decoded.")
    selection: Selection | None = Field(
        default=None, description="Which drafts superposed decoding keeps; absent: the server's."
    )
    max_branches: Integer | None = Field(
        default=None, ge=1, description="Rows for the drafts, with selection distinct; absent: the server's."
    )
    min_probability: Number | None = Field(
        default=None, ge=0, le=1, description="Less probable drafts grow no further, with selection distinct."
    )
    min_draft_tokens: Integer | None = Field(
        default=None, ge=1, description="Drafts are not cut to fewer tokens than this; absent: 4."
    )
    num_branches: Integer | None = Field(
        default=None, ge=1, description="Rows of the sampling strategies; absent: as many as num_drafts."
    )
    temperature: Number = Field(default=1.0, ge=0, le=2, description="Of sampling; 0 takes the most probable token.")
    top_p: Number = Field(default=1.0, ge=1e-6, le=1, description="Of sampling: the nucleus' probability.")
    seed: Integer | None = Field(
        default=None, ge=-(2**63), lt=2**63, description="Of sampling and resets; absent: another one each time."
    )
    reset_every: Integer | None = Field(
        default=None, ge=1, description="Superposed: every so many steps go on from one drawn draft alone."
    )
    logit_bias: LogitBias = Field(default={}, description="{token id: added to its logit}; -100 forbids a token.")
    frequency_penalty: Number = Field(default=0.0, ge=-2, le=2, description="For each time a draft has the token.")
    presence_penalty: Number = Field(default=0.0, ge=-2, le=2, description="Once, if a draft has the token.")
    token_healing: Boolean | None = Field(default=None, description=HEALING_DESCRIPTION)
    single_line: Boolean = Field(default=False, description="A draft ends before its first line break.")
    trim: Literal["none", "word", "sentence"] = Field(default="none", description="Cut what is half finished.")
    min_score: Number | None = Field(default=None, le=0, description="Leave out drafts with a lower `score`.")
    session_id: str | None = Field(
        default=None, min_length=1, max_length=128, description="A newer request of a session ends the older one."
    )
    timeout_ms: Integer | None = Field(default=None, gt=0, description="Answer the drafts so far after this time.")
    stream: Boolean = Field(default=False, description="Server-sent events: the drafts after each step.")

    @model_validator(mode="before")
    @classmethod
    def _nulls_are_defaults(cls, data: Any) -> Any:
        kept = without_nulls(data)
        if isinstance(data, dict) and "ngram_model" in data:
            kept["ngram_model"] = data["ngram_model"]
        return kept

    @property
    def uses_default_ngram_model(self) -> bool:
        """Whether the request leaves the n-gram model to the server."""
        return "ngram_model" not in self.model_fields_set


class Draft(BaseModel):
    """One draft; index 0 is the best."""

    index: int
    text: str = Field(description="What goes on right after the prompt's last character.")
    tokens: list[str]
    token_ids: list[int]
    score: float = Field(description=SCORE)
    token_logprobs: list[float] = Field(
        description="Of each token in the step that chose it. The first one is exact, given the typed text; the others "
        "are exact where the draft has a row of its own, and approximations where its row is superposed."
    )
    finish_reason: FinishReason = Field(
        description="stop: end of text or a stop string. length: max_tokens. improbable: going on was improbable, see "
        "min_probability."
    )


class DraftsUsage(BaseModel):
    """Work done. `forward_rows`: model rows of all decode steps, one a step and branch, whatever k is.

    `cached_tokens` is there twice: by itself, and where OpenAI's clients look for it.
    """

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    cached_tokens: int
    forward_rows: int


class DraftsTimings(BaseModel):
    """Milliseconds; `ngram_ms` is part of the prefill's and the decode's."""

    queue_ms: float
    prefill_ms: float
    decode_ms: float
    ngram_ms: float
    total_ms: float


class DraftsResponse(BaseModel):
    """The answer of the native wire."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.DRAFTS_RESPONSE]})

    id: str
    object: Literal["drafts"] = "drafts"
    model: str
    drafts: list[Draft]
    usage: DraftsUsage
    timings: DraftsTimings
    warnings: list[str]


class SnapshotDraft(BaseModel):
    """One draft while it grows; a later step may replace it. `score`: as that of a finished draft, so far."""

    index: int
    text: str
    score: float


class DraftsSnapshot(BaseModel):
    """An event of the native stream: the drafts after a step. `stable_text`: what all of them begin with for good."""

    object: Literal["drafts.snapshot"] = "drafts.snapshot"
    id: str
    step: int
    stable_text: str
    drafts: list[SnapshotDraft]
