"""What the wires share: field types of requests and the answers of the model routes."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, PlainValidator, WithJsonSchema

TokenIds = list[int]
Prompt = str | TokenIds

MAX_TOKEN_ID = 2**31 - 1
MAX_LOGIT_BIASES = 1024
MAX_STOPS = 256  # each costs time at every step, whatever its length
_TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,9}")

HEALING_DESCRIPTION = (
    "Drafts follow the probabilities of how the typed text goes on, whatever tokens its end has: a half typed word is "
    "finished. False: they go on from the prompt's own tokens. Text prompts only; absent: the server's default."
)

Strategy = Literal["superposed", "sample", "greedy", "sample+superposed"]
Selection = Literal["paper", "distinct"]


def _refuse_lookalikes(value: Any) -> Any:
    """Pydantic would take true for 1 and "3" for 3."""
    if isinstance(value, bool | str):
        raise ValueError("must be a number")
    return value


def _stop_strings(value: Any) -> tuple[str, ...]:
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, list) or not all(isinstance(item, str) and item for item in strings):
        raise ValueError("must be a string or a list of strings, none of them empty")
    if len(strings) > MAX_STOPS:
        raise ValueError(f"must have at most {MAX_STOPS} strings")
    return tuple(strings)


def _keyed_by_token_ids(biases: dict[str, float]) -> dict[str, float]:
    if not all(_TOKEN_ID.fullmatch(key) and int(key) <= MAX_TOKEN_ID for key in biases):
        raise ValueError("must have token ids as keys")
    return biases


def is_token_ids(value: Any) -> bool:
    """Whether a JSON value is a list of token ids. The engine checks them against the vocabulary."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= MAX_TOKEN_ID for item in value)


Number = Annotated[float, BeforeValidator(_refuse_lookalikes), Field(allow_inf_nan=False)]
Integer = Annotated[int, BeforeValidator(_refuse_lookalikes)]
Boolean = Annotated[bool, Field(strict=True)]
LogitBias = Annotated[
    dict[str, Annotated[Number, Field(ge=-100, le=100)]],
    Field(max_length=MAX_LOGIT_BIASES),
    AfterValidator(_keyed_by_token_ids),
]
Stop = Annotated[
    tuple[str, ...],
    PlainValidator(_stop_strings),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]


def bias_pairs(biases: LogitBias) -> tuple[tuple[int, float], ...]:
    """(token id, bias) of each entry."""
    return tuple((int(token_id), bias) for token_id, bias in biases.items())


def without_nulls(data: Any) -> Any:
    """A JSON object without its null fields: null means "the default" on the OpenAI wire."""
    if not isinstance(data, dict):
        return data
    return {name: value for name, value in data.items() if value is not None}


class PromptTokensDetails(BaseModel):
    """Part of `usage`: prompt tokens whose keys and values came from an earlier request."""

    cached_tokens: int


class ModelCard(BaseModel):
    """One served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "superdraft"
    max_model_len: int


class ModelList(BaseModel):
    """Every name that `model` takes."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
