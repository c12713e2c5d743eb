"""The answer of `POST /v1/drafts` as values."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

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
        score: mean over the tokens of the interpolated log-score that ranks the drafts.
        token_logprobs: natural log; exact for the first token, approximations of the shared forward for the others.
        finish_reason: "stop" (end of text or a stop string) or "length".
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
class Completion:
    """The drafts for one prompt, best first."""

    id: str
    model: str
    drafts: tuple[Draft, ...]
    usage: Usage
    timings: Timings
    warnings: tuple[str, ...]

    @classmethod
    def from_json(cls, answer: Any) -> "Completion":
        """The parsed body of an answer. Fields that this version does not know are left aside.

        Raises:
            InvalidAnswerError: a field is missing or of another shape.
        """
        try:
            return cls(
                id=str(answer["id"]),
                model=str(answer["model"]),
                drafts=tuple(_draft(draft) for draft in answer["drafts"]),
                usage=_known_fields(Usage, answer["usage"]),
                timings=_known_fields(Timings, answer["timings"]),
                warnings=tuple(answer["warnings"]),
            )
        except (KeyError, TypeError) as error:
            message = f"The answer is not that of a Superdraft server's /v1/drafts ({type(error).__name__}: {error})."
            raise InvalidAnswerError(message) from None


def _draft(answer: Mapping[str, Any]) -> Draft:
    lists = {name: tuple(answer[name]) for name in ("tokens", "token_ids", "token_logprobs")}
    return _known_fields(Draft, {**answer, **lists})


def _known_fields(kind: type[T], answer: Mapping[str, Any]) -> T:
    return kind(**{field.name: answer[field.name] for field in fields(kind)})  # type: ignore[arg-type]
