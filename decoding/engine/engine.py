"""The engine: Superposed Decoding (Shen et al., NeurIPS 2024, arXiv 2405.18400) over a batch of requests.

An engine step is one forward pass of the model:

- It feeds every running branch **one** superposed embedding, the weighted sum of its k drafts' last tokens. A branch
  takes one row, whatever k is.
- It also runs tokens of some prompts, or a chunk of a long one. Where a prompt ends, its drafts' first tokens are
  chosen.

The k drafts of a branch share the model's m most probable next tokens. The n-gram model, which sees each draft's real
tokens, tells which of the k*m children are coherent. The k best become the next drafts (`decode.py`).

A request has one KV-cache slot, in which its prompt and all its branches form a token tree (`tree.py`).

Every strategy is a number of branches times a number of drafts: superposed 1 x k, sample n x 1, greedy 1 x 1, and
sample+superposed n x k. They share one batch. The selection "distinct", which is not the paper's, divides the branch of
a superposed request after the first token: the most probable drafts continue alone, and end when they become improbable
(docs/algorithm.md).

An engine belongs to one thread. Nothing here locks.
"""

import math
import time
from collections.abc import Callable
from typing import Any, Literal

from superdraft.decoding.config import EngineConfig
from superdraft.decoding.engine.admission import Admission
from superdraft.decoding.engine.answer import answer, snapshot
from superdraft.decoding.engine.branching import Branching
from superdraft.decoding.engine.decode import DecodeStep
from superdraft.decoding.engine.faults import Faults
from superdraft.decoding.engine.load import Load, is_late, limit
from superdraft.decoding.engine.model_pass import Pass
from superdraft.decoding.engine.openings import Openings
from superdraft.decoding.engine.scheduler import Scheduler, Work
from superdraft.decoding.engine.sequence import Sequence
from superdraft.decoding.engine.trees import Trees
from superdraft.decoding.errors import InvalidRequestError, SequenceFailedError, SuperdraftError
from superdraft.decoding.method.draft_set import DraftSet
from superdraft.decoding.model.runner import ModelRunner
from superdraft.decoding.ngram import NgramScorer
from superdraft.decoding.outputs import OUT_OF_TIME, GenerationOutput, StepOutput, StepReport
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.prompt import Prompt
from superdraft.decoding.request import EngineRequest
from superdraft.decoding.text.tokenizer import Tokenizer


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
        num_slots: KV-cache slots, that is, requests that can run at once.
        load: what steps cost, for any thread to ask.
    """

    def __init__(
        self,
        runner: ModelRunner,
        tokenizer: Tokenizer,
        config: EngineConfig,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.tokenizer = tokenizer
        self.config = config
        self.max_model_len = runner.max_model_len
        self.num_slots = runner.num_slots
        self._runner = runner
        self._clock = clock
        self._trees = Trees(runner)
        self._admission = Admission(tokenizer, config, self.max_model_len, self.num_slots, self._trees.num_needed)
        self.load = Load(math.inf if config.target_latency_s is None else config.target_latency_s)
        decode_step = DecodeStep(runner, self._trees, tokenizer.suppressed_token_ids, clock)
        branching = Branching(self._trees, decode_step)
        openings = Openings(tokenizer, self._trees, branching, decode_step)
        self._scheduler = Scheduler(self._trees, openings.leave_out_tail)
        self._pass = Pass(self._trees, self._scheduler, decode_step, branching, openings, clock)
        self._sequences: dict[str, Sequence] = {}
        self._num_ahead = 0  # of them, requests run ahead, before they are sent
        self._begun: list[Sequence] = []
        self._busy_since_s = 0.0  # when the present round began: the step before has ended, or the first request came
        self._last_step = StepReport(None, 0, 0, 0, 0.0, (), 0)

    @property
    def has_unfinished(self) -> bool:
        """Whether `step` has anything to do."""
        return bool(self._sequences)

    @property
    def kv_bytes_per_position(self) -> int:
        """Memory for one token's keys and values in all layers, in bytes."""
        return self._runner.cache.plan.bytes_per_position

    @property
    def num_prefilled_tokens(self) -> int:
        """Real tokens run so far for all requests; neither superposed inputs nor tokens found in a warm tree."""
        return self._trees.num_run_tokens

    @property
    def num_copied_bytes(self) -> int:
        """Bytes of keys and values copied so far from one place to another."""
        return self._runner.cache.num_copied_bytes

    @property
    def num_foreseen(self) -> int:
        """Requests so far whose whole prompt had been run ahead of them."""
        return self._trees.num_foreseen

    @property
    def has_room_ahead(self) -> bool:
        """Whether a request could be run ahead without taking another request's tree."""
        return self._trees.has_room_ahead

    @property
    def num_used_slots(self) -> int:
        """KV-cache slots in use; the others are free."""
        return self._trees.num_used

    @property
    def num_waiting(self) -> int:
        """Requests without a slot, other than those that only warm up."""
        return self._scheduler.num_waiting

    @property
    def num_running(self) -> int:
        """Requests with a slot, whose prompts or drafts are being run; not those that are run ahead."""
        # Another thread may ask between a change of the one count and of the other.
        return max(0, len(self._sequences) - self._scheduler.num_waiting - self._num_ahead)

    @property
    def last_step(self) -> StepReport:
        """Figures of the latest step."""
        return self._last_step

    def num_needed(self, params: GenerationParams) -> int:
        """The most slots that a request needs, whatever its prompt; any thread may ask."""
        return self._trees.num_needed(self.max_model_len - params.max_tokens, params.num_rows, params.max_tokens)

    def prepare(self, request: EngineRequest) -> EngineRequest:
        """Encode a request's text, so that `add_request` need not. Unlike the other methods, any thread may call it.

        Raises:
            InvalidRequestError: the prompt or a parameter is outside this engine's limits.
        """
        return self._admission.prepare(request)

    def add_request(self, request: EngineRequest) -> None:
        """Queue a request.

        Raises:
            InvalidRequestError: the prompt or a parameter is outside this engine's limits, or an unfinished request has
                the same id.
        """
        if request.request_id in self._sequences:
            raise InvalidRequestError(
                f"The request {request.request_id!r} has not ended yet. Use another id.", param="request_id"
            )
        if not self.has_unfinished:
            self._busy_since_s = self._clock()
        sequence = self._admission.admit(request)
        sequence.arrival_s = self._clock()
        since_s = request.waiting_since_s
        sequence.waiting_since_s = sequence.arrival_s if since_s is None else since_s
        self._sequences[request.request_id] = sequence
        self._num_ahead += request.is_ahead
        self._scheduler.add(sequence)
        self.load.num_waiting += not request.is_warm_up

    def cancel(self, request_id: str) -> bool:
        """Drop a request at once; it gets no further output. Returns whether it was unfinished."""
        sequence = self._sequences.get(request_id)
        if sequence is not None:
            self._release(sequence)
        return sequence is not None

    def forget_prompts(self) -> None:
        """Drop all warm trees, so that the next request has to run all its tokens."""
        self._trees.forget()

    def step(self) -> list[StepOutput]:
        """Run one forward pass: one more token for the drafts of every running request, and tokens of prompts.

        A fault that concerns one request ends that request alone.

        Returns:
            The outputs of the requests that ended, and a snapshot of every other request that asked for snapshots and
            whose drafts grew.
        """
        started_s = self._clock()
        expired = self._expire()
        outputs = [*expired, *self._limit_work()]
        chunk_tokens = self.load.chunk_tokens(self.config.max_prefill_tokens)
        most_running = self.load.limit_running(self._drafting)
        num_rows, faults = 0, Faults()
        work = self._scheduler.schedule(started_s, chunk_tokens, faults, most_running)
        if work is not None:
            num_rows = self._pass.run(work, faults)
            outputs += self._grown(work, faults, started_s)
        self._last_step = step = self._report_of(work, num_rows, started_s, len(expired))
        now_s = self._clock()
        self.load.observe(step, now_s - self._busy_since_s)
        self._busy_since_s = now_s
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

    @property
    def _drafting(self) -> list[Sequence]:
        """The unfinished requests that somebody waits for."""
        return [sequence for sequence in self._sequences.values() if not sequence.request.is_warm_up]

    def _limit_work(self) -> list[StepOutput]:
        """End drafts that may not grow any further under this load, and answer the requests that are done by that."""
        drafting, now_s = self._drafting, self._clock()
        plan, is_shared = self.load.plan(drafting), len(drafting) > 1
        without_slot, outputs = self._scheduler.without_slot, []
        for sequence in list(self._scheduler.running):
            ends = is_late(sequence, now_s) or self.load.must_give_way(sequence, without_slot, now_s)
            limit(sequence, max(plan, int(is_shared and ends)))
            if sequence.is_done:
                outputs.append(self._end(sequence))
        return outputs

    # Outputs

    def _grown(self, work: Work, faults: Faults, started_s: float) -> list[StepOutput]:
        """The outputs of the requests that took part in a pass."""
        self._begun += [sequence for sequence, _ in work.prompts]
        elapsed_s, outputs = self._clock() - started_s, []
        prompted = {sequence for sequence, _ in work.prompts}
        for sequence in work.sequences:
            if sequence in prompted:
                sequence.prefill_s += elapsed_s
            else:
                sequence.decode_s += elapsed_s
            is_complete = sequence not in prompted or not sequence.num_unfed_tokens
            if is_complete or faults.of(sequence) is not None:
                outputs += self._report(sequence, faults)
        return outputs

    def _report(self, sequence: Sequence, faults: Faults) -> list[StepOutput]:
        """The outputs of a request after a pass."""
        fault = faults.of(sequence)
        if fault is not None or sequence.is_done:
            return [self._end(sequence, fault)]
        if sequence.params.snapshots:
            return [StepOutput(sequence.request_id, snapshot=snapshot(sequence))]
        return []

    def _report_of(self, work: Work | None, num_rows: int, started_s: float, num_expired: int) -> StepReport:
        now_s, num_prompt_tokens, num_completed = self._clock(), 0, 0
        kind: Literal["prefill", "decode", "warm_up"] | None = None
        if work is not None:
            kind = "prefill" if work.prompts else "decode"
            if all(sequence.request.is_warm_up for sequence in work.sequences):
                kind = "warm_up"
            num_prompt_tokens = sum(num_tokens for _, num_tokens in work.prompts)
            prompted = [sequence for sequence, _ in work.prompts]
            left = sum(one.request_id in self._sequences and one.num_unfed_tokens > 0 for one in prompted)
            num_completed = len(prompted) - left
        begun, self._begun = self._begun, []
        first_draft_s = tuple(now_s - sequence.arrival_s for sequence in begun if sequence.branches[0].num_steps)
        seconds = now_s - started_s
        return StepReport(
            kind, num_rows, num_prompt_tokens, num_completed, seconds, first_draft_s, num_expired, self.num_waiting
        )

    def _expire(self) -> list[StepOutput]:
        """Answer the requests that reached their time limit with the drafts they have so far."""
        now_s = self._clock()
        outputs = []
        for sequence in list(self._sequences.values()):
            if sequence.deadline_s is not None and now_s >= sequence.deadline_s:
                sequence.warnings.append(OUT_OF_TIME)
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
        self._release(sequence, failed=error is not None)
        if error is None:
            self.load.observe_answer(sequence)
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
        self._trees.end(sequence, failed=failed)
        self._scheduler.remove(sequence)
        del self._sequences[sequence.request_id]
        self._num_ahead -= sequence.request.is_ahead
        for branch in sequence.branches:
            # Sequence and branch refer to each other, so both stay in memory until the garbage collector runs. Their
            # drafts, with text and n-gram states, go now.
            branch.drafts = DraftSet((), ())
