"""Schemas of the native wire, `POST /v1/drafts`. Unknown fields are errors."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator

from superdraft.decoding.outputs import FinishReason
from superdraft.server.ngrams.registry import NgramChoice
from superdraft.server.wires import examples
from superdraft.server.wires.common import (
    MAX_PATH_CHARS,
    Boolean,
    Integer,
    Logprob,
    Number,
    OnePrompt,
    TokenUsage,
    without_nulls,
)
from superdraft.server.wires.drafting_fields import DraftingFields, bounds

SCORE = (
    "The number that drafts are ranked by. Selection distinct: ln of the language model's probability that the text "
    "continues with the draft's first word, given the typed text. Selection paper: the mean over the draft's tokens of "
    "ln p_f, which interpolates the scores of the language model and the n-gram model. Sampling and greedy: the mean "
    "of the tokens' log-probabilities."
)

MAX_TIMEOUT_MS = 60_000

# Wider than anyone needs, and narrow enough for sums and shares of weights to be exact numbers above 0.
_MIN_WEIGHT, _MAX_WEIGHT = 0.001, 1000


def _ngram_model(value: Any) -> NgramChoice:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, dict) and value:
        weights = value.values()
        if all(type(weight) in (int, float) and _MIN_WEIGHT <= weight <= _MAX_WEIGHT for weight in weights):
            return value
    raise ValueError(f"must be null, a name, or an object of names with weights from {_MIN_WEIGHT} to {_MAX_WEIGHT}")


_NGRAM_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "object", "additionalProperties": {"type": "number", "minimum": _MIN_WEIGHT, "maximum": _MAX_WEIGHT}},
        {"type": "null"},
    ]
}


class DraftsRequest(DraftingFields):
    """A request for drafts. A null field means its default, except `ngram_model`, where null means no model."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [examples.DRAFTS_REQUEST]})

    prompt: OnePrompt = Field(description="The text to continue, or its token ids.")
    suffix: str = Field(default="", description="The text after the cursor, which drafts do not repeat.")
    path: str = Field(
        default="",
        max_length=MAX_PATH_CHARS,
        description="Name of the file with the cursor, for models that are trained on file names. Text prompts only.",
    )
    trigger: Literal["automatic", "invoked"] | None = Field(
        default=None,
        description="automatic: the drafts are suggestions that nobody asked for, as during typing. invoked: the user "
        "asked for suggestions. Both: drafts are tidied and must fit the text after the cursor. Absent: all drafts, "
        "as decoded.",
    )
    min_probability_shown: Number | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Withhold drafts whose first word is less probable, with selection distinct; absent: the server's "
        "default where trigger is automatic, else 0.",
    )
    num_drafts: Annotated[Integer, bounds("num_drafts")] = Field(
        default=3, description="k; the answer may hold fewer distinct drafts."
    )
    alpha: Annotated[Number | None, bounds("alpha")] = Field(
        default=None, description="Weight of the n-gram model; absent: the server's default."
    )
    tau: Annotated[Number | None, bounds("tau")] = Field(
        default=None, description="Temperature of the language model's distribution; absent: the server's default."
    )
    candidates_per_draft: Annotated[Integer | None, bounds("candidates_per_draft")] = Field(
        default=None, description="m, the next tokens considered for every draft; absent: k squared."
    )
    ngram_model: Annotated[NgramChoice, PlainValidator(_ngram_model), WithJsonSchema(_NGRAM_SCHEMA)] = Field(
        default=None,
        description="A model's name, or {name: weight} of several; null: none; absent: the server's default.",
    )
    min_draft_tokens: Annotated[Integer | None, bounds("min_draft_tokens")] = Field(
        default=None, description="min_probability cuts no draft to fewer tokens than this; absent: 4."
    )
    num_branches: Annotated[Integer | None, bounds("num_branches")] = Field(
        default=None, description="Model rows of the sampling strategies; absent: as many as num_drafts."
    )
    reset_every: Annotated[Integer | None, bounds("reset_every")] = Field(
        default=None,
        description="With strategy superposed: every this many steps, draw one draft and continue from it alone.",
    )
    trim: Literal["none", "word", "sentence"] = Field(
        default="none",
        description="word: cut a last word that may be unfinished. sentence: cut after the first sentence.",
    )
    min_score: Number | None = Field(default=None, le=0, description="Leave out drafts with a lower `score`.")
    corrections: Literal["on", "off"] = Field(
        default="off",
        description="on: where the word at the prompt's end was probably mistyped, drafts may replace it; they then "
        "have `replaces`. Never in code, names or addresses, and only with token healing, for text prompts at the "
        "end of a line, whose `path`, if there is one, is for prose (.md, .txt), with a model that is not for code.",
    )
    session_id: str | None = Field(
        default=None, min_length=1, max_length=128, description="A newer request of a session ends the older one."
    )
    timeout_ms: Integer | None = Field(
        default=None, gt=0, le=MAX_TIMEOUT_MS, description="Milliseconds after which the drafts so far are the answer."
    )
    stream: Boolean = Field(default=False, description="Server-sent events: the drafts after each step.")

    @model_validator(mode="before")
    @classmethod
    def _nulls_are_defaults(cls, data: Any) -> Any:
        kept = without_nulls(data)
        if isinstance(data, dict) and "ngram_model" in data:
            kept["ngram_model"] = data["ngram_model"]
        return kept

    @property
    def names_ngram_model(self) -> bool:
        """Whether the request chooses an n-gram model, or none, itself."""
        return "ngram_model" in self.model_fields_set

    @property
    def asks_for_paper(self) -> bool:
        """Whether the request sets a parameter of the paper's method. Alpha 0 counts, too; an n-gram model does not."""
        own = (self.alpha, self.tau, self.candidates_per_draft, self.reset_every)
        return any(value is not None for value in own)


