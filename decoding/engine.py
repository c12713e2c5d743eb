"""Superposed Decoding (Shen et al., NeurIPS 2024, arXiv 2405.18400) over a batch of requests.

One engine step is one forward pass of the model:

- a *prefill* runs a prompt and chooses each draft's first token, or
- a *decode step* feeds every running request **one** superposed embedding, the weighted sum of its k drafts' last
tokens, and
  so needs one row and one KV-cache slot a request, whatever k is.

Either way the model's m most probable next tokens are shared by the k drafts of a request; the n-gram model, which sees
each draft's real tokens, tells which of the k*m children are coherent; the best k live on.

The engine belongs to one thread. Nothing here locks.
"""

import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from superdraft.decoding.admission import check_limits, fit_to_context, prompt_token_ids
from superdraft.decoding.config import EngineConfig
from superdraft.decoding.draft_set import Draft, DraftSet, advance
from superdraft.decoding.draft_text import TokenAppender
from superdraft.decoding.errors import InvalidRequestError, SequenceFailedError, SuperdraftError
from superdraft.decoding.model_loader import LoadedModel
from superdraft.decoding.model_runner import ModelRunner
from superdraft.decoding.ngram import NgramScorer
from superdraft.decoding.outputs import DraftOutput, GenerationOutput, StepOutput, Timings, Usage
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.ranking import rank
from superdraft.decoding.scheduler import Batch, Scheduler
from superdraft.decoding.scoring import Candidates, interpolate, tempered_logprobs, top_candidates
from superdraft.decoding.sequence import Sequence
from superdraft.decoding.superposition import superpose
from superdraft.decoding.tokenizer import Tokenizer, valid_utf8_prefix
from superdraft.decoding.verification import verify


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
        self._runner = runner
        self._clock = clock
        self._scheduler = Scheduler(runner.num_slots)
        self._sequences: dict[str, Sequence] = {}
        self._suppressed = torch.tensor(tokenizer.suppressed_token_ids, dtype=torch.long, device=runner.device)

    @property
    def has_unfinished(self) -> bool:
        """Whether a step has anything to do."""
        return bool(self._sequences)

    def add_request(
        self, request_id: str, prompt: str | Seq[int], params: GenerationParams, scorer: NgramScorer[Any] | None = None
    ) -> None:
        """Queue a request.

        Args:
            request_id: a name that no unfinished request has.
            prompt: text, or token ids that are fed as they are.
            params: what is wanted.
            scorer: the n-gram model; None means the language model alone.

        Raises:
            InvalidRequestError: the prompt or a parameter is outside this engine's limits.
        """
        if request_id in self._sequences:
            raise InvalidRequestError(f"A request {request_id!r} is running; use another id.", param="request_id")
        check_limits(params, self.config, self.max_model_len)
        token_ids = prompt_token_ids(prompt, self.tokenizer)
        token_ids, warnings = fit_to_context(
            token_ids, params.max_tokens, self.max_model_len, self.config.prompt_too_long
        )
        stop = tuple(string.encode() for string in params.stop)
        extend = TokenAppender(self.tokenizer.token_bytes, self.tokenizer.eos_token_ids, stop)
        if params.alpha == 0:
            scorer = None
        drafts = DraftSet((Draft(ngram_state=scorer.initial_state(token_ids)),)) if scorer is not None else DraftSet()
        sequence = Sequence(request_id, token_ids, params, scorer, extend, self._clock(), warnings, drafts=drafts)
        self._sequences[request_id] = sequence
        self._scheduler.add(sequence)

    def cancel(self, request_id: str) -> bool:
        """Forget a request at once; no output follows for it. False if it is not here (any more)."""
        sequence = self._sequences.get(request_id)
        if sequence is None:
            return False
        self._release(sequence)
        return True

    def step(self) -> list[StepOutput]:
        """One forward pass: a prompt, or one more token for the drafts of every running request.

        Returns:
            An output for each request that ended in this step. A fault of one request ends that one alone.
        """
        batch = self._scheduler.schedule()
        if batch is None:
            return []
        started_s = self._clock()
        outcomes: list[Exception | None]
        try:
            rows = self._forward(batch)
        except Exception as fault:  # out of memory, say: all that were in this pass are lost, others are not
            outcomes = [fault] * len(batch.sequences)
        else:
            outcomes = [self._try_choose(sequence, row) for sequence, row in zip(batch.sequences, rows, strict=True)]
        elapsed_s = self._clock() - started_s
        outputs = []
        for sequence, error in zip(batch.sequences, outcomes, strict=True):
            if batch.is_prefill:
                sequence.start_s, sequence.prefill_s = started_s, elapsed_s
            else:
                sequence.decode_s += elapsed_s
            if error is not None or sequence.is_done:
                outputs.append(self._finish(sequence, error))
        return outputs

    def generate(
        self, prompt: str | Seq[int], params: GenerationParams, scorer: NgramScorer[Any] | None = None
    ) -> GenerationOutput:
        """Run one request to its end, for callers that have the engine to themselves; else as `add_request`."""
        self.add_request("generate", prompt, params, scorer)
        while True:
            for step_output in self.step():
                if step_output.error is not None:
                    raise step_output.error
                if step_output.output is not None:
                    return step_output.output

    # One step of the method

    def _forward(self, batch: Batch) -> list[Candidates]:
        """Run the model for a batch; every sequence's m most probable next tokens."""
        if batch.is_prefill:
            (sequence,) = batch.sequences
            logits = self._runner.prefill(sequence.slot or 0, sequence.prompt_token_ids)
            sequence.num_computed = len(sequence.prompt_token_ids)
        else:
            last_tokens = [draft.token_ids[-1] for sequence in batch.sequences for draft in sequence.drafts.alive]
            weights = [sequence.drafts.weights for sequence in batch.sequences]
            superposed = superpose(self._runner.embed(last_tokens), weights)
            logits = self._runner.decode(superposed, [sequence.num_computed for sequence in batch.sequences])
            for sequence in batch.sequences:
                sequence.num_computed += 1
                sequence.forward_rows += 1
        nums = [sequence.params.num_candidates for sequence in batch.sequences]
        return top_candidates(logits, nums, self._suppressed)

    def _try_choose(self, sequence: Sequence, candidates: Candidates) -> Exception | None:
        try:
            if not sequence.is_done:  # max_tokens may be 0: then the prompt's pass was all
                self._choose(sequence, candidates)
        except Exception as error:  # an n-gram model from outside may raise anything
            return error
        return None

    def _choose(self, sequence: Sequence, candidates: Candidates) -> None:
        """Score the children of the sequence's drafts and keep the best k."""
        if not candidates.token_ids:
            raise SequenceFailedError(
                "The model's output holds values that are not numbers; this request cannot go on."
            )
        params, scorer, alive = sequence.params, sequence.scorer, sequence.drafts.alive
        ngram_logprobs = None
        if scorer is not None:
            started_s = self._clock()
            states = [draft.ngram_state for draft in alive]
            ngram_logprobs = np.asarray(scorer.score(states, [candidates.token_ids] * len(alive)), dtype=np.float64)
            sequence.ngram_s += self._clock() - started_s
        lm_logprobs = tempered_logprobs(candidates.logits, params.tau)
        scores = interpolate(lm_logprobs, ngram_logprobs, params.alpha, params.penalty)
        chosen = advance(sequence.drafts, candidates, scores, params.num_drafts, sequence.extend)
        if scorer is not None:
            started_s = self._clock()
            chosen = DraftSet(
                tuple(
                    replace(draft, ngram_state=scorer.advance(draft.ngram_state, draft.token_ids[-1]))
                    for draft in chosen.alive
                ),
                chosen.finished,
            )
            sequence.ngram_s += self._clock() - started_s
        sequence.drafts = chosen
        sequence.num_steps += 1

    # What comes out

    def _finish(self, sequence: Sequence, error: Exception | None) -> StepOutput:
        """The request's one answer; its slot is free afterwards."""
        output = None
        try:
            if error is None:
                output = self._output(sequence)
        except Exception as late_error:
            error = late_error
        self._release(sequence, failed=error is not None)
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
        if failed and sequence.slot is not None:
            self._runner.cache.clear(sequence.slot)
        move = self._scheduler.remove(sequence)
        if move is not None:
            self._runner.cache.move(move.source, move.target, move.length)
        del self._sequences[sequence.request_id]

    def _output(self, sequence: Sequence) -> GenerationOutput:
        params = sequence.params
        drafts = rank(sequence.drafts, params.num_drafts)
        prompt = sequence.prompt_token_ids
        verification = None
        if params.verify_top is not None:
            token_ids = [draft.token_ids for draft in drafts]
            verification = verify(
                self._runner, self.tokenizer, prompt, token_ids, params.verify_top, params.echo_logprobs
            )
            sequence.forward_rows += verification.num_rows
        outputs = tuple(
            DraftOutput(
                index=index,
                text=valid_utf8_prefix(draft.text),
                token_ids=draft.token_ids,
                tokens=tuple(self.tokenizer.token_text(token_id) for token_id in draft.token_ids),
                score=draft.mean_logprob,
                token_logprobs=draft.token_logprobs[: len(draft.token_ids)],
                finish_reason=draft.finish_reason or "length",
                exact_logprobs=verification.drafts[index] if verification else None,
            )
            for index, draft in enumerate(drafts)
        )
        return GenerationOutput(
            request_id=sequence.request_id,
            drafts=outputs,
            usage=Usage(
                prompt_tokens=len(prompt),
                completion_tokens=sum(len(draft.token_ids) for draft in drafts),
                cached_tokens=0,
                forward_rows=sequence.forward_rows,
            ),
            timings=Timings(
                queue_ms=1e3 * (sequence.start_s - sequence.arrival_s),
                prefill_ms=1e3 * sequence.prefill_s,
                decode_ms=1e3 * sequence.decode_s,
                ngram_ms=1e3 * sequence.ngram_s,
                total_ms=1e3 * (self._clock() - sequence.arrival_s),
            ),
            prompt_token_ids=tuple(prompt),
            warnings=tuple(sequence.warnings),
            prompt_logprobs=verification.prompt if verification else None,
        )


def build_engine(loaded: LoadedModel, config: EngineConfig) -> Engine:
    """An engine for a loaded model.

    Raises:
        UnsupportedModelError: Superposed Decoding cannot run on this model.
    """
    context = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
    max_model_len = min(config.max_model_len, context or config.max_model_len)
    runner = ModelRunner(loaded.model, config.num_slots, max_model_len)
    generation = loaded.model.generation_config
    ends = generation.eos_token_id if generation is not None else None
    eos_token_ids = [ends] if isinstance(ends, int) else (ends or [])
    return Engine(runner, Tokenizer(loaded.tokenizer, runner.vocab_size, eos_token_ids), config)
