"""The decode step: the method of Shen et al. (2024) for all running branches at once.

A branch is one row of the model and has k alive drafts. A step gives every draft of every branch one more token:

1. *superpose*: `x~ = sum_i gamma_i E[last token of draft i]` with `gamma_i = p_i / sum_j p_j` (eq. 3 and 4).
2. *forward*: `logits = f(x~)`, one row and one new position per branch, whatever k is.
3. *cut*: `p = softmax(logits / tau)` over the m most probable tokens. The k drafts share these candidates.
4. *interpolate*: `ln p_f = (1 - alpha) ln p + alpha ln p_ngram` (eq. 6; eq. 7 without support). The n-gram model sees
   each draft's own tokens, so the k drafts differ here.
5. *select*: of the k*m children, each with the score `ln p(draft) + ln p_f`, the k best replace the drafts.

`DecodeStep.forward` is lines 1 and 2, `DecodeStep.choose` lines 3 to 5. The first tokens after a prompt are chosen by
`choose` too: the only draft is then the prompt itself. A branch that samples has one draft and goes from line 3 to a
draw from the nucleus.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from superdraft.decoding.engine.faults import Faults
from superdraft.decoding.engine.sequence import Branch, Sequence
from superdraft.decoding.engine.tree import Node
from superdraft.decoding.engine.trees import Trees
from superdraft.decoding.errors import InvalidRequestError, SequenceFailedError, SuperdraftError
from superdraft.decoding.method.draft_set import Children, Draft, DraftSet, Floats, best_first
from superdraft.decoding.method.penalties import apply_logit_bias, penalise
from superdraft.decoding.method.sampling import nucleus_sample
from superdraft.decoding.method.scoring import Candidates, cut, interpolate, joined, tempered_logprobs
from superdraft.decoding.method.superposition import draft_weights, superpose
from superdraft.decoding.model.runner import ModelRunner

KEPT_DEPTH = 2
"""Tokens of a draft whose logits are kept, since what is typed next often ends there."""


@dataclass(frozen=True, slots=True)
class Row:
    """A branch and the logits from which its next tokens are chosen.

    Attributes:
        branch: the branch.
        index: of the logits; those of known nodes come after the others.
        key: `Branch.next_key` before the row was run, under which its candidates are kept; None: they are not.
    """

    branch: Branch
    index: int
    key: int | None = None


@dataclass(frozen=True, slots=True)
class PromptRows:
    """Tokens of a request's prompt to run, and how many of the last ones have logits that are wanted."""

    sequence: Sequence
    token_ids: Seq[int]
    num_logits: int


