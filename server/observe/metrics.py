"""Metrics for Prometheus. No label and no value holds text of a prompt.

Each app has a registry of its own. Every label has few values: routes are templates, and nothing that a client can
choose freely is a label. Gauges are read on request, so they cost nothing between requests.
"""

from collections.abc import Callable
from typing import Literal, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from superdraft.decoding.outputs import GenerationOutput, StepReport
from superdraft.decoding.params import GenerationParams

CancelReason = Literal["client_gone", "superseded", "deadline", "shutdown"]
DraftEvent = Literal["shown", "accepted", "dismissed"]

OTHER_ROUTE = "other"
NO_STRATEGY = "none"
_MAX_RANK = 9  # drafts of lower rank are counted together
_CANCEL_REASONS: tuple[CancelReason, ...] = ("client_gone", "superseded", "deadline", "shutdown")
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
MAX_DEPTH = 16  # rows that fed later tokens count as these
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class WatchedEngine(Protocol):
    """The observable state of an engine. Any thread may read it."""

    @property
    def num_slots(self) -> int:
        """KV-cache slots."""

    @property
    def num_used_slots(self) -> int:
        """KV-cache slots in use."""

    @property
    def num_running(self) -> int:
        """Requests with a slot."""

    @property
    def num_waiting(self) -> int:
        """Requests without one."""

    @property
    def num_foreseen(self) -> int:
        """Requests so far whose whole prompt had been run ahead of them."""


