"""Data classes for the server's responses. Fields unknown to this version are ignored."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from types import UnionType
from typing import Any, Self, TypeVar, get_args, get_origin

from superdraft.client.errors import InvalidAnswerError

T = TypeVar("T")


class Value:
    """Base of the data classes."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values for JSON: objects become dictionaries, tuples become lists."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))  # type: ignore[call-overload]
        return plain


@dataclass(frozen=True, slots=True)
class Replaces(Value):
    """The end of the prompt that a draft takes the place of, as it was mistyped.

    Attributes:
        characters: how many characters, as Python counts them.
        text: these characters.
    """

    characters: int
    text: str


@dataclass(frozen=True, slots=True)
class Draft(Value):
    """One draft.

    Attributes:
        index: rank, 0 is the best.
        text: the continuation; it begins right after the prompt, or in the place of `replaces`.
        tokens: the text of each token.
        token_ids: the id of each token.
        score: the value that drafts are ranked by. With selection "distinct", ln of the probability that the text
            continues with the draft's first word, given the typed text; with "paper", the mean over the tokens of the
            interpolated log-score; with the strategies "sample" and "greedy", the mean of the tokens'
            log-probabilities.
        token_logprobs: natural log. The first is exact, given the typed text. The others are exact if the draft has
            a row of its own, and approximate if its row is superposed.
        finish_reason: "stop" (end of text, a stop string, or a place where a draft must end, such as the text after the
            cursor), "length" (`max_tokens`, or the time was up), or "improbable" (see `min_probability`).
        replaces: what the draft corrects; None: it is only added. Not None only with `corrections="on"`.
    """

    index: int
    text: str
    tokens: tuple[str, ...]
    token_ids: tuple[int, ...]
    score: float
    token_logprobs: tuple[float, ...]
    finish_reason: str
    replaces: Replaces | None = None


@dataclass(frozen=True, slots=True)
class Usage(Value):
    """Amount of work.

    Attributes:
        prompt_tokens, completion_tokens, total_tokens: as in OpenAI's API.
        cached_tokens: prompt tokens that an earlier request had run.
        forward_rows: model rows over all decode steps; drafts that share a row count once.
        rows_by_depth: rows that fed the drafts' first tokens, their second ones, and so on.
        reused_drafts: drafts that took no row, since an earlier request had decoded them.
        limited_by_load: whether drafts are shorter because the server had much to do.
    """

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int
    forward_rows: int
    rows_by_depth: tuple[int, ...] = ()
    reused_drafts: int = 0
    limited_by_load: bool = False


@dataclass(frozen=True, slots=True)
class Timings(Value):
    """Milliseconds spent on the server. `ngram_ms` is included in `prefill_ms` and `decode_ms`."""

    queue_ms: float
    prefill_ms: float
    decode_ms: float
    ngram_ms: float
    total_ms: float


@dataclass(frozen=True, slots=True)
class DraftsAnswer(Value):
    """The drafts for one prompt, best first.

    Attributes:
        id: identifies the completion in feedback.
        model: the model that was used.
        drafts: the drafts; fewer than requested, perhaps none, if there are not enough distinct ones with text.
        usage: amount of work.
        timings: where the time went.
        warnings: remarks about the request, such as fields that had no effect.
    """

    id: str
    model: str
    drafts: tuple[Draft, ...]
    usage: Usage
    timings: Timings
    warnings: tuple[str, ...]

    @classmethod
    def from_json(cls, answer: Any) -> Self:
        """Build the answer from the parsed response body of `POST /v1/drafts`.

        Raises:
            InvalidAnswerError: a field is missing or has the wrong type.
        """
        return from_json(cls, answer, "/v1/drafts")


@dataclass(frozen=True, slots=True)
class SnapshotDraft(Value):
    """One draft while it grows; a later snapshot may replace it. `score` is that of a finished draft, so far."""

    index: int
    text: str
    score: float
    replaces: Replaces | None = None


@dataclass(frozen=True, slots=True)
class Snapshot(Value):
    """The growing drafts after one decode step.

    Attributes:
        id: the id of the final answer.
        step: counts from 1; snapshots are skipped if the reader is too slow.
        stable_text: the beginning of the answer's first draft, as far as it will not change any more.
        drafts: best first.
        rows_by_depth: as in `Usage`, so far.
    """

    id: str
    step: int
    stable_text: str
    drafts: tuple[SnapshotDraft, ...]
    rows_by_depth: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class FeedbackReceipt(Value):
    """The server's response to a feedback event.

    Attributes:
        rank: the draft's rank within its run; 0 is the best.
        counted: False if the same event was received before.
    """

    rank: int
    counted: bool


@dataclass(frozen=True, slots=True)
class Model(Value):
    """A value for the option `model`; one that includes a strategy, such as "smollm2-135m:sample", is an alias."""

    id: str
    owned_by: str
    created: int
    max_model_len: int


def from_json(kind: type[T], answer: Any, route: str) -> T:
    """Convert parsed JSON to a dataclass of this module.

    Raises:
        InvalidAnswerError: a field is missing or has the wrong type. The message quotes no text of the response.
    """
    try:
        value: T = _value(kind, answer, "the body")
    except _MismatchError as error:
        raise InvalidAnswerError(f"The response is not what a Superdraft server sends for {route}: {error}.") from None
    return value


class _MismatchError(Exception):
    pass


def _value(kind: Any, value: Any, where: str) -> Any:
    """Convert `value` to `kind`: a dataclass, a tuple of one item type, a plain JSON type, or one of these or None."""
    if isinstance(kind, UnionType):
        return None if value is None else _value(get_args(kind)[0], value, where)
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise _MismatchError(f"{where} is not a list")
        item_kind = get_args(kind)[0]
        return tuple(_value(item_kind, item, f"{where}[{i}]") for i, item in enumerate(value))
    if hasattr(kind, "__dataclass_fields__"):
        if not isinstance(value, Mapping):
            raise _MismatchError(f"{where} is not an object")
        missing = [field.name for field in fields(kind) if field.name not in value and field.default is MISSING]
        if missing:
            raise _MismatchError(f"{where} has no {missing[0]}")
        known = (field for field in fields(kind) if field.name in value)
        return kind(**{field.name: _value(field.type, value[field.name], field.name) for field in known})
    if kind is float and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            raise _MismatchError(f"{where} is too large") from None
    if type(value) is not kind:
        raise _MismatchError(f"{where} is not of type {kind.__name__}")
    return value
