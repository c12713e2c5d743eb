"""Superposed Decoding (Shen et al., NeurIPS 2024, arXiv 2405.18400) over a batch of requests.

One engine step is one forward pass of the model:

- a *prefill* runs a prompt, or a chunk of a long one, and at its end chooses each draft's first token, or
- a *decode step* feeds every running branch **one** superposed embedding, the weighted sum of its k drafts' last
  tokens, and so needs one row and one KV-cache slot a branch, whatever k is. The last token of a prompt that is known
  otherwise is a row of such a step, too.

Either way the model's m most probable next tokens are shared by the k drafts of a branch; the n-gram model, which sees
each draft's real tokens, tells which of the k*m children are coherent; the best k live on.

Every strategy is a number of branches times a number of drafts: superposed 1 x k, sample n x 1, greedy 1 x 1, and
sample+superposed n x k. They share one batch. With the selection "distinct", ours and not the paper's, a superposed
request's branch is divided after its first token: the most probable drafts go on alone, and end where they are
improbable (docs/algorithm.md).

The engine belongs to one thread. Nothing here locks.
"""

import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from superdraft.decoding.config import EngineConfig
from superdraft.decoding.engine.admission import Admission
from superdraft.decoding.engine.answer import answer, snapshot
from superdraft.decoding.engine.branches import BranchSteps
from superdraft.decoding.engine.prefix_cache import PrefixCache
from superdraft.decoding.engine.scheduler import Decode, Prefill, Scheduler
from superdraft.decoding.engine.sequence import Branch, Sequence
from superdraft.decoding.engine.token_chooser import TokenChooser
from superdraft.decoding.errors import InvalidRequestError, SequenceFailedError, SuperdraftError, SupersededError
from superdraft.decoding.method.draft_set import DraftSet
from superdraft.decoding.method.superposition import superpose
from superdraft.decoding.model.runner import ModelRunner
from superdraft.decoding.ngram import NgramScorer
from superdraft.decoding.outputs import GenerationOutput, StepOutput
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.prompt import Prompt
from superdraft.decoding.request import EngineRequest
from superdraft.decoding.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class StepReport:
    """What the engine's latest step was, for whoever watches it.

    Attributes:
        kind: what the model ran; None: nothing, the step only gave out answers.
        seconds: how long all of the step took.
        first_draft_s: of each request whose drafts got their first token, the time since it was added.
        num_expired: requests that ended because their time was over.
    """

    kind: Literal["prefill", "decode"] | None
    seconds: float
    first_draft_s: tuple[float, ...]
    num_expired: int


