"""The server's answers as values. Fields that this version does not know are left aside."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self, TypeVar, get_args, get_origin

from superdraft.client.errors import InvalidAnswerError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Draft:
    """One draft.

    Attributes:
        index: rank, 0 is the best.
        text: what goes on right after the prompt.
        tokens: the text of each token.
        token_ids: the tokens.
        score: what the drafts are ranked by. With selection "distinct", ln of the probability that the text goes on
            with the draft's first word, given the typed text; with "paper", the mean over the tokens of the
            interpolated log-score; with the strategies "sample" and "greedy", the mean of the tokens'
            log-probabilities.
        token_logprobs: natural log. The first is exact, given the typed text; the others are exact where the draft has
            a row of its own, and approximations where its row is superposed.
        finish_reason: "stop" (end of text or a stop string), "length" (`max_tokens`), or "improbable" (going on was
            improbable, see `min_probability`).
    """

    index: int
    text: str
    tokens: tuple[str, ...]
    token_ids: tuple[int, ...]
    score: float
    token_logprobs: tuple[float, ...]
    finish_reason: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Work done; `forward_rows` are the model rows of all decode steps: one a step and branch, whatever k is."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int
    forward_rows: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds on the server; `ngram_ms` is part of the prefill's and the decode's."""

    queue_ms: float
    prefill_ms: float
    decode_ms: float
    ngram_ms: float
    total_ms: float


@dataclass(frozen=True, slots=True)
class DraftsAnswer:
    """The drafts for one prompt, best first.

    Attributes:
        id: what feedback about the drafts refers to.
        model: the one that was served.
        drafts: fewer than were asked for if there are not so many distinct ones.
        usage: the work.
        timings: where the time went.
        warnings: fields of the request that had no effect, and the like.
    """

    id: str
    model: str
    drafts: tuple[Draft, ...]
    usage: Usage
    timings: Timings
    warnings: tuple[str, ...]

    @classmethod
    def from_json(cls, answer: Any) -> Self:
        """The parsed body of an answer of `POST /v1/drafts`.

        Raises:
            InvalidAnswerError: a field is missing or of another type.
        """
        return from_json(cls, answer, "/v1/drafts")


@dataclass(frozen=True, slots=True)
class SnapshotDraft:
    """One draft while it grows; a later snapshot may replace it. `score`: as that of a finished draft, so far."""

    index: int
    text: str
    score: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The drafts after a decode step, while they grow.

    Attributes:
        id: that of the answer to come.
        step: counts from 1; snapshots that the reader was too slow for are missing.
        stable_text: what all drafts begin with for good.
        drafts: best first.
    """

    id: str
    step: int
    stable_text: str
    drafts: tuple[SnapshotDraft, ...]


@dataclass(frozen=True, slots=True)
class FeedbackReceipt:
    """What the server did with an event.

    Attributes:
        rank: the draft's place among those of its run; 0 is the best.
        counted: False if the event had come before.
    """

    rank: int
    counted: bool


@dataclass(frozen=True, slots=True)
class Model:
    """A name that `model` takes; one with a strategy in it, as in "smollm2-135m:sample", is an alias."""

    id: str
    owned_by: str
    created: int
    max_model_len: int


def from_json(kind: type[T], answer: Any, route: str) -> T:
    """A dataclass of this module from parsed JSON.

    Raises:
        InvalidAnswerError: a field is missing or of another type. The message holds no text of the answer.
    """
    try:
        value: T = _value(kind, answer, "the answer")
    except _MismatchError as error:
        raise InvalidAnswerError(f"The answer is not that of a Superdraft server's {route}: {error}.") from None
    return value


class _MismatchError(Exception):
    pass


def _value(kind: Any, value: Any, where: str) -> Any:
    """`value` as a `kind`: a dataclass, a tuple of one type, or a plain type of JSON."""
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise _MismatchError(f"{where} is no list")
        item_kind = get_args(kind)[0]
        return tuple(_value(item_kind, item, f"{where}[{i}]") for i, item in enumerate(value))
    if hasattr(kind, "__dataclass_fields__"):
        if not isinstance(value, Mapping):
            raise _MismatchError(f"{where} is no object")
        missing = [field.name for field in fields(kind) if field.name not in value]
        if missing:
            raise _MismatchError(f"{where} has no {missing[0]}")
        return kind(**{field.name: _value(field.type, value[field.name], field.name) for field in fields(kind)})
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise _MismatchError(f"{where} is no {kind.__name__}")
    return value