class DecodeStep:
    """The five lines of the method, over a batch of branches.

    A fault that concerns one request, such as an n-gram model that raises, ends that request alone: `Faults` records
    it, and the other branches continue.

    Args:
        runner: the model and its KV cache.
        trees: where the branches' keys and values are.
        suppressed_token_ids: tokens that no draft may contain.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        runner: ModelRunner,
        trees: Trees,
        suppressed_token_ids: Seq[int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runner = runner
        self._trees = trees
        self._suppressed = torch.tensor(suppressed_token_ids, dtype=torch.long, device=runner.device)
        self._clock = clock

    @torch.inference_mode()
    def forward(self, branches: Seq[Branch], prompts: Seq[PromptRows] = ()) -> Tensor:
        """Superpose and run the model, together with some tokens of prompts.

        Args:
            branches: B branches; those of one request follow one another, since they share what they read.
            prompts: the tokens to run.

        Returns:
            Logits of the branches, then those wanted of each prompt, float32, shape [B + sum of `num_logits`, V].
        """
        segments = [self._trees.next_row(branch) for branch in branches]
        last_tokens = [token_id for branch in branches for token_id in branch.last_token_ids]
        gammas = [draft_weights([draft.logprob for draft in branch.drafts.alive]) for branch in branches]
        tokens = [token_id for prompt in prompts for token_id in prompt.token_ids]
        embeddings = self._runner.embed([*last_tokens, *tokens])
        # 1. x~ = sum_i gamma_i E[last token of draft i]
        superposed = superpose(embeddings[: len(last_tokens)], gammas)
        kept, stop = list(range(len(branches))), len(branches)
        for prompt in prompts:
            segments.append(self._trees.prompt_rows(prompt.sequence, len(prompt.token_ids)))
            stop += len(prompt.token_ids)
            kept += range(stop - prompt.num_logits, stop)
        # 2. f(x~)
        inputs = torch.cat([superposed, embeddings[len(last_tokens) :]])
        return self._runner.forward(segments, inputs, kept).float()

    @torch.inference_mode()
    def choose(self, rows: Seq[Row], logits: Tensor, faults: Faults, known: Seq[Node] = ()) -> None:
        """Cut, interpolate and select: the best children of each branch replace its alive drafts.

        Args:
            rows: the branches, whose `drafts` and `num_steps` change. Several branches of a request may share an index.
            logits: float32, shape [B, V]. Changed in place.
            faults: records the requests that cannot continue.
            known: N nodes whose candidates take the place of logits, with the indices B to B + N - 1.
        """
        # 3. the m most probable tokens of each row
        candidates = self._cut(rows, logits, known)
        # 4. ln p_f = (1 - alpha) ln p + alpha ln p_ngram, for each of the k*m children
        children = self._interpolate(rows, candidates, faults)
        # 5. the k best children
        self._select(rows, children, logits, candidates, faults)

    def _cut(self, rows: Seq[Row], logits: Tensor, known: Seq[Node]) -> Candidates:
        """Apply each request's logit bias, then cut to the largest m of the batch. Rows of real tokens are kept."""
        for row in {row.index: row for row in rows}.values():
            bias = row.branch.sequence.params.logit_bias
            if bias and row.index < len(logits):
                logits[row.index] = apply_logit_bias(logits[row.index], bias)
        parts = [node.candidates for node in known]
        if len(logits):
            num_candidates = max(row.branch.sequence.params.num_candidates for row in rows)
            parts.insert(0, cut(logits, num_candidates, self._suppressed))
        candidates = joined(parts) if len(parts) > 1 else parts[0]
        for row in rows:
            tree, has_bias = row.branch.tree, row.branch.sequence.params.logit_bias
            if row.key is not None and tree is not None and not has_bias and candidates.are_numbers(row.index):
                tree.nodes[row.key] = Node(row.branch.cells[-1], candidates.row(row.index))
                if row.branch.num_steps <= KEPT_DEPTH:
                    self._trees.keep_logits(tree, row.key, logits[row.index])
        return candidates

    def _interpolate(self, rows: Seq[Row], candidates: Candidates, faults: Faults) -> dict[Branch, Children]:
        """The children of every branch that does not sample.

        Branches with equal k and m are scored in one array operation.
        """
        groups: dict[tuple[int, int, bool, bool], list[Row]] = {}
        for row in rows:
            branch, params = row.branch, row.branch.sequence.params
            with faults.ending(branch.sequence):
                _check_numbers(row, candidates)
                if not branch.is_sampled:
                    shape = len(branch.drafts.alive), min(params.num_candidates, candidates.token_ids.shape[-1])
                    key = *shape, branch.sequence.scorer is not None, params.has_penalties
                    groups.setdefault(key, []).append(row)
        children: dict[Branch, Children] = {}
        for (_, num_candidates, has_scorer, _), group in groups.items():
            token_ids = {row.branch: candidates.token_ids[row.index, :num_candidates].tolist() for row in group}
            ngram = None
            if has_scorer:
                scored = self._ngram_logprobs_of_all(token_ids, faults)
                group = [row for row in group if row.branch in scored]
                ngram = np.array(list(scored.values()))
            if group:
                children |= _score(group, token_ids, candidates, ngram)
        return children

    def _ngram_logprobs_of_all(self, token_ids: Mapping[Branch, list[int]], faults: Faults) -> dict[Branch, Floats]:
        """`ngram_logprobs` of each branch whose scorer does not fail."""
        scored: dict[Branch, Floats] = {}
        for branch, shared in token_ids.items():
            with faults.ending(branch.sequence):
                alive = branch.drafts.alive
                scored[branch] = self.ngram_logprobs(branch.sequence, alive, [shared] * len(alive))
        return scored

    def ngram_logprobs(self, sequence: Sequence, drafts: Seq[Draft], candidates: Seq[Seq[int]]) -> Floats:
        """The n-gram model's log-probabilities of each draft's candidates.

        Args:
            sequence: the request, which has a scorer.
            drafts: k drafts.
            candidates: each draft's candidates, at most m.

        Returns:
            Shape [k, m]; rows with fewer candidates are filled with `-inf`.

        Raises:
            SequenceFailedError: the scorer did not return one log-probability per candidate.
        """
        assert sequence.scorer is not None
        started_s = self._clock()
        scores = sequence.scorer.score([draft.ngram_state for draft in drafts], candidates)
        sequence.ngram_s += self._clock() - started_s
        lengths = [len(token_ids) for token_ids in candidates]
        if [len(row) for row in scores] != lengths:
            raise SequenceFailedError("The n-gram model did not return one score per candidate of each draft.")
        widest = max(lengths)
        logprobs = np.array([[*row, *[-np.inf] * (widest - len(row))] for row in scores], dtype=np.float64)
        if not (logprobs < np.inf).all():  # NaN is not less than anything
            raise SequenceFailedError("The n-gram model returned scores that are not numbers.")
        return logprobs

    def _select(
        self,
        rows: Seq[Row],
        children: Mapping[Branch, Children],
        logits: Tensor,
        candidates: Candidates,
        faults: Faults,
    ) -> None:
        """Replace the drafts of each branch by its best children, or by the sampled one."""
        sampled = self._sample([row for row in rows if row.branch.is_sampled], logits, candidates)
        for branch in (row.branch for row in rows):
            with faults.ending(branch.sequence):
                if branch in children:
                    self.settle(branch, select(branch, branch.drafts, children[branch]))
                elif branch in sampled:
                    self.settle(branch, _only_child(branch, *sampled[branch]))

    def _sample(self, rows: Seq[Row], logits: Tensor, candidates: Candidates) -> dict[Branch, tuple[int, float]]:
        """For each branch a token drawn from the nucleus (at temperature 0 the most probable one), and its ln p."""
        rows = [row for row in rows if candidates.are_numbers(row.index)]
        if not rows:
            return {}
        indices = [row.index for row in rows]
        requests = [row.branch.sequence.params for row in rows]
        own = logits[indices]  # a copy: penalties are subtracted for this draft only
        for row, params, values in zip(rows, requests, own, strict=True):
            if params.has_penalties:
                for token_id, count in Counter(row.branch.drafts.alive[0].token_ids).items():
                    values[token_id] -= count * params.frequency_penalty + params.presence_penalty
        temperatures, top_ps = [one.sampling_temperature for one in requests], [one.top_p for one in requests]
        uniforms = torch.tensor([row.branch.rng.random() for row in rows], dtype=torch.float64, device=own.device)
        chosen = nucleus_sample(own, temperatures, top_ps, uniforms).tolist()
        # The reported ln p is the model's own: neither temperature nor penalties change it.
        normalisers = candidates.logits[indices, 0] - candidates.logprobs[indices, 0]
        logprobs = logits[indices, chosen].double().cpu().numpy() - normalisers
        return {row.branch: (token, float(p)) for row, token, p in zip(rows, chosen, logprobs, strict=True)}

    def settle(self, branch: Branch, chosen: DraftSet) -> None:
        """Make `chosen` the drafts of a branch, and advance the n-gram state of each by its last token."""
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


