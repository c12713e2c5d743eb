"""A decode step: the method of Shen et al. (2024) for every running branch at once."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from superdraft.decoding.engine.faults import Faults
from superdraft.decoding.engine.sequence import Branch
from superdraft.decoding.engine.sequence import Sequence as Request
from superdraft.decoding.errors import SequenceFailedError
from superdraft.decoding.method.draft_set import Children, Draft, DraftSet, Floats, best_first
from superdraft.decoding.method.penalties import apply_logit_bias, penalise
from superdraft.decoding.method.sampling import nucleus_sample
from superdraft.decoding.method.scoring import Candidates, cut, interpolate, tempered_logprobs
from superdraft.decoding.method.superposition import draft_weights, superpose
from superdraft.decoding.model.runner import ModelRunner

NOT_NUMBERS = "The model's output holds values that are not numbers; this request cannot go on."


@dataclass(frozen=True, slots=True)
class Row:
    """A branch, and the row of the step's logits from which its next tokens come."""

    branch: Branch
    index: int


class DecodeStep:
    """The five lines of the method, `forward` and `choose`, over a batch of branches.

    A fault of one request, such as an n-gram model that raises, ends that request alone: it goes to `faults`.

    Args:
        runner: the model and its KV cache.
        suppressed_token_ids: tokens that no draft may contain.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        runner: ModelRunner,
        suppressed_token_ids: Sequence[int],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._runner = runner
        self._suppressed = torch.tensor(suppressed_token_ids, dtype=torch.long, device=runner.device)
        self._clock = clock

    @torch.inference_mode()
    def forward(self, branches: Sequence[Branch]) -> Tensor:
        """Superpose and run: one row and one new position per branch, whatever k is.

        Returns:
            Logits, float32, shape [B, V].
        """
        last_tokens = [token_id for branch in branches for token_id in branch.last_token_ids]
        weights = [draft_weights([draft.logprob for draft in branch.drafts.alive]) for branch in branches]
        # x~ = sum_i gamma_i E[last token of draft i], gamma_i = p_i / sum_j p_j (eq. 3, 4)
        superposed = superpose(self._runner.embed(last_tokens), weights)
        # f(x~): every draft's next token comes from this one distribution
        return self._runner.decode(superposed, [branch.num_computed for branch in branches]).float()

    @torch.inference_mode()
    def choose(self, rows: Sequence[Row], logits: Tensor, faults: Faults) -> None:
        """Cut, interpolate and select: every alive draft of every branch is replaced by its best children.

        Args:
            rows: the branches, whose `drafts` and `num_steps` change.
            logits: float32, shape [B, V]. Changed in place.
            faults: takes what goes wrong.
        """
        # the m most probable tokens, which the k drafts of a branch share
        candidates = self._cut(rows, logits)
        # ln p_f = (1 - alpha) ln p + alpha ln p_ngram, the n-gram model seeing each draft's own tokens (eq. 6, 7)
        children = self._interpolate(rows, candidates, faults)
        # the k best of the k*m children live on
        self._select(rows, children, logits, candidates, faults)

    def _cut(self, rows: Sequence[Row], logits: Tensor) -> Candidates:
        for row in {row.index: row for row in rows}.values():
            bias = row.branch.sequence.params.logit_bias
            if bias:
                logits[row.index] = apply_logit_bias(logits[row.index], bias)
        return cut(logits, max(row.branch.sequence.params.num_candidates for row in rows), self._suppressed)

    def _interpolate(self, rows: Sequence[Row], candidates: Candidates, faults: Faults) -> dict[Branch, Children]:
        """The children of every branch that is not sampled. Branches of one shape are scored in one operation."""
        groups: dict[tuple[int, int, bool, bool], list[Row]] = {}
        for row in rows:
            params = row.branch.sequence.params
            with faults.ending(row.branch.sequence):
                if not candidates.are_numbers(row.index):
                    raise SequenceFailedError(NOT_NUMBERS)
                if not row.branch.is_sampled:
                    shape = len(row.branch.drafts.alive), min(params.num_candidates, candidates.token_ids.shape[-1])
                    key = *shape, row.branch.sequence.scorer is not None, params.has_penalties
                    groups.setdefault(key, []).append(row)
        children: dict[Branch, Children] = {}
        for (_, num_candidates, _, _), members in groups.items():
            self._interpolate_group(members, num_candidates, candidates, children, faults)
        return children

    def _interpolate_group(
        self,
        rows: Sequence[Row],
        num_candidates: int,
        candidates: Candidates,
        children: dict[Branch, Children],
        faults: Faults,
    ) -> None:
        """Score G branches with k alive drafts and m candidates each; adds them to `children`."""
        token_ids = {row.branch: candidates.token_ids[row.index, :num_candidates].tolist() for row in rows}
        ngram = None
        if rows[0].branch.sequence.scorer is not None:
            found: dict[Branch, list[list[float]]] = {}
            for branch in (row.branch for row in rows):
                with faults.ending(branch.sequence):
                    alive = branch.drafts.alive
                    shared = [token_ids[branch]] * len(alive)
                    found[branch] = self.ngram_logprobs(branch.sequence, alive, shared)
            rows = [row for row in rows if row.branch in found]
            if not rows:
                return
            ngram = np.asarray(list(found.values()))
        requests = [row.branch.sequence.params for row in rows]
        indices = [row.index for row in rows]
        logits = candidates.logits[indices, np.newaxis, :num_candidates]  # [G, 1, m]
        if requests[0].has_penalties:
            logits = np.stack([_penalised(row, token_ids[row.branch], logits[i, 0]) for i, row in enumerate(rows)])
        alpha, tau, penalty = (
            np.array([getattr(params, name) for params in requests])[:, np.newaxis, np.newaxis]
            for name in ("alpha", "tau", "penalty")
        )
        ln_p_f = interpolate(tempered_logprobs(logits, tau), ngram, alpha, penalty)
        parents = np.array([[draft.logprob for draft in row.branch.drafts.alive] for row in rows])
        scores = (parents[:, :, np.newaxis] + ln_p_f).reshape(len(rows), -1)
        order = best_first(scores)
        for i, row in enumerate(rows):
            alive = row.branch.drafts.alive
            logprobs = candidates.logprobs[row.index]
            children[row.branch] = Children(
                alive, [token_ids[row.branch]] * len(alive), [logprobs] * len(alive), scores[i], order[i]
            )

    def ngram_logprobs(
        self, sequence: Request, drafts: Sequence[Draft], candidates: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """Each draft's own n-gram log-probabilities of its candidates, shape [k, m]."""
        assert sequence.scorer is not None
        started_s = self._clock()
        logprobs = sequence.scorer.score([draft.ngram_state for draft in drafts], candidates)
        sequence.ngram_s += self._clock() - started_s
        return logprobs

    def _select(
        self,
        rows: Sequence[Row],
        children: dict[Branch, Children],
        logits: Tensor,
        candidates: Candidates,
        faults: Faults,
    ) -> None:
        sampled = self._sample([row for row in rows if row.branch.is_sampled], logits, candidates)
        for branch in (row.branch for row in rows):
            with faults.ending(branch.sequence):
                if branch in children:
                    self.settle(branch, select(branch, branch.drafts, children[branch]))
                elif branch in sampled:
                    self.settle(branch, _only_child(branch, *sampled[branch]))

    def _sample(self, rows: Sequence[Row], logits: Tensor, candidates: Candidates) -> dict[Branch, tuple[int, float]]:
        """A token from the nucleus of each branch's only draft, or the most probable one, and its ln p."""
        rows = [row for row in rows if candidates.are_numbers(row.index)]
        if not rows:
            return {}
        own = logits[[row.index for row in rows]]
        for row, values in zip(rows, own, strict=True):
            params = row.branch.sequence.params
            if params.has_penalties:
                for token_id, count in Counter(row.branch.drafts.alive[0].token_ids).items():
                    values[token_id] -= count * params.frequency_penalty + params.presence_penalty
        requests = [row.branch.sequence.params for row in rows]
        temperatures, top_ps = [one.sampling_temperature for one in requests], [one.top_p for one in requests]
        uniforms = torch.tensor([row.branch.rng.random() for row in rows], dtype=torch.float64, device=own.device)
        chosen = nucleus_sample(own, temperatures, top_ps, uniforms).tolist()
        # The model's own ln p: neither temperature nor penalties count in it.
        normalisers = (candidates.logits[:, 0] - candidates.logprobs[:, 0])[[row.index for row in rows]]
        values = logits[[row.index for row in rows], chosen].double().cpu().numpy() - normalisers
        return {row.branch: (token, float(p)) for row, token, p in zip(rows, chosen, values, strict=True)}

    def settle(self, branch: Branch, chosen: DraftSet) -> None:
        """Make what was chosen the drafts of a branch; each child's n-gram model sees the child's last token."""
        scorer = branch.sequence.scorer
        if scorer is not None:
            started_s = self._clock()
            alive = tuple(
                replace(draft, ngram_state=scorer.advance(draft.ngram_state, draft.token_ids[-1]))
                for draft in chosen.alive
            )
            branch.sequence.ngram_s += self._clock() - started_s
            chosen = DraftSet(alive, chosen.finished)
        branch.drafts = chosen
        branch.num_steps += 1


def select(branch: Branch, drafts: DraftSet, children: Children) -> DraftSet:
    """The children that live on, by the request's selection rule."""
    sequence, params = branch.sequence, branch.sequence.params
    num_drafts = params.drafts_per_branch
    if params.divides:
        num_drafts -= sum(other.drafts.num_shown for other in sequence.branches if other is not branch)
    return params.rule.select(drafts, children, sequence.extend, num_drafts)


def _only_child(branch: Branch, token_id: int, logprob: float) -> DraftSet:
    """The draft set of a branch that samples: its draft with one more token."""
    (draft,) = branch.drafts.alive
    return drafts_of(branch.sequence.extend(draft, token_id, draft.logprob + logprob, logprob))


def drafts_of(child: Draft) -> DraftSet:
    """The draft set that has one draft, alive or finished."""
    return DraftSet((child,)) if child.finish_reason is None else DraftSet((), (child,))


def _penalised(row: Row, token_ids: Sequence[int], logits: Floats) -> Floats:
    params = row.branch.sequence.params
    drafts = [draft.token_ids for draft in row.branch.drafts.alive]
    return penalise(logits, token_ids, drafts, params.frequency_penalty, params.presence_penalty)