class Engine:
    """Runs requests to their drafts: `add_request`, then `step` until nothing is unfinished.

    Args:
        runner: the model and its KV cache.
        tokenizer: the model's tokenizer.
        config: limits.
        clock: monotonic seconds.
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
        self._prefixes = PrefixCache(runner.cache.plan.num_prefix_positions)
        self._scheduler = Scheduler(runner.num_slots, config.max_prefill_tokens, self._num_unfed)
        self._chooser = TokenChooser(tokenizer, runner.device, clock)
        self._steps = BranchSteps(runner, self._chooser, self._scheduler, self._prefixes)
        self._sequences: dict[str, Sequence] = {}
        self._sessions: dict[str, Sequence] = {}
        self._ended: list[StepOutput] = []
        self._begun: list[Sequence] = []
        self._last_step = StepReport(None, 0.0, (), 0)

    @property
    def has_unfinished(self) -> bool:
        """Whether a step has anything to do."""
        return bool(self._sequences or self._ended)

    @property
    def kv_bytes_per_position(self) -> int:
        """Memory of one token's keys and values in all layers."""
        return self._runner.cache.plan.bytes_per_position

    @property
    def num_prefilled_tokens(self) -> int:
        """Real tokens run so far, of all requests; what came from the prefix cache is not among them."""
        return self._steps.num_run_tokens

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
        """Requests with a slot: their prompts or their drafts are being run."""
        return max(0, len(self._sequences) - self._scheduler.num_waiting)  # two counts, if another thread asks

    @property
    def last_step(self) -> StepReport:
        """What the latest step was."""
        return self._last_step

    def add_request(self, request: EngineRequest) -> None:
        """Queue a request.

        Raises:
            InvalidRequestError: the prompt or a parameter is outside this engine's limits.
        """
        if request.request_id in self._sequences:
            raise InvalidRequestError(
                f"A request {request.request_id!r} is running; use another id.", param="request_id"
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
        """Forget a request at once; no output follows for it. False if it is not here (any more)."""
        sequence = self._sequences.get(request_id)
        if sequence is not None:
            self._release(sequence)
            return True
        # Superseded since the last step: its error has not been handed out yet.
        num_ended = len(self._ended)
        self._ended = [output for output in self._ended if output.request_id != request_id]
        return len(self._ended) < num_ended

    def forget_prompts(self) -> None:
        """Keep none of the prompts so far for reuse: the next request runs all tokens of its own."""
        self._prefixes.clear()

    def step(self) -> list[StepOutput]:
        """One forward pass: a prompt, or one more token for the drafts of every running request.

        Returns:
            An output for each request that ended, and a snapshot for each that goes on and wants them. A fault of one
            request ends that one alone.
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
        """Run one request to its end, for callers that have the engine to themselves.

        Args:
            prompt: text, token ids that are fed as they are, or both.
            params: what is wanted.
            scorer: the n-gram model; None: the language model alone.

        Raises:
            InvalidRequestError: the prompt or a parameter is outside this engine's limits.
        """
        self.add_request(EngineRequest("generate", prompt, params, scorer))
        while True:
            for step_output in self.step():
                if step_output.error is not None:
                    raise step_output.error
                if step_output.output is not None:
                    return step_output.output

    # The two kinds of step

    def _num_unfed(self, sequence: Sequence) -> int:
        """Prompt tokens that would have to be run; the last ones always are, since their logits are needed."""
        num_known = len(self._prefixes.match(sequence.prompt_token_ids[: sequence.num_reusable]))
        return len(sequence.prompt_token_ids) - num_known

    def _prefill(self, work: Prefill) -> list[StepOutput]:
        """Some prompts' tokens in one forward; those that are through choose their drafts' first tokens."""
        started_s = self._clock()
        firsts = [sequence.branches[0] for sequence in work.sequences]
        try:
            for sequence, branch in zip(work.sequences, firsts, strict=True):
                if sequence.start_s is None:
                    sequence.start_s = started_s
                    self._steps.reuse_prefix(sequence, branch)
            logits = self._steps.run_prompts(work.sequences, work.max_tokens)
        except Exception as error:  # out of memory, say: all that were in this pass are lost, those that wait are not
            return [self._end(sequence, error) for sequence in work.sequences]
        outputs = []
        for sequence, branch, row in zip(work.sequences, firsts, logits, strict=True):
            is_through = sequence.num_unfed_tokens == 0
            fault = self._start(sequence, branch, row) if is_through else None
            sequence.prefill_s += self._clock() - started_s
            self._begun.append(sequence)
            if fault is not None:
                outputs.append(self._end(sequence, fault))
            elif is_through:
                outputs += self._report(sequence)
        return outputs

    def _start(self, sequence: Sequence, branch: Branch, logits: Tensor) -> Exception | None:
        """The prompt is through: keep it for reuse, fork the branches, choose first tokens from its logits [T, V]."""
        try:
            if not bool(logits.isnan().any()):  # else every prompt that begins like this one would fail, too
                self._steps.keep_prefix(sequence, branch)
            self._steps.start(sequence, branch)
            if sequence.params.max_tokens > 0 and sequence.healing is not None:
                self._steps.choose_starts(sequence, logits)
            elif sequence.params.max_tokens > 0:
                for twin in list(sequence.branches):
                    self._steps.choose_from(twin, logits.clone())
                    self._steps.divide_if_due(twin)
        except Exception as fault:  # an n-gram model from outside may raise anything: it is this sequence's alone
            return fault
        return None

    def _decode(self, work: Decode) -> list[StepOutput]:
        """One superposed embedding, one row, one position for every branch."""
        started_s = self._clock()
        sequences = list(dict.fromkeys(branch.sequence for branch in work.branches))
        joining = {branch.sequence for branch in work.branches if branch.is_joining}
        try:
            for sequence in work.joining:
                sequence.start_s = started_s
                self._steps.reuse_prefix(sequence, sequence.branches[0])
            faults = self._decode_step(work.branches)
        except Exception as error:  # out of memory, say: all that were in this pass are lost, those that wait are not
            faults = dict.fromkeys(sequences, error)
        elapsed_s = self._clock() - started_s
        outputs = []
        for sequence in sequences:
            if sequence in joining:
                sequence.prefill_s += elapsed_s
                self._begun.append(sequence)
            else:
                sequence.decode_s += elapsed_s
            fault = faults.get(sequence)
            outputs += self._report(sequence) if fault is None else [self._end(sequence, fault)]
        return outputs

    def _decode_step(self, branches: Seq[Branch]) -> dict[Sequence, Exception]:
        """The method itself; gives back the requests that failed alone, and why."""
        last_tokens = [token_id for branch in branches for token_id in branch.last_token_ids]
        superposed = superpose(self._runner.embed(last_tokens), [branch.drafts.weights for branch in branches])
        logits = self._runner.decode(superposed, [branch.num_computed for branch in branches]).float()
        shared = self._chooser.shared_candidates(logits, branches)
        faults: dict[Sequence, Exception] = {}
        for branch, row, candidates in zip(branches, logits, shared, strict=True):
            try:
                self._steps.take_step(branch, row, candidates)
            except Exception as fault:  # an n-gram model from outside may raise anything
                faults[branch.sequence] = fault
        return faults

    # What comes out

    def _report(self, sequence: Sequence) -> list[StepOutput]:
        """The answer if the sequence is done; else its done branches give their slots back."""
        if sequence.is_done:
            return [self._end(sequence)]
        for branch in sequence.branches:
            if branch.is_done and branch.slot is not None:
                self._steps.move(self._scheduler.end(branch))
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
        """Answer those whose time is over with the drafts that they have."""
        now_s = self._clock()
        outputs = []
        for sequence in list(self._sequences.values()):
            if sequence.deadline_s is not None and now_s >= sequence.deadline_s:
                sequence.warnings.append("The time was over before all tokens were written: the drafts are cut short.")
                for branch in sequence.branches:
                    if branch.num_steps == 0:
                        branch.drafts = DraftSet((), ())
                outputs.append(self._end(sequence))
        return outputs

    def _end(self, sequence: Sequence, error: Exception | None = None) -> StepOutput:
        """The request's one terminal output; its slots are free afterwards."""
        output = None
        try:
            if error is None:
                output = answer(sequence, self.tokenizer, self._runner, self._clock())
        except Exception as late_error:
            error = late_error
        self._release(sequence, failed=error is not None and not isinstance(error, SupersededError))
        if error is None:
            return StepOutput(sequence.request_id, output=output)
        if not isinstance(error, SuperdraftError):
            failure = SequenceFailedError(
                f"Decoding this request failed ({type(error).__name__}); others are not affected."
            )
            failure.__cause__ = error
            error = failure
        return StepOutput(sequence.request_id, error=error)

    def _release(self, sequence: Sequence, failed: bool = False) -> None:
        if failed:
            for branch in sequence.branches:
                if branch.slot is not None:
                    self._runner.cache.clear(branch.slot)
        for move in self._scheduler.remove(sequence):
            self._steps.move(move)
        del self._sequences[sequence.request_id]
        for branch in sequence.branches:
            # Sequence and branch hold each other until the garbage collector comes, and an n-gram state may hold a
            # document that the next request would go on with.
            branch.drafts = DraftSet((), ())
        session_id = sequence.request.session_id
        if session_id is not None and self._sessions.get(session_id) is sequence:
            del self._sessions[session_id]
