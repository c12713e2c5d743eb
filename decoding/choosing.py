"""The choice of a branch's next tokens from the model's logits, for every strategy."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from superdraft.decoding.draft_set import Draft, DraftSet, advance, advance_distinct, scored
from superdraft.decoding.errors import SequenceFailedError
from superdraft.decoding.penalties import apply_logit_bias, penalise
from superdraft.decoding.sampling import nucleus_sample
from superdraft.decoding.scoring import (
    Candidates,
    Floats,
    candidates_among,
    interpolate,
    tempered_logprobs,
    top_candidates,
)
from superdraft.decoding.sequence import Branch
from superdraft.decoding.token_healing import TokenIndex
from superdraft.decoding.tokenizer import Tokenizer

NUM_SAMPLED_STEPS = 3
"""Tokens that each branch samples before superposed drafting starts, with strategy "sample+superposed"."""


class NothingMatchesError(Exception):
    """Token healing: no token continues what was typed."""


class TokenChooser:
    """Chooses next tokens. Holds what is the same for all requests and changes nothing but the branches it is given.

    Args:
        tokenizer: the model's tokenizer.
        device: where the logits are.
        clock: monotonic seconds.

    Attributes:
        token_index: finds the tokens that continue a word.
    """

    def __init__(
        self, tokenizer: Tokenizer, device: torch.device, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._clock = clock
        suppressed = tokenizer.suppressed_token_ids
        self._suppressed = torch.tensor(suppressed, dtype=torch.long, device=device)
        self.token_index = TokenIndex(tokenizer.token_bytes, {*suppressed, *tokenizer.eos_token_ids})

    @torch.inference_mode()
    def shared_candidates(self, logits: Tensor, branches: Sequence[Branch]) -> list[Candidates]:
        """The m most probable tokens of every branch, with its logit bias in `logits` from here on.

        Args:
            logits: float32, shape [B, V]; row i belongs to `branches[i]`. Changed in place.
            branches: length B.
        """
        for row, branch in zip(logits, branches, strict=True):
            if branch.sequence.params.logit_bias:
                row.copy_(apply_logit_bias(row, branch.sequence.params.logit_bias))
        return top_candidates(logits, [branch.sequence.params.num_candidates for branch in branches], self._suppressed)

    @torch.inference_mode()
    def choose(self, branch: Branch, logits: Tensor, shared: Candidates) -> None:
        """Give every draft of a branch one more token.

        Args:
            branch: whose `drafts` and counters change.
            logits: its row, shape [V].
            shared: its most probable tokens.

        Raises:
            SequenceFailedError: the model's output is not numbers.
            NothingMatchesError: token healing has no way on; nothing was changed.
        """
        if not shared.token_ids:
            raise SequenceFailedError(
                "The model's output holds values that are not numbers; this request cannot go on."
            )
        heals = all(draft.healing for draft in branch.drafts.alive)
        if samples(branch):
            chosen = self._sample(branch, logits, normaliser=float(shared.logits[0] - shared.logprobs[0]))
        else:
            chosen = self._superposed(branch, logits, shared)
        self.settle(branch, chosen)
        branch.num_healing_steps += heals

    def settle(self, branch: Branch, chosen: DraftSet) -> None:
        """Make what was chosen the drafts of a branch."""
        branch.drafts = self._with_ngram_states(branch, chosen)
        branch.num_steps += 1

    def _superposed(self, branch: Branch, logits: Tensor, shared: Candidates) -> DraftSet:
        """Score the children of all drafts and keep the best k."""
        sequence, alive = branch.sequence, branch.drafts.alive
        params = sequence.params
        candidates = [self._candidates(branch, draft, logits, shared) for draft in alive]
        if not any(row.token_ids for row in candidates):
            raise NothingMatchesError
        ngram_logprobs: list[list[float]] | None = None
        if sequence.scorer is not None:
            started_s = self._clock()
            states = [draft.ngram_state for draft in alive]
            ngram_logprobs = sequence.scorer.score(states, [row.token_ids for row in candidates])
            sequence.ngram_s += self._clock() - started_s
        scores = _scores(candidates, ngram_logprobs, params.alpha, params.tau, params.penalty)
        if params.selection == "distinct":
            num_drafts = drafts_wanted(branch)
            return advance_distinct(branch.drafts, candidates, scores, num_drafts, sequence.extend)
        return advance(branch.drafts, candidates, scores, params.drafts_per_branch, sequence.extend)

    def _candidates(self, branch: Branch, draft: Draft, logits: Tensor, shared: Candidates) -> Candidates:
        """What one draft may go on with; the shared object itself unless the draft has rules of its own."""
        params = branch.sequence.params
        row = shared
        if draft.healing:
            matching = self.token_index.matching(draft.healing)
            # How probable it is that the typed word was typed says nothing of how it ends.
            is_given = params.selection == "distinct"
            row = candidates_among(logits, matching, params.num_candidates, is_given=is_given)
        if params.frequency_penalty or params.presence_penalty:
            row = penalise(row, draft.token_ids, params.frequency_penalty, params.presence_penalty)
        return row

    def _sample(self, branch: Branch, logits: Tensor, normaliser: float) -> DraftSet:
        """Give the branch's only draft one token from the nucleus; "greedy" takes the most probable one."""
        params = branch.sequence.params
        (draft,) = branch.drafts.alive
        logits = logits.index_fill(0, self._suppressed, float("-inf"))
        if draft.healing:
            matching = torch.from_numpy(self.token_index.matching(draft.healing)).to(logits.device)
            allowed = torch.full_like(logits, float("-inf"))
            allowed[matching] = logits[matching]
            if not bool(torch.isfinite(allowed).any()):
                raise NothingMatchesError
            logits = allowed
        if params.frequency_penalty or params.presence_penalty:
            for token_id, count in Counter(draft.token_ids).items():
                logits[token_id] -= count * params.frequency_penalty + params.presence_penalty
        temperature = 0.0 if params.strategy == "greedy" else params.temperature
        token_id, logprob = nucleus_sample(logits, normaliser, temperature, params.top_p, branch.rng)
        child = scored(branch.sequence.extend(draft, token_id), draft.logprob + logprob, logprob)
        return DraftSet((child,)) if child.finish_reason is None else DraftSet((), (child,))

    def _with_ngram_states(self, branch: Branch, drafts: DraftSet) -> DraftSet:
        """Each child's n-gram model has seen its own last token."""
        scorer = branch.sequence.scorer
        if scorer is None:
            return drafts
        started_s = self._clock()
        alive = tuple(
            replace(draft, ngram_state=scorer.advance(draft.ngram_state, draft.token_ids[-1])) for draft in drafts.alive
        )
        branch.sequence.ngram_s += self._clock() - started_s
        return DraftSet(alive, drafts.finished)


