"""Records of single requests, for the log, and statistics about recent requests, for people."""

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal

from pydantic import BaseModel

from superdraft.decoding.outputs import GenerationOutput
from superdraft.decoding.params import GenerationParams

Outcome = Literal["answered", "refused", "shed", "cancelled", "failed"]

CLIENT_CLOSED_REQUEST = 499  # nginx's status for a request whose client has left
WINDOW_S = 300.0
_MAX_LATENCIES = 20_000


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
        usage, timings = output.usage, output.timings
        self.prompt_tokens += usage.prompt_tokens
        self.cached_tokens += usage.cached_tokens
        self.completion_tokens += usage.completion_tokens
        self.forward_rows += usage.forward_rows
        for name in ("queue_ms", "prefill_ms", "decode_ms", "ngram_ms"):
            setattr(self, name, max(getattr(self, name), getattr(timings, name)))

    def fail(self, status: int, code: str | None) -> None:
        """Note that the request ends with an error, perhaps within a stream, after another status has been sent."""
        self.error_status, self.error_code = status, code

    def fields(self) -> dict[str, Any]:
        """The record's fields in the log line."""
        fields: dict[str, Any] = {}
        if self.strategy is not None:
            fields |= {
                "strategy": self.strategy,
                "num_drafts": self.num_drafts,
                "num_prompts": self.num_prompts,
                "prompt_tokens": self.prompt_tokens,
                "cached_tokens": self.cached_tokens,
                "completion_tokens": self.completion_tokens,
                "forward_rows": self.forward_rows,
                "queue_ms": round(self.queue_ms, 1),
                "prefill_ms": round(self.prefill_ms, 1),
                "decode_ms": round(self.decode_ms, 1),
                "ngram_ms": round(self.ngram_ms, 1),
            }
        if self.error_code is not None:
            fields["error_code"] = self.error_code
        elif self.is_cancelled:
            fields["cancelled"] = True
        return fields

    def outcome(self, status: int) -> Outcome:
        """How the request ended, given the status that was sent."""
        if self.error_status is not None:  # if one prompt fails, the others are cancelled
            status = self.error_status
        elif self.is_cancelled:
            return "cancelled"
        if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
            return "shed"
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return "failed"
        if status == CLIENT_CLOSED_REQUEST:
            return "cancelled"
        return "refused" if status >= HTTPStatus.BAD_REQUEST else "answered"


_current: ContextVar[RequestRecord | None] = ContextVar("request_record", default=None)


def current_record() -> RequestRecord:
    """The current HTTP request's record, or a throw-away one outside a request."""
    return _current.get() or RequestRecord()


def start_record() -> RequestRecord:
    """Make a new record the current one of this task and of the tasks that it starts."""
    record = RequestRecord()
    _current.set(record)
    return record


class Statistics:
    """Counts requests by how they ended, and keeps the latencies of the last minutes. For one event loop.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._outcomes: Counter[Outcome] = Counter()
        self._latencies: deque[tuple[float, float]] = deque(maxlen=_MAX_LATENCIES)  # (when, seconds)

    def add(self, record: RequestRecord, status: int, seconds: float) -> None:
        """Count a finished request; if the engine answered it, keep its latency."""
        outcome = record.outcome(status)
        self._outcomes[outcome] += 1
        if outcome == "answered" and record.strategy is not None:
            self._latencies.append((self._clock(), seconds))

    @property
    def outcomes(self) -> dict[Outcome, int]:
        """Requests since the start, by how they ended."""
        return dict(self._outcomes)

    def latency(self) -> "LatencyStats":
        """Latency of the requests answered in the last minutes."""
        oldest = self._clock() - WINDOW_S
        seconds = sorted(took for when, took in self._latencies if when >= oldest)
        return LatencyStats(
            window_s=WINDOW_S,
            num_requests=len(seconds),
            p50_ms=_percentile(seconds, 0.50),
            p95_ms=_percentile(seconds, 0.95),
        )


def _percentile(ordered_s: Sequence[float], share: float) -> float | None:
    """The nearest-rank percentile, in milliseconds."""
    return round(1e3 * ordered_s[math.ceil(share * len(ordered_s)) - 1], 1) if ordered_s else None


def share_of(part: float, whole: float) -> float | None:
    """`part` divided by `whole`; None if `whole` is 0."""
    return round(part / whole, 4) if whole else None


class SlotStats(BaseModel):
    """KV-cache slots, one per request."""

    total: int
    used: int


class OutcomeStats(BaseModel):
    """Requests since the start, by how they ended, without those to the operators' routes."""

    answered: int = 0
    refused: int = 0
    shed: int = 0
    cancelled: int = 0
    failed: int = 0


class LatencyStats(BaseModel):
    """Time from a request's head to the end of its answer; null if there was no request in the window."""

    window_s: float
    num_requests: int
    p50_ms: float | None
    p95_ms: float | None


class TokenStats(BaseModel):
    """Tokens since the start. `prefix_hit_share`: share of the prompt tokens reused from an earlier prompt."""

    prompt: int
    cached: int
    completion: int
    prefix_hit_share: float | None


class RowStats(BaseModel):
    """Model rows of superposed drafts since the start.

    `separate`: rows that the same drafts need with one row each, as in sampling, if no draft ends early.
    """

    superposed: int
    separate: int
    saved_share: float | None


class ServerStats(BaseModel):
    """Answer of `/v1/stats`."""

    model: str
    version: str
    ready: bool
    uptime_s: int
    slots: SlotStats
    running: int
    waiting: int
    requests: OutcomeStats
    latency: LatencyStats
    tokens: TokenStats
    rows: RowStats