class Replaces(BaseModel):
    """The end of the prompt that a draft takes the place of.

    `characters`: how many, in Unicode code points. `text`: these characters, as they were mistyped.
    """

    model_config = ConfigDict(from_attributes=True)

    characters: int
    text: str


class Draft(BaseModel):
    """One draft; index 0 is the best."""

    index: int
    text: str = Field(
        description="The text that follows the prompt's last character; with `replaces`, what stands before the cursor "
        "instead of the replaced text."
    )
    replaces: Replaces | None = None
    tokens: list[str]
    token_ids: list[int]
    score: Logprob = Field(description=SCORE)
    token_logprobs: list[Logprob] = Field(
        description="Each token's log-probability in the step that chose it. The first is exact, given the typed text; "
        "the others are exact where the draft has a row of its own, and approximate where its row is superposed."
    )
    finish_reason: FinishReason = Field(
        description="stop: end of text, a stop string, or the place where a draft must end: its line break with "
        "single_line or inside a line, and the text after the cursor. length: max_tokens, or the time was up. "
        "improbable: the draft had become less probable than min_probability."
    )


class DraftsUsage(TokenUsage):
    """Work done. `forward_rows`: model rows of all decode steps, of which drafts that share a row take one.

    `rows_by_depth`: rows that fed the drafts' first tokens, their second ones, and so on. `reused_drafts`: drafts that
    took no row, since an earlier request had decoded them. `limited_by_load`: drafts are shorter, or fewer of them
    grew, because the server had much to do.

    `cached_tokens` appears twice: by itself, and where OpenAI's clients look for it.
    """

    cached_tokens: int
    forward_rows: int
    rows_by_depth: tuple[int, ...]
    reused_drafts: int
    limited_by_load: bool


Milliseconds = Annotated[float, AfterValidator(lambda value: round(value, 3))]


class DraftsTimings(BaseModel):
    """Milliseconds; `ngram_ms` is part of `prefill_ms` and `decode_ms`."""

    queue_ms: Milliseconds
    prefill_ms: Milliseconds
    decode_ms: Milliseconds
    ngram_ms: Milliseconds
    total_ms: Milliseconds


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
    """One growing draft; a later step may replace it. `score`: that of a finished draft, so far."""

    index: int
    text: str
    replaces: Replaces | None = None
    score: Logprob


class DraftsSnapshot(BaseModel):
    """An event of the native stream: the drafts after a step.

    `stable_text`: the beginning of the first of them, as far as it is final. `rows_by_depth`: as in the answer's usage,
    so far.
    """

    object: Literal["drafts.snapshot"] = "drafts.snapshot"
    id: str
    step: int
    stable_text: str
    drafts: list[SnapshotDraft]
    rows_by_depth: tuple[int, ...]
