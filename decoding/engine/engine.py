"""The engine: Superposed Decoding (Shen et al., NeurIPS 2024, arXiv 2405.18400) over a batch of requests.

An engine step is one forward pass of the model:

- a *prefill* runs some prompts, or a chunk of a long one; where a prompt ends, its drafts' first tokens are chosen, or
- a *decode step* feeds every running branch **one** superposed embedding, the weighted sum of its k drafts' last
  tokens. A branch takes one row and one KV-cache slot, whatever k is. A prompt whose tokens are all cached except the
  last one joins a decode step: its last token is one more row.

Either way the k drafts of a branch share the model's m most probable next tokens. The n-gram model, which sees each
draft's real tokens, tells which of the k*m children are coherent. The k best become the next drafts (`decode.py`).

Every strategy is a number of branches times a number of drafts: superposed 1 x k, sample n x 1, greedy 1 x 1, and
sample+superposed n x k. They share one batch. The selection "distinct", which is not the paper's, divides the branch of
a superposed request after the first token: the most probable drafts continue alone, and end when they become improbable
(docs/algorithm.md).

An engine belongs to one thread. Nothing here locks.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from superdraft.decoding.config import EngineConfig
from superdraft.decoding.engine.admission import Admission
from superdraft.decoding.engine.answer import answer, snapshot
from superdraft.decoding.engine.branching import Branching
from superdraft.decoding.engine.decode import DecodeStep, Row
from superdraft.decoding.engine.faults import Faults
from superdraft.decoding.engine.scheduler import Decode, Prefill, Scheduler
from superdraft.decoding.engine.sequence import Sequence
from superdraft.decoding.engine.slots import Slots
from superdraft.decoding.engine.starts import Starts
from superdraft.decoding.errors import InvalidRequestError, SequenceFailedError, SuperdraftError, SupersededError
from superdraft.decoding.method.draft_set import DraftSet
from superdraft.decoding.model.runner import ModelRunner
from superdraft.decoding.ngram import NgramScorer
from superdraft.decoding.outputs import GenerationOutput, StepOutput
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.prompt import Prompt
from superdraft.decoding.request import EngineRequest
from superdraft.decoding.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class StepReport:
    """Figures of one engine step, for metrics and benchmarks.

    Attributes:
        kind: the kind of forward pass; None: the step ran no model and only gave out answers.
        seconds: duration of the whole step.
        first_draft_s: for each request whose drafts got their first token in this step, the seconds since it was added.
        num_expired: requests that reached their time limit in this step.
    """

    kind: Literal["prefill", "decode"] | None
    seconds: float
    first_draft_s: tuple[float, ...]
    num_expired: int


class Engine:
    """Turns requests into drafts: call `add_request`, then `step` while `has_unfinished`.

    Args:
        runner: the model and its KV cache.
        tokenizer: the model's tokenizer.
        config: limits.
        clock: monotonic seconds.

    Attributes:
        tokenizer: the model's tokenizer.
        config: limits.
        max_model_len: the most tokens of a prompt and a draft together.
        num_slots: KV-cache slots, that is, branches that can run at once.
    """

    def __init__(
        self,
        runner: ModelRunner,
        tokenizer: Tokenizer,
        config: EngineConfig,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.tokenizer = tokenizer
        self.config = config
        self.max_model_len = runner.max_model_len
        self.num_slots = runner.num_slots
        self._runner = runner
        self._clock = clock
        self._admission = Admission(tokenizer, config, self.max_model_len, self.num_slots)
        self._slots = Slots(runner)
        self._scheduler = Scheduler(runner.num_slots, config.max_prefill_tokens, self._slots.num_unfed)
        self._decode_step = DecodeStep(runner, tokenizer.suppressed_token_ids, clock)
        self._branching = Branching(self._slots, self._scheduler, self._decode_step)
        self._starts = Starts(tokenizer, self._slots, self._branching, self._decode_step)
        self._sequences: dict[str, Sequence] = {}
        self._sessions: dict[str, Sequence] = {}
        self._ended: list[StepOutput] = []
        self._begun: list[Sequence] = []
        self._last_step = StepReport(None, 0.0, (), 0)

    @property
    def has_unfinished(self) -> bool:
        """Whether `step` has anything to do."""
        return bool(self._sequences or self._ended)

    @property
    def kv_bytes_per_position(self) -> int:
        """Memory for one token's keys and values in all layers, in bytes."""
        return self._runner.cache.plan.bytes_per_position

    @property
    def num_prefilled_tokens(self) -> int:
        """Real tokens run so far for all requests; neither superposed inputs nor tokens from the prefix cache."""
        return self._slots.num_run_tokens

    @property
    def num_used_slots(self) -> int:
        """KV-cache slots in use; the others are free."""
        return self._scheduler.num_used_slots

    @property
    def num_waiting(self) -> int:
        """Requests without a slot."""
        return self._scheduler.num_waiting

    @property
    def num_running(self) -> int:
        """Requests with a slot, whose prompts or drafts are being run."""
        # Another thread may ask between a change of the one count and of the other.
        return max(0, len(self._sequences) - self._scheduler.num_waiting)

    @property
    def last_step(self) -> StepReport:
        """Figures of the latest step."""
        return self._last_step

    def add_request(self, request: EngineRequest) -> None:
        """Queue a request. An unfinished request of the same session ends with a `SupersededError`.

        Raises:
            InvalidRequestError: the prompt or a parameter is outside this engine's limits, or an unfinished request has
                the same id.
        """
        is_superseded = any(output.request_id == request.request_id for output in self._ended)
        if request.request_id in self._sequences or is_superseded:
            raise InvalidRequestError(
                f"The request {request.request_id!r} has not ended yet. Use another id.", param="request_id"
            )
        sequence = self._admission.admit(request)
        sequence.arrival_s = self._clock()
        sequence.deadline_s = None if request.timeout_s is None else sequence.arrival_s + request.timeout_s
        if request.session_id is not None:
            older = self._sessions.get(request.session_id)
            if older is not None:
                self._ended.append(self._end(older, SupersededError("A newer request of this session took its place.")))
            self._sessions[request.session_id] = sequence
        self._sequences[request.request_id] = sequence
        self._scheduler.add(sequence)

    def cancel(self, request_id: str) -> bool:
        """Drop a request at once; it gets no further output. Returns whether it was unfinished."""
        sequence = self._sequences.get(request_id)
        if sequence is not None:
            self._release(sequence)
            return True
        # If it was superseded after the last step, its error has not been handed out yet.
        num_ended = len(self._ended)
        self._ended = [output for output in self._ended if output.request_id != request_id]
        return len(self._ended) < num_ended

    def forget_prompts(self) -> None:
        """Drop all kept prompts, so that the next request has to run all its tokens."""
        self._slots.prefixes.clear()

    def step(self) -> list[StepOutput]:
        """Run one forward pass: a prefill, or one more token for the drafts of every running request.

        A fault that concerns one request ends that request alone.

        Returns:
            The outputs of the requests that ended, and a snapshot of every other request that asked for snapshots and
            took part in this pass.
        """
        started_s = self._clock()
        outputs, self._ended = self._ended, []
        expired = self._expire()
        outputs += expired
        work = self._scheduler.schedule()
        if isinstance(work, Prefill):
            outputs += self._prefill(work)
        elif isinstance(work, Decode):
            outputs += self._decode(work)
        self._last_step = self._report_of(work, started_s, len(expired))
        return outputs

    def generate(
        self, prompt: Prompt, params: GenerationParams, scorer: NgramScorer[Any] | None = None
    ) -> GenerationOutput:
        """Run one request to its end. The engine must not have other requests meanwhile.

        Args:
            prompt: text, token ids that are fed unchanged, or both.
            params: the generation's parameters.
            scorer: the n-gram model; None: the language model alone.

        Raises:
            InvalidRequestError: the prompt or a parameter is outside this engine's limits.
            SequenceFailedError: the request failed.
        """
        self.add_request(EngineRequest("generate", prompt, params, scorer))
        while True:
            for step_output in self.step():
                if step_output.error is not None:
                    raise step_output.error
                if step_output.output is not None:
                    return step_output.output

    # The two kinds of forward pass

    def _prefill(self, work: Prefill) -> list[StepOutput]:
        """Run tokens of some prompts in one forward. For complete prompts, choose the drafts' first tokens."""
        started_s, faults = self._clock(), Faults()
        logits: list[Tensor] = []
        with faults.ending(*work.sequences):
            for sequence in work.sequences:
                if sequence.start_s is None:
                    self._slots.reuse_prefix(sequence, started_s)
            logits = self._slots.run_prompts(work.sequences, work.max_tokens)
        outputs = []
        complete = [
            (sequence, row)
            for sequence, row in zip(work.sequences, logits, strict=False)
            if sequence.num_unfed_tokens == 0
        ]
        for sequence, row in complete:
            with faults.ending(sequence):
                self._start(sequence, row, faults)
        elapsed_s = self._clock() - started_s
        self._begun += work.sequences
        for sequence in work.sequences:
            sequence.prefill_s += elapsed_s
            if faults.of(sequence) is not None or sequence.num_unfed_tokens == 0:
                outputs += self._report(sequence, faults)
        return outputs

    def _start(self, sequence: Sequence, logits: Tensor, faults: Faults) -> None:
        """Start a request whose prompt is complete: keep the prompt for reuse, fork the branches, choose first tokens.

        Args:
            sequence: the request.
            logits: the model's output after the last shared token and after each of the T tokens behind it, float32,
                shape [T + 1, V].
            faults: records the request if it cannot go on.
        """
        self._slots.keep_prefix(sequence, logits)
        self._slots.move(self._scheduler.start(sequence))
        if sequence.healing is not None:
            sequence.branches[0].path = sequence.healing.tail
        branches = self._branching.begin(sequence)
        if sequence.params.max_tokens == 0:
            return
        if sequence.healing is not None:
            self._starts.choose(sequence, logits)
        else:
            self._decode_step.choose([Row(branch, 0) for branch in branches], logits.clone(), faults)
            for branch in branches:
                self._branching.divide(branch)

    def _decode(self, work: Decode) -> list[StepOutput]:
        """Run one decode step: one superposed embedding, one row and one position for every branch."""
        started_s, faults = self._clock(), Faults()
        sequences = list(dict.fromkeys(branch.sequence for branch in work.branches))
        with faults.ending(*sequences):
            for sequence in work.joining:
                self._slots.reuse_prefix(sequence, started_s)
            logits = self._decode_step.forward(work.branches)
            rows = self._fed(work, logits, faults)
            self._decode_step.choose(rows, logits, faults)
            for row in rows:
                if faults.of(row.branch.sequence) is None:
                    with faults.ending(row.branch.sequence):
                        self._branching.divide(row.branch)
                        if row.branch.num_steps > 1:
                            self._branching.reset_if_due(row.branch, faults)
        elapsed_s = self._clock() - started_s
        self._begun += work.joining
        outputs = []
        for sequence in sequences:
            if sequence in work.joining:
                sequence.prefill_s += elapsed_s
            else:
                sequence.decode_s += elapsed_s
            outputs += self._report(sequence, faults)
        return outputs

    def _fed(self, work: Decode, logits: Tensor, faults: Faults) -> list[Row]:
        """Count the tokens that the forward fed. Prompts that joined are complete now and get their branches.

        Returns:
            The row of each branch; the branches of a request that joined share one.
        """
        rows = []
        for index, branch in enumerate(work.branches):
            is_joining, sequence = branch.is_joining, branch.sequence
            branch.count_step()
            twins = [branch]
            if is_joining:
                self._slots.num_run_tokens += 1
                with faults.ending(sequence):
                    self._slots.keep_prefix(sequence, logits[index])
                    twins = self._branching.begin(sequence)
            rows += [Row(twin, index) for twin in twins]
        return rows

    # Outputs

    def _report(self, sequence: Sequence, faults: Faults) -> list[StepOutput]:
        """The outputs of a request after a pass. If it is not over, the slots of branches that are done are freed."""
        fault = faults.of(sequence)
        if fault is not None or sequence.is_done:
            return [self._end(sequence, fault)]
        for branch in sequence.branches:
            if branch.is_done and branch.slot is not None:
                self._slots.move(self._scheduler.end(branch))
        if sequence.params.snapshots:
            return [StepOutput(sequence.request_id, snapshot=snapshot(sequence))]
        return []

    def _report_of(self, work: Prefill | Decode | None, started_s: float, num_expired: int) -> StepReport:
        now_s = self._clock()
        kind: Literal["prefill", "decode"] | None = None
        if work is not None:
            kind = "prefill" if isinstance(work, Prefill) else "decode"
        begun, self._begun = self._begun, []
        first_draft_s = tuple(now_s - sequence.arrival_s for sequence in begun if sequence.branches[0].num_steps)
        return StepReport(kind, now_s - started_s, first_draft_s, num_expired)

    def _expire(self) -> list[StepOutput]:
        """Answer the requests that reached their time limit with the drafts they have so far."""
        now_s = self._clock()
        outputs = []
        for sequence in list(self._sequences.values()):
            if sequence.deadline_s is not None and now_s >= sequence.deadline_s:
                sequence.warnings.append(
                    "The time limit was reached before the drafts were complete: they are cut short."
                )
                for branch in sequence.branches:
                    if branch.num_steps == 0:
                        branch.drafts = DraftSet((), ())
                outputs.append(self._end(sequence))
        return outputs

    def _end(self, sequence: Sequence, error: Exception | None = None) -> StepOutput:
        """The one terminal output of a request, whose slots are freed.

        Args:
            sequence: the request.
            error: why it has no result; None: it is answered with its drafts.
        """
        output = None
        if error is None:
            faults = Faults()
            with faults.ending(sequence):
                output = answer(sequence, self.tokenizer, self._runner, self._clock())
            error = faults.of(sequence)
        self._release(sequence, failed=error is not None and not isinstance(error, SupersededError))
        if error is None:
            return StepOutput(sequence.request_id, output=output)
        if not isinstance(error, SuperdraftError):
            failure = SequenceFailedError(
                f"Decoding this request failed ({type(error).__name__}); other requests are not affected."
            )
            failure.__cause__ = error
            error = failure
        return StepOutput(sequence.request_id, error=error)

    def _release(self, sequence: Sequence, failed: bool = False) -> None:
        """Free a request's slots and forget it; the slots of a failed one are zeroed."""
        if failed:
            self._slots.clear(sequence)
        self._slots.move(*self._scheduler.remove(sequence))
        del self._sequences[sequence.request_id]
        for branch in sequence.branches:
            # Sequence and branch refer to each other, so both stay in memory until the garbage collector runs. Their
            # drafts, with text and n-gram states, go now.
            branch.drafts = DraftSet((), ())
        session_id = sequence.request.session_id
        if session_id is not None and self._sessions.get(session_id) is sequence:
            del self._sessions[session_id]
