"""Fake engine without a model: fixed drafts, one step per token, and failures on demand."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from support.waiting import PATIENCE_S

from superdraft.decoding.config import SPARE_CELLS, TREE_CELLS, EngineConfig
from superdraft.decoding.engine.load import Load
from superdraft.decoding.errors import InvalidRequestError, PromptTooLongError, SuperdraftError
from superdraft.decoding.outputs import (
    DraftOutput,
    DraftSnapshot,
    GenerationOutput,
    Snapshot,
    StepOutput,
    StepReport,
    Timings,
    TokenLogprob,
    Usage,
)
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.prompt import PrefixedText, Prompt, PromptTokens
from superdraft.decoding.request import EngineRequest

WORDS = ("red", "green", "blue", "white", "black", "amber")


class FakeTokenizer:
    """One token per character."""

    vocabulary: ClassVar = {chr(i): i for i in range(128)}
    eos_token_ids = frozenset({0})
    start_token_id: int | None = None

    def encode(self, text: str) -> list[int]:
        return [ord(char) for char in text]

    def encode_inside(self, text: str) -> list[int]:
        return self.encode(text)

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(chr(i) for i in token_ids)


def step_report(seconds: float = 0.0, kind: Literal["prefill", "decode"] = "decode") -> StepReport:
    return StepReport(kind, 1, 0, 0, seconds, (), 0)


@dataclass
class Job:
    request_id: str
    token_ids: tuple[int, ...]
    params: GenerationParams
    scorer: Any
    deadline_s: float | None = None
    draft_timeout_s: float | None = None
    is_warm_up: bool = False
    waiting_since_s: float | None = None
    start_s: float = field(default_factory=time.monotonic)
    num_steps: int = 0

    @property
    def is_late(self) -> bool:
        return self.deadline_s is not None and time.monotonic() >= self.deadline_s


@dataclass
class FakeEngine:
    """Each draft has `max_tokens` tokens such as " red1", or fewer if the request runs out of time.

    If `gate` is given, every step waits until this event is set, and `at_gate` is set when the first one does.
    `on_step` runs at the start of each step and may raise. `fail` maps a request id to the error that the request ends
    with. Every step is reported as `last_step`.
    """

    config: EngineConfig = field(default_factory=EngineConfig)
    max_distinct_drafts: int = len(WORDS)
    max_model_len: int = 64
    num_slots: int = 64
    on_step: Callable[[], None] = lambda: None
    gate: threading.Event | None = None
    at_gate: threading.Event = field(default_factory=threading.Event)
    fail: dict[str, SuperdraftError] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    tokenizer: FakeTokenizer = field(default_factory=FakeTokenizer)
    jobs: dict[str, Job] = field(default_factory=dict)
    seen: list[Job] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    threads: set[str] = field(default_factory=set)
    has_room_ahead: bool = False
    num_foreseen: int = 0
    last_step: StepReport = field(default_factory=step_report)
    num_waiting: int = 0
    load: Load = field(default_factory=Load)

    @property
    def num_running(self) -> int:
        return len(self.jobs)

    @property
    def num_used_slots(self) -> int:
        return len(self.jobs)

    @property
    def has_unfinished(self) -> bool:
        return bool(self.jobs)

    def num_needed(self, params: GenerationParams) -> int:
        return -(-params.num_rows // (1 + (TREE_CELLS - SPARE_CELLS) // max(1, params.max_tokens)))

    def prepare(self, request: EngineRequest) -> EngineRequest:
        return replace(request, prompt=PromptTokens(self._encoded(request.prompt)))

    def _encoded(self, prompt: Prompt | PromptTokens) -> tuple[int, ...]:
        if isinstance(prompt, PromptTokens):
            return prompt.token_ids
        if isinstance(prompt, PrefixedText):
            return (*prompt.token_ids, *self.tokenizer.encode_inside(prompt.text))
        return tuple(self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt)

    def add_request(self, request: EngineRequest) -> None:
        prompt, params = request.prompt, request.params
        self.threads.add(threading.current_thread().name)
        token_ids = self._encoded(prompt)
        if params.num_drafts > self.config.max_num_drafts:
            raise InvalidRequestError("num_drafts is over the limit.", param="num_drafts")
        if params.max_tokens > self.config.max_tokens:
            raise InvalidRequestError("max_tokens is over the limit.", param="max_tokens")
        if any(i >= 0x110000 for i in token_ids):
            raise InvalidRequestError("prompt contains an id outside the vocabulary.", param="prompt")
        if len(token_ids) + params.max_tokens > self.max_model_len:
            raise PromptTooLongError(f"The prompt of {len(token_ids)} tokens does not fit.")
        job = Job(
            request.request_id,
            token_ids,
            params,
            request.scorer,
            request.deadline_s,
            waiting_since_s=request.waiting_since_s,
        )
        job.draft_timeout_s = request.draft_timeout_s
        job.is_warm_up = request.is_warm_up
        self.jobs[job.request_id] = job
        self.seen.append(job)

    def cancel(self, request_id: str) -> bool:
        self.cancelled.append(request_id)
        return self.jobs.pop(request_id, None) is not None

    def step(self) -> list[StepOutput]:
        self.threads.add(threading.current_thread().name)
        if self.gate is not None:
            self.at_gate.set()
            self.gate.wait(PATIENCE_S)
        self.on_step()
        outputs = list[StepOutput]()
        self.load.observe(self.last_step, self.last_step.seconds)
        for job in list(self.jobs.values()):
            job.num_steps += 1
            if error := self.fail.get(job.request_id):
                outputs.append(StepOutput(job.request_id, error=error))
            elif job.num_steps >= job.params.max_tokens or job.is_late:
                outputs.append(StepOutput(job.request_id, output=self.output_of(job)))
            else:
                if job.params.snapshots:
                    outputs.append(StepOutput(job.request_id, snapshot=self.snapshot_of(job)))
                continue
            del self.jobs[job.request_id]
        return outputs

    def never_end(self) -> None:
        """As `on_step`: no request comes to its end by itself."""
        time.sleep(0.001)
        for job in list(self.jobs.values()):
            job.num_steps = min(job.num_steps, 1)

    def snapshot_of(self, job: Job) -> Snapshot:
        drafts = [self._draft(i, job) for i in range(min(job.params.num_drafts, self.max_distinct_drafts))]
        snapshots = tuple(DraftSnapshot(draft.text, float("-inf") if draft.index else draft.score) for draft in drafts)
        stable = " " if len(drafts) > 1 else "".join(draft.text for draft in drafts)
        return Snapshot(job.num_steps, snapshots, stable)

    def generate(self, prompt: Prompt, params: GenerationParams, scorer: Any = None) -> GenerationOutput:
        self.add_request(EngineRequest("generate", prompt, params, scorer))
        while True:
            for answer in self.step():
                assert answer.output is not None
                return answer.output

    def output_of(self, job: Job) -> GenerationOutput:
        params = job.params
        drafts = tuple(self._draft(i, job) for i in range(min(params.num_drafts, self.max_distinct_drafts)))
        prompt_logprobs = None
        if params.echo_logprobs:
            prompt_logprobs = tuple(
                TokenLogprob(token_id, chr(token_id), None if at == 0 else -0.5, () if at == 0 else ((1, "x", -0.25),))
                for at, token_id in enumerate(job.token_ids)
            )
        return GenerationOutput(
            request_id=job.request_id,
            drafts=drafts,
            usage=Usage(len(job.token_ids), sum(len(draft.tokens) for draft in drafts), 2, params.max_tokens),
            timings=Timings(0.1, 1.0, 2.0, 0.5, 3.1),
            prompt_token_ids=job.token_ids,
            warnings=(*self.warnings, "The time limit was reached.") if job.is_late else self.warnings,
            prompt_logprobs=prompt_logprobs,
        )

    def _draft(self, index: int, job: Job) -> DraftOutput:
        params = job.params
        tokens = tuple(f" {WORDS[index]}{i}" for i in range(min(params.max_tokens, job.num_steps)))
        text, reason = "".join(tokens), "length"
        for stop in params.stop:
            if stop in text:
                text, reason = text[: text.index(stop)], "stop"
        exact = None
        if params.verify_top is not None:
            exact = tuple(
                TokenLogprob(i, token, float("-inf") if i == 1 else -1.0, ((7, " alt", -0.125),)[: params.verify_top])
                for i, token in enumerate(tokens)
            )
        return DraftOutput(
            index=index,
            text=text,
            token_ids=tuple(range(len(tokens))),
            tokens=tokens,
            score=-0.5 - index,
            token_logprobs=tuple(float("-inf") if i == 2 else -0.5 for i in range(len(tokens))),
            finish_reason=reason,  # type: ignore[arg-type]
            exact_logprobs=exact,
        )