def no_token(sequence: Sequence, *, is_forbidden: bool) -> SuperdraftError:
    """The error of a request for which no next token can be chosen.

    Args:
        sequence: the request.
        is_forbidden: the model's output is in order, but no token is left to choose from.
    """
    if is_forbidden and sequence.params.logit_bias:
        return InvalidRequestError("logit_bias forbids every token that could come next.", param="logit_bias")
    return SequenceFailedError("The model's output holds values that are not numbers; this request cannot continue.")


def _check_numbers(row: Row, candidates: Candidates) -> None:
    if not candidates.are_numbers(row.index):
        raise no_token(row.branch.sequence, is_forbidden=bool(np.isneginf(candidates.logits[row.index, 0])))


def _score(
    group: Seq[Row], token_ids: Mapping[Branch, list[int]], candidates: Candidates, ngram: Floats | None
) -> dict[Branch, Children]:
    """The scored children of branches of one shape.

    Args:
        group: G rows, each with k alive drafts; all of them have penalties or none.
        token_ids: the m candidates of each branch.
        candidates: the candidates of all rows.
        ngram: each draft's own n-gram log-probabilities, shape [G, k, m]; None: no n-gram model.
    """
    requests = [row.branch.sequence.params for row in group]
    indices, num_candidates = [row.index for row in group], len(token_ids[group[0].branch])
    logits = candidates.logits[indices, np.newaxis, :num_candidates]  # [G, 1, m]: the drafts of a branch share them
    if requests[0].has_penalties:  # [G, k, m]: each draft has its own
        logits = np.stack([_penalised(row, token_ids[row.branch], logits[i, 0]) for i, row in enumerate(group)])
    alpha, tau, penalty = (
        np.array([getattr(params, name) for params in requests])[:, np.newaxis, np.newaxis]
        for name in ("alpha", "tau", "penalty")
    )
    ln_p_f = interpolate(tempered_logprobs(logits, tau), ngram, alpha, penalty)
    parents = np.array([[draft.logprob for draft in row.branch.drafts.alive] for row in group])
    scores = (parents[:, :, np.newaxis] + ln_p_f).reshape(len(group), -1)
    order = best_first(scores)
    children = {}
    for i, row in enumerate(group):
        alive, logprobs = row.branch.drafts.alive, candidates.logprobs[row.index]
        shared = [token_ids[row.branch]] * len(alive)
        children[row.branch] = Children(alive, shared, [logprobs] * len(alive), scores[i], order[i])
    return children


