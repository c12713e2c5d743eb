"""Shared by the wires: the service of an app, error responses, field types of requests, and parts of answers."""

import asyncio
import math
import re
from collections.abc import Coroutine
from dataclasses import replace
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)

from superdraft.decoding.outputs import DraftOutput
from superdraft.decoding.params import MAX_BIAS
from superdraft.decoding.prompt import PlainText
from superdraft.server.edge.access import current_caller
from superdraft.server.edge.error_map import ErrorResponse
from superdraft.server.edge.rate_limits import counted_caller
from superdraft.server.edge.refusals import ClientGoneError
from superdraft.server.service import Sender, Service

TokenIds = list[int]
Prompt = str | TokenIds

MAX_TOKEN_ID = 2**31 - 1
MAX_LOGIT_BIASES = 1024
MAX_STOPS = 256  # each takes time at every step, whatever its length
MAX_SNIPPETS = 256  # per list; several times what editors send
MAX_PATH_CHARS = 1024  # of a file; each is encoded whole, before the request is admitted
MAX_DIGITS = 40  # of an integer; clients that want no limit send large ones for max_tokens
MAX_FIELDS = 256  # of an object, unknown ones included
LOGPROB_FLOOR = -9999.0  # JSON has no -inf
_TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,9}")

ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": description}
    for status, description in {
        400: "A field or the body is wrong.",
        404: "The named model is not served here.",
        413: "The body is too large.",
        500: "The server failed on this request.",
        503: "The server is shutting down.",
    }.items()
}

T = TypeVar("T")


# The service, and the clients that leave


async def get_service(request: Request) -> Service:  # async: FastAPI would call it in a thread
    """The service of the app that a request was sent to."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


ServiceDep = Annotated[Service, Depends(get_service)]


def sender() -> Sender:
    """Who sent the current request. From here on, this is an argument."""
    return Sender(current_caller(), counted_caller())


async def unless_client_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`, but cancel it as soon as the client closes the connection.

    The request's body must have been read.

    Raises:
        ClientGoneError: the client closed the connection first.
    """
    own = asyncio.current_task()
    assert own is not None
    is_gone = False

    async def watch() -> None:
        nonlocal is_gone
        while (await request.receive())["type"] != "http.disconnect":
            pass
        is_gone = own.cancel()

    watching = asyncio.create_task(watch())  # one task, not also one for the work: a refusal should cost little
    try:
        return await work
    except asyncio.CancelledError:
        if is_gone and not own.uncancel():
            raise ClientGoneError from None
        raise
    finally:
        watching.cancel()


# Requests


def _refuse_lookalikes(value: Any) -> Any:
    """Refuse true and "3", which Pydantic would take for 1 and 3."""
    if isinstance(value, bool | str):
        raise ValueError("must be a number")
    return value


def _refuse_long_integers(value: Any) -> Any:
    """Refuse integers of thousands of digits, which an error message would repeat."""
    if isinstance(value, int | float) and abs(value) >= 10**MAX_DIGITS:
        raise ValueError(f"must have at most {MAX_DIGITS} digits")
    return value


def at_most(limit: int, items: str) -> BeforeValidator:
    """A validator that refuses longer lists and objects before Pydantic looks at their items.

    Pydantic notes an error for each wrong item, which takes seconds for the items that fit into a body.

    Args:
        limit: the largest number of items.
        items: what they are called in the error message.
    """

    def check(value: Any) -> Any:
        if isinstance(value, list | dict) and len(value) > limit:
            raise ValueError(f"must have at most {limit} {items}")
        return value

    return BeforeValidator(check)


def _stop_strings(value: Any, *, drops_empty: bool) -> tuple[str, ...]:
    strings = [value] if isinstance(value, str) else value
    if isinstance(strings, list) and len(strings) > MAX_STOPS:
        raise ValueError(f"must have at most {MAX_STOPS} strings")
    if not isinstance(strings, list) or not all(isinstance(item, str) and (item or drops_empty) for item in strings):
        raise ValueError("must be a string or a list of strings" + ("" if drops_empty else ", none of them empty"))
    return tuple(filter(None, strings))


