"""llama.cpp's own wire: `POST /infill` and `POST /completion`. Samplers and other unknown fields are let pass."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator

from superdraft.decoding.text.fim import ContextFile
from superdraft.server.wires.common import MAX_STOPS, Boolean, Integer, Number, Prompt, is_token_ids, without_nulls


def _prompt(value: Any) -> Prompt:
    if isinstance(value, str) or is_token_ids(value):
        return value  # type: ignore[no-any-return]
    raise ValueError("must be a string or a list of token ids")


def tolerant_stops(value: Any) -> tuple[str, ...]:
    """A stop string or a list of them; empty ones are left out."""
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, list) or not all(isinstance(item, str) for item in strings):
        raise ValueError("must be a string or a list of strings")
    if len(strings) > MAX_STOPS:
        raise ValueError(f"must have at most {MAX_STOPS} strings")
    return tuple(string for string in strings if string)


def _extra(value: Any) -> tuple[ContextFile, ...]:
    chunks = value if isinstance(value, list) else [None]
    files = []
    for chunk in chunks:
        text, name = (chunk.get("text"), chunk.get("filename")) if isinstance(chunk, dict) else (None, None)
        if not isinstance(text, str) or not isinstance(name, str | None):
            raise ValueError('must be a list of {"text": string, "filename": string}, the filename being optional')
        files.append(ContextFile(name or "", text))
    return tuple(files)


STOP_SCHEMA = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
_PROMPT_SCHEMA = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "integer"}}]}
_EXTRA_SCHEMA = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"text": {"type": "string"}, "filename": {"type": "string"}},
        "required": ["text"],
    },
}


class LlamaCppRequest(BaseModel):
    """What both routes take. A null field means its default."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    n_predict: Integer = Field(
        default=-1, description="New tokens of each draft; 0: only run the prompt; negative: the server's limit."
    )
    n_cmpl: Integer = Field(default=1, ge=1, description="Drafts; above 1 the answer is an array, best first.")
    stop: Annotated[tuple[str, ...], PlainValidator(tolerant_stops), WithJsonSchema(STOP_SCHEMA)] = ()
    stream: Boolean = False
    response_fields: list[str] = Field(
        default=[], max_length=64, description='Answer these fields only, "timings/prompt_n" for a nested one.'
    )
    n_indent: Integer = Field(default=0, ge=0, description="A draft ends before a line with less indentation.")
    t_max_prompt_ms: Number = Field(default=0, ge=0)
    t_max_predict_ms: Number = Field(
        default=0, ge=0, description="After this time, plus t_max_prompt_ms, answer the drafts so far; 0: no limit."
    )
    temperature: Number = Field(default=1.0, description="Of the sampling strategies.")
    seed: Integer = Field(default=-1, lt=2**63, description="Of the sampling strategies; negative: another one.")

    @model_validator(mode="before")
    @classmethod
    def _nulls_are_defaults(cls, data: Any) -> Any:
        return without_nulls(data)

    @property
    def timeout_s(self) -> float | None:
        """The request's time limit. A warm-up has none: half a prompt in the cache warms little."""
        if self.n_predict == 0 or self.t_max_predict_ms == 0:
            return None
        return min(self.t_max_prompt_ms + self.t_max_predict_ms, 1e9) / 1000


class InfillRequest(LlamaCppRequest):
    """`POST /infill`: the text around the cursor. `prompt` is what goes right before it, after `input_prefix`."""

    input_prefix: str
    input_suffix: str
    input_extra: Annotated[tuple[ContextFile, ...], PlainValidator(_extra), WithJsonSchema(_EXTRA_SCHEMA)] = ()
    prompt: str = ""


class LlamaCppCompletionRequest(LlamaCppRequest):
    """`POST /completion`: go on from a prompt."""

    prompt: Annotated[Prompt, PlainValidator(_prompt), WithJsonSchema(_PROMPT_SCHEMA)]