def _penalised(row: Row, token_ids: Seq[int], logits: Floats) -> Floats:
    """Each draft's own logits of the m candidates, shape [k, m]."""
    params = row.branch.sequence.params
    drafts = [draft.token_ids for draft in row.branch.drafts.alive]
    return penalise(logits, token_ids, drafts, params.frequency_penalty, params.presence_penalty)


def select(branch: Branch, drafts: DraftSet, children: Children) -> DraftSet:
    """The next draft set of a branch, by the request's selection rule."""
    sequence, params = branch.sequence, branch.sequence.params
    num_drafts = params.drafts_per_branch
    if params.divides:
        num_drafts -= sum(other.drafts.num_shown for other in sequence.branches if other is not branch)
        if params.whole_best and branch is sequence.branches[0] and len(sequence.branches) > 1:
            num_drafts = 1  # the draft that is spared stays alone: it is the answer's first, and streamed as such
        children = replace(children, starts=_starts(sequence.branches))
    return params.rule.select(drafts, children, sequence.extend, num_drafts)


def _starts(branches: Seq[Branch]) -> frozenset[bytes]:
    """The texts with which the drafts of a request begin, each the text of one token.

    Those that end in white space are left out: which tokens spell it depends on what follows.
    """
    drafts = (draft for branch in branches for draft in (*branch.drafts.alive, *branch.drafts.finished))
    starts = {draft.pieces[0] for draft in drafts if draft.pieces}
    return frozenset(start for start in starts if start == start.rstrip())


def _only_child(branch: Branch, token_id: int, logprob: float) -> DraftSet:
    """The draft set of a branch that samples: its draft with one more token."""
    (draft,) = branch.drafts.alive
    return drafts_of(branch.sequence.extend(draft, token_id, draft.logprob + logprob, logprob))


def drafts_of(child: Draft) -> DraftSet:
    """The draft set that has one draft, alive or finished."""
    return DraftSet((child,)) if child.finish_reason is None else DraftSet((), (child,))