def _keyed_by_token_ids(biases: dict[str, float]) -> dict[str, float]:
    if not all(_TOKEN_ID.fullmatch(key) and int(key) <= MAX_TOKEN_ID for key in biases):
        raise ValueError("must have token ids as keys")
    return biases


def is_token_ids(value: Any) -> bool:
    """Whether a JSON value is a list of token ids. The engine checks them against the vocabulary."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= MAX_TOKEN_ID for item in value)


def _prompt(value: Any) -> Prompt:
    if isinstance(value, str) or is_token_ids(value):
        return value  # type: ignore[no-any-return]
    raise ValueError("must be a string or a list of token ids")


_STOP_SCHEMA = WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]})

Number = Annotated[float, BeforeValidator(_refuse_lookalikes), Field(allow_inf_nan=False)]
Integer = Annotated[int, BeforeValidator(_refuse_long_integers), BeforeValidator(_refuse_lookalikes)]
Boolean = Annotated[bool, Field(strict=True)]
LogitBias = Annotated[
    dict[str, Annotated[Number, Field(ge=-MAX_BIAS, le=MAX_BIAS)]],
    Field(max_length=MAX_LOGIT_BIASES),
    AfterValidator(_keyed_by_token_ids),
    at_most(MAX_LOGIT_BIASES, "entries"),
]
Stop = Annotated[tuple[str, ...], PlainValidator(lambda value: _stop_strings(value, drops_empty=False)), _STOP_SCHEMA]
TolerantStop = Annotated[
    tuple[str, ...], PlainValidator(lambda value: _stop_strings(value, drops_empty=True)), _STOP_SCHEMA
]
OnePrompt = Annotated[
    Prompt,
    PlainValidator(_prompt),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "integer"}}]}),
]


SPECIAL_TOKENS = Field(
    default=None,
    description="Whether names of special tokens in the prompt, such as <|fim_middle|>, become these tokens. False: "
    "they stay text. Absent: the server's default.",
)


def engine_prompt(prompt: Prompt, *, special_tokens: bool) -> Prompt:
    """The engine's prompt. `special_tokens`: names of special tokens in a text become these; else they stay text."""
    return prompt if special_tokens or not isinstance(prompt, str) else PlainText(prompt)


def bias_pairs(biases: LogitBias) -> tuple[tuple[int, float], ...]:
    """(token id, bias) of each entry."""
    return tuple((int(token_id), bias) for token_id, bias in biases.items())


def without_nulls(data: Any) -> Any:
    """A JSON object without its null fields, since null stands for the default.

    Raises:
        ValueError: it has too many fields. Pydantic would note an error for each unknown one.
    """
    if not isinstance(data, dict):
        return data
    if len(data) > MAX_FIELDS:
        raise ValueError(f"must have at most {MAX_FIELDS} fields")
    return {name: value for name, value in data.items() if value is not None}


class WireRequest(BaseModel):
    """A request's body, or an object in it. A null field means its default; unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _nulls_are_defaults(cls, data: Any) -> Any:
        return without_nulls(data)


# Answers


def floored(logprob: float) -> float:
    """A log-probability that JSON can hold."""
    return max(logprob, LOGPROB_FLOOR) if math.isfinite(logprob) else LOGPROB_FLOOR


Logprob = Annotated[float, AfterValidator(floored)]


class PromptTokensDetails(BaseModel):
    """Part of `usage`: prompt tokens whose keys and values came from an earlier request."""

    cached_tokens: int


class TokenUsage(BaseModel):
    """The part of `usage` that the native and the OpenAI wire have in common."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


NO_DRAFT = DraftOutput(0, "", (), (), LOGPROB_FLOOR, (), "length", ())
"""The answer to a request whose time was over before its first token, on routes that always answer with a draft."""

WITHHELD = replace(NO_DRAFT, finish_reason="stop")
"""The answer there if no draft is probable enough: an editor shows nothing."""
