"""Records of single requests, for the log and for traces."""

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from superdraft.decoding.outputs import GenerationOutput
from superdraft.decoding.params import GenerationParams

CLIENT_CLOSED_REQUEST = 499  # nginx's status for a request whose client has left

_COUNTS = ("prompt_tokens", "cached_tokens", "completion_tokens", "forward_rows")
_WORK = ("strategy", "num_drafts", "num_prompts", *_COUNTS)
_TIMES = ("queue_ms", "prefill_ms", "decode_ms", "ngram_ms")


@dataclass(slots=True)
class RequestRecord:
    """The engine's work for one HTTP request, and the request's end. Holds no text of the request.

    Tokens and rows are sums over the request's prompts. Times are those of the slowest prompt, in milliseconds.
    """

    strategy: str | None = None
    num_drafts: int = 0
    num_prompts: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    forward_rows: int = 0
    queue_ms: float = 0.0
    prefill_ms: float = 0.0
    decode_ms: float = 0.0
    ngram_ms: float = 0.0
    is_cancelled: bool = False
    is_turned_away: bool = False
    error_status: int | None = None
    error_code: str | None = None

    def begin(self, params: GenerationParams) -> None:
        """Note that a prompt goes to the engine."""
        self.strategy, self.num_drafts = params.strategy, params.num_drafts
        self.num_prompts += 1

    def add(self, output: GenerationOutput) -> None:
        """Add the output for a prompt."""
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(output.usage, name))
        for name in _TIMES:
            setattr(self, name, max(getattr(self, name), getattr(output.timings, name)))

    def fail(self, status: int, code: str | None) -> None:
        """Note that the request ends with an error, perhaps within a stream, after another status has been sent."""
        self.error_status, self.error_code = status, code

    def fields(self) -> dict[str, Any]:
        """The record's fields in the log line."""
        fields: dict[str, Any] = {}
        if self.strategy is not None:
            fields = {name: getattr(self, name) for name in _WORK}
            fields |= {name: round(getattr(self, name), 1) for name in _TIMES}
        if self.error_code is not None:
            fields["error_code"] = self.error_code
        elif self.is_cancelled:
            fields["cancelled"] = True
        return fields


_current: ContextVar[RequestRecord | None] = ContextVar("request_record", default=None)


def current_record() -> RequestRecord:
    """The current HTTP request's record, or a throw-away one outside a request."""
    return _current.get() or RequestRecord()


def start_record() -> RequestRecord:
    """Make a new record the current one of this task and of the tasks that it starts."""
    record = RequestRecord()
    _current.set(record)
    return record