def samples(branch: Branch) -> bool:
    """Whether the branch's next token is sampled, or greedy, and so has one draft."""
    strategy = branch.sequence.params.strategy
    if strategy == "sample+superposed":
        return branch.num_new < NUM_SAMPLED_STEPS
    return strategy in ("sample", "greedy")


def drafts_wanted(branch: Branch) -> int:
    """With the selection "distinct": k without the drafts of the request's other branches."""
    sequence = branch.sequence
    others = sum(one.drafts.num_shown for one in sequence.branches if one is not branch)
    return sequence.params.num_drafts - others


def _scores(
    candidates: Sequence[Candidates], ngram_logprobs: list[list[float]] | None, alpha: float, tau: float, penalty: float
) -> list[Floats]:
    """Ln p_f for each draft's candidates. Drafts that share a candidate list are scored together."""
    groups: dict[int, list[int]] = {}
    for index, row in enumerate(candidates):
        groups.setdefault(id(row), []).append(index)
    scores: list[Floats] = [np.empty(0)] * len(candidates)
    for members in groups.values():
        shared = candidates[members[0]]
        if not shared.token_ids:
            continue
        ngram = None if ngram_logprobs is None else np.asarray([ngram_logprobs[index] for index in members])
        rows = interpolate(tempered_logprobs(shared.logits, tau), ngram, alpha, penalty)
        for place, index in enumerate(members):
            scores[index] = rows[place if len(rows) > 1 else 0]
    return scores
