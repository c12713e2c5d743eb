"""The choice of a branch's next tokens from the model's logits, for every strategy."""

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from superdraft.decoding.engine.sequence import Branch
from superdraft.decoding.engine.sequence import Sequence as Request
from superdraft.decoding.errors import SequenceFailedError
from superdraft.decoding.method.draft_set import Draft, DraftSet, advance, advance_distinct, scored
from superdraft.decoding.method.penalties import apply_logit_bias, penalise
from superdraft.decoding.method.sampling import nucleus_sample
from superdraft.decoding.method.scoring import (
    Candidates,
    Floats,
    interpolate,
    tempered_logprobs,
    top_candidates,
)
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.text.covers import Covers, Start, Stem, UnrunStem
from superdraft.decoding.text.healing import TokenIndex
from superdraft.decoding.text.tokenizer import Tokenizer

NUM_SAMPLED_STEPS = 3
"""Tokens that each branch samples before superposed drafting starts, with strategy "sample+superposed"."""

_NOT_NUMBERS = "The model's output holds values that are not numbers; this request cannot go on."


class TokenChooser:
    """Chooses next tokens. Holds what is the same for all requests and changes nothing but the branches it is given.

    Args:
        tokenizer: the model's tokenizer.
        device: where the logits are.
        clock: monotonic seconds.

    """

    def __init__(
        self, tokenizer: Tokenizer, device: torch.device, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._clock = clock
        suppressed = tokenizer.suppressed_token_ids
        self._tokenizer = tokenizer
        self._suppressed = torch.tensor(suppressed, dtype=torch.long, device=device)
        self._token_index = TokenIndex.of(tokenizer)
        tokenizer.encode_inside("")  # what it prepares takes longer than a request

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
        """
        if not shared.token_ids:
            raise SequenceFailedError(_NOT_NUMBERS)
        if _samples(branch):
            chosen = self._sample(branch, logits, normaliser=float(shared.logits[0] - shared.logprobs[0]))
        else:
            chosen = self._superposed(branch, shared)
        self._settle(branch, chosen)

    @torch.inference_mode()
    def covers(self, sequence: Request, logits: Tensor) -> Covers:
        """The covers of a prompt that is healed.

        Args:
            sequence: whose prompt; `healing` is set.
            logits: the model's output after the shared tokens and after each of the others, shape [T + 1, V].

        Raises:
            SequenceFailedError: the model's output is not numbers.
        """
        assert sequence.healing is not None
        covers = Covers.of_prompt(
            sequence.healing,
            self._tokenizer,
            self._token_index,
            logits,
            self._biased(logits, sequence),
        )
        if not math.isfinite(covers.log_total):
            raise SequenceFailedError(_NOT_NUMBERS)
        return covers

    def add_stem(self, covers: Covers, stem: UnrunStem, sequence: Request, logits: Tensor) -> None:
        """Give covers the model's output after a stem that has been run, shape [V]."""
        covers.add(stem, logits, self._biased(logits, sequence))

    def _biased(self, logits: Tensor, sequence: Request) -> Tensor:
        bias = sequence.params.logit_bias
        return apply_logit_bias(logits, bias) if bias else logits

    def start_alternatives(self, covers: Covers, num: int) -> tuple[tuple[int, str, float], ...]:
        """The most probable starts: token id, text beyond what was typed, log-probability given the typed text."""
        alternatives = []
        for start in covers.starts(num) if num else []:
            data = self._tokenizer.token_bytes[start.token_id][len(covers.stems[start.stem].rest) :]
            text = data.decode("utf-8", errors="replace") or self._tokenizer.token_text(start.token_id)
            alternatives.append((start.token_id, text, start.logprob - covers.log_total))
        return tuple(alternatives)

    @torch.inference_mode()
    def choose_start(self, branch: Branch, covers: Covers) -> None:
        """Give a branch of a healed prompt its drafts' first tokens, each the end of a cover.

        The drafts of one branch may follow different stems (`Draft.path`): it is for the caller to divide them.
        """
        chosen = self._sampled_start(branch, covers) if _samples(branch) else self._superposed_starts(branch, covers)
        self._settle(branch, chosen)

    def _superposed_starts(self, branch: Branch, covers: Covers) -> DraftSet:
        """The k best starts, by the rule of every other step; the parents are the stems."""
        sequence, params = branch.sequence, branch.sequence.params
        num = params.num_candidates
        if params.selection == "distinct":  # it begins the k best; the others are for those that are equal as text
            num = min(num, 2 * params.num_drafts)
        starts = covers.starts(num)
        if params.num_rows == 1:  # one row holds one tokenisation of what was typed
            best = starts[: params.num_drafts]
            weights = {stem: sum(math.exp(one.logprob) for one in best if one.stem == stem) for stem in _stems_of(best)}
            starts = covers.starts(num, max(weights, key=lambda stem: weights[stem]))
        roots, candidates = [], []
        for stem in _stems_of(starts):
            own = [start for start in starts if start.stem == stem]
            logprobs = np.array([start.logprob for start in own])
            roots.append(self._root(branch, covers.stems[stem]))
            candidates.append(Candidates([start.token_id for start in own], logprobs, logprobs - covers.log_total))
        # All starts compete: one softmax over those of all stems.
        lm_logprobs = np.split(
            tempered_logprobs(np.concatenate([row.logits for row in candidates]), params.tau),
            np.cumsum([len(row.token_ids) for row in candidates])[:-1],
        )
        ngram_logprobs = self._ngram_logprobs(sequence, roots, candidates)
        scores = [
            interpolate(row, None if ngram_logprobs is None else np.asarray([ngram]), params.alpha, params.penalty)[0]
            for row, ngram in zip(lm_logprobs, ngram_logprobs or [[]] * len(roots), strict=True)
        ]
        return _keep(branch, DraftSet(tuple(roots)), candidates, scores)

    def _sampled_start(self, branch: Branch, covers: Covers) -> DraftSet:
        """One start drawn from all covers; "greedy" takes the most probable one."""
        params, start = branch.sequence.params, None
        while start is None:
            shares = torch.from_numpy(covers.shares())
            index, logprob = nucleus_sample(shares, 0.0, temperature_of(params), params.top_p, branch.rng)
            start = covers.start_at(index)
        root = self._root(branch, covers.stems[start.stem])
        child = scored(branch.sequence.extend(root, start.token_id), logprob, logprob)
        return DraftSet((child,)) if child.finish_reason is None else DraftSet((), (child,))

    def _root(self, branch: Branch, stem: Stem) -> Draft:
        """The empty draft after a stem."""
        sequence = branch.sequence
        state = None
        if sequence.scorer is not None:
            state = sequence.scorer.initial_state([*sequence.shared_token_ids, *stem.path])
        return Draft(ngram_state=state, path=stem.path, rest=stem.rest)

    def _settle(self, branch: Branch, chosen: DraftSet) -> None:
        """Make what was chosen the drafts of a branch."""
        branch.drafts = self._with_ngram_states(branch, chosen)
        branch.num_steps += 1

    def _superposed(self, branch: Branch, shared: Candidates) -> DraftSet:
        """Score the children of all drafts and keep the best k."""
        sequence, alive = branch.sequence, branch.drafts.alive
        params = sequence.params
        candidates = [_penalised(draft, shared, params) for draft in alive]
        ngram_logprobs = self._ngram_logprobs(sequence, alive, candidates)
        scores = _scores(candidates, ngram_logprobs, params.alpha, params.tau, params.penalty)
        return _keep(branch, branch.drafts, candidates, scores)

    def _ngram_logprobs(
        self, sequence: Request, drafts: Sequence[Draft], candidates: Sequence[Candidates]
    ) -> list[list[float]] | None:
        if sequence.scorer is None:
            return None
        started_s = self._clock()
        states = [draft.ngram_state for draft in drafts]
        logprobs = sequence.scorer.score(states, [row.token_ids for row in candidates])
        sequence.ngram_s += self._clock() - started_s
        return logprobs

    def _sample(self, branch: Branch, logits: Tensor, normaliser: float) -> DraftSet:
        """Give the branch's only draft one token from the nucleus; "greedy" takes the most probable one."""
        params = branch.sequence.params
        (draft,) = branch.drafts.alive
        logits = logits.index_fill(0, self._suppressed, float("-inf"))
        if params.frequency_penalty or params.presence_penalty:
            for token_id, count in Counter(draft.token_ids).items():
                logits[token_id] -= count * params.frequency_penalty + params.presence_penalty
        token_id, logprob = nucleus_sample(logits, normaliser, temperature_of(params), params.top_p, branch.rng)
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


def _samples(branch: Branch) -> bool:
    """Whether the branch's next token is sampled, or greedy, and so has one draft."""
    strategy = branch.sequence.params.strategy
    if strategy == "sample+superposed":
        return branch.num_steps < NUM_SAMPLED_STEPS
    return strategy in ("sample", "greedy")


def temperature_of(params: GenerationParams) -> float:
    """That of the next sampled token; "greedy" is sampling at temperature 0."""
    return 0.0 if params.strategy == "greedy" else params.temperature


def _drafts_wanted(branch: Branch) -> int:
    """With the selection "distinct": k without the drafts of the request's other branches."""
    sequence = branch.sequence
    others = sum(one.drafts.num_shown for one in sequence.branches if one is not branch)
    return sequence.params.num_drafts - others


def _keep(branch: Branch, drafts: DraftSet, candidates: Sequence[Candidates], scores: Sequence[Floats]) -> DraftSet:
    """The children that live on, by the request's selection rule."""
    sequence = branch.sequence
    if sequence.params.selection == "distinct":
        return advance_distinct(drafts, candidates, scores, _drafts_wanted(branch), sequence.extend)
    return advance(drafts, candidates, scores, sequence.params.drafts_per_branch, sequence.extend)


def _penalised(draft: Draft, shared: Candidates, params: GenerationParams) -> Candidates:
    """What one draft may go on with; the shared object itself unless the draft has penalties of its own."""
    if params.frequency_penalty or params.presence_penalty:
        return penalise(shared, draft.token_ids, params.frequency_penalty, params.presence_penalty)
    return shared


def _stems_of(starts: Sequence[Start]) -> list[int]:
    return sorted({start.stem for start in starts})


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