class Metrics:
    """The metrics of one app. Any thread may call any method.

    Attributes:
        registry: holds all of them.
        ahead: prompts that were run before anyone sent them.
        ahead_rows: the model rows of their drafts.
        shown: what `exposition` shows: the registry, unless other processes are shown too.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.shown: Collector = self.registry
        ProcessCollector(registry=self.registry)
        self._add_request_metrics()
        self._add_engine_metrics()

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"superdraft_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, *labels: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
        return Histogram(f"superdraft_{name}", text, labels, buckets=buckets, registry=self.registry)

    def _add_request_metrics(self) -> None:
        counter, histogram = self._counter, self._histogram
        self._requests = counter("requests", "HTTP requests.", "route", "status", "strategy")
        text = "From a request's head to the end of its answer."
        self._request_s = histogram("request_seconds", text, "route", "strategy")
        self._shed = counter("shed", "Requests refused because of the server's load or state.", "reason")
        self._draft_events = counter("draft_events", "What users did with drafts.", "event", "rank")
        text = "From showing a draft to its user's reaction."
        self._draft_event_s = histogram("draft_event_seconds", text, "event")

    def _add_engine_metrics(self) -> None:
        counter, histogram = self._counter, self._histogram
        self._cancelled = counter("cancelled", "Prompts whose drafts were not finished.", "reason")
        for reason in _CANCEL_REASONS:
            self._cancelled.labels(reason)
        self._queue_s = histogram("queue_seconds", "A prompt's wait for a slot.")
        text = "From a prompt's arrival at the engine to the first token of its drafts."
        self._first_draft_s = histogram("first_draft_seconds", text)
        steps = histogram("step_seconds", "Engine steps.", "kind")
        self._step_s = {kind: steps.labels(kind) for kind in ("prefill", "decode", "warm_up")}
        self._forward_rows = histogram("forward_rows", "Model rows of a prompt's drafts.", "strategy", buckets=_ROWS)
        self._prompt_tokens = counter("prompt_tokens", "Tokens of prompts.")
        self._cached_tokens = counter("cached_tokens", "Prompt tokens reused from an earlier prompt.")
        self._completion_tokens = counter("completion_tokens", "Tokens of drafts.")
        self._ngram_s = counter("ngram_seconds", "Time spent in the n-gram models.")
        self._superposed_rows = counter("superposed_rows", "Model rows of superposed drafts.")
        text = "Model rows that the same drafts would have needed with one row each."
        self._separate_rows = counter("separate_rows", text)
        text = "Model rows that fed the drafts' first tokens, their second ones, and so on."
        self._rows_by_depth = counter("rows_by_depth", text, "depth")
        self._reused = counter("reused_drafts", "Drafts that an earlier request had decoded, and that took no row.")
        self.ahead = counter("ahead", "Prompts run before anyone sent them.")
        self.ahead_rows = counter("ahead_rows", "Model rows of their drafts.")
        self._limited = counter("limited_by_load", "Prompts whose drafts are shorter because of the load.")

    def watch(self, watched: WatchedEngine) -> None:
        """Show an engine's load."""
        for name, text, read in (
            ("superdraft_slots", "KV-cache slots.", lambda: watched.num_slots),
            ("superdraft_used_slots", "KV-cache slots in use.", lambda: watched.num_used_slots),
            ("superdraft_running_sequences", "Prompts with a slot.", lambda: watched.num_running),
            ("superdraft_waiting_sequences", "Prompts without a slot.", lambda: watched.num_waiting),
            (
                "superdraft_ahead_used",
                "Prompts that had been run ahead of their requests, since the start.",
                lambda: watched.num_foreseen,
            ),
        ):
            Gauge(name, text, registry=self.registry).set_function(read)

    def watch_admission(self, num_waiting: Callable[[], int]) -> None:
        """Show how many requests are waiting for admission to the engine."""
        gauge = Gauge(
            "superdraft_waiting_requests", "Requests waiting for admission to the engine.", registry=self.registry
        )
        gauge.set_function(num_waiting)

    def observe_request(self, route: str, status: int, strategy: str | None, seconds: float) -> None:
        """Count a finished HTTP request.

        Args:
            route: the route's template, or OTHER_ROUTE; never a path.
            status: the HTTP status.
            strategy: how the request was decoded; None: it did not reach the engine.
            seconds: duration.
        """
        strategy = strategy or NO_STRATEGY
        self._requests.labels(route, status, strategy).inc()
        self._request_s.labels(route, strategy).observe(seconds)

    def observe_step(self, step: StepReport) -> None:
        """Count a step of the engine."""
        if step.kind is not None:
            self._step_s[step.kind].observe(step.seconds)
        for seconds in step.first_draft_s:
            self._first_draft_s.observe(seconds)
        if step.num_expired:
            self.count_cancelled("deadline", step.num_expired)

    def observe_generation(self, params: GenerationParams, output: GenerationOutput) -> None:
        """Count a prompt that was answered."""
        usage, timings = output.usage, output.timings
        self._queue_s.observe(timings.queue_ms / 1e3)
        self._ngram_s.inc(timings.ngram_ms / 1e3)
        self._prompt_tokens.inc(usage.prompt_tokens)
        self._cached_tokens.inc(usage.cached_tokens)
        self._completion_tokens.inc(usage.completion_tokens)
        self._forward_rows.labels(params.strategy).observe(usage.forward_rows)
        for depth, num_rows in enumerate(usage.rows_by_depth, 1):
            self._rows_by_depth.labels(str(min(depth, MAX_DEPTH))).inc(num_rows)
        self._limited.inc(usage.limited_by_load)
        self._reused.inc(usage.reused_drafts)
        if params.drafts_per_branch > 1:
            self._superposed_rows.inc(sum(usage.rows_by_depth))
            self._separate_rows.inc(usage.draft_rows)

    def count_cancelled(self, reason: CancelReason, count: int = 1) -> None:
        """Count prompts that ended before their drafts were finished."""
        self._cancelled.labels(reason).inc(count)

    def count_shed(self, reason: str) -> None:
        """Count a request that was refused because of the server's load or state. `reason` is a fixed word."""
        self._shed.labels(reason).inc()

    def count_draft_event(self, event: DraftEvent, rank: int, elapsed_s: float | None = None) -> None:
        """Count an event of the draft of this rank, 0 being the best, and the seconds since it was shown."""
        self._draft_events.labels(event, str(rank) if 0 <= rank <= _MAX_RANK else f"{_MAX_RANK + 1}+").inc()
        if elapsed_s is not None:
            self._draft_event_s.labels(event).observe(elapsed_s)

    def total(self, sample: str) -> float:
        """A sample's value, summed over its labels; 0 if it has none."""
        families = self.registry.restricted_registry([sample]).collect()
        return sum(item.value for family in families for item in family.samples if item.name == sample)

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """All metrics in the text format that an `accept` header asks for, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self.shown), content_type
