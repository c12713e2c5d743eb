"""Changes to a request's branches: forks, rows of their own for likely drafts, resets."""

import math
from collections.abc import Sequence as Seq

from superdraft.decoding.engine.decode import DecodeStep, Row
from superdraft.decoding.engine.faults import Faults
from superdraft.decoding.engine.sequence import Branch, Sequence
from superdraft.decoding.engine.trees import Trees
from superdraft.decoding.method.draft_set import Draft, DraftSet
from superdraft.decoding.method.sampling import choose_by_weight, make_generator
from superdraft.decoding.method.superposition import draft_weights


class Branching:
    """Adds branches to requests, divides drafts among them, and resets them.

    Args:
        trees: where the branches' keys and values are.
        step: chooses the next tokens after a reset.
    """

    def __init__(self, trees: Trees, step: DecodeStep) -> None:
        self._trees = trees
        self._step = step

    def begin(self, sequence: Sequence) -> list[Branch]:
        """Give a request whose prompt is complete its first branches.

        A request that samples gets all its branches here. Any other gets one; `divide` adds branches once there are
        several drafts.
        """
        first = sequence.branches[0]
        if sequence.params.strategy != "superposed":
            for index in range(1, sequence.params.num_rows):
                twin = self._fork(first, first.drafts)
                twin.rng = make_generator(sequence.params.seed, index)
        return list(sequence.branches)

    def _fork(self, branch: Branch, drafts: DraftSet) -> Branch:
        """Add a branch that continues from the same position with `drafts`.

        The caller removes `drafts` from the old branch.
        """
        twin = Branch(
            branch.sequence,
            drafts,
            branch.rng,
            base=branch.base,
            cells=branch.cells,
            stem_ids=branch.stem_ids,
            num_steps=branch.num_steps,
            num_exact=branch.num_exact,
            num_rows=branch.num_rows,
        )
        branch.sequence.branches.append(twin)
        self._trees.place_twin(twin, branch)
        return twin

    def divide(self, branch: Branch) -> None:
        """Give the most probable drafts of a branch a row each, as long as the request may take more rows.

        The other drafts share the last row; those that follow other typed tokens than the most probable of them are
        dropped. A draft alone on its row is decoded exactly: its real tokens replace the superposed inputs.
        """
        sequence, alive = branch.sequence, branch.drafts.alive
        if not sequence.params.divides or len(alive) < 2 or branch.is_done:
            return
        num_rows = min(1 + sequence.params.num_rows - len(sequence.branches), len(alive))
        if num_rows < 2:
            return
        groups = [(draft,) for draft in alive[: num_rows - 1]] + [_of_one_path(alive[num_rows - 1 :])]
        branch.drafts = DraftSet(groups[0], branch.drafts.finished)
        for one in (branch, *(self._fork(branch, DraftSet(group)) for group in groups[1:])):
            if len(one.drafts.alive) == 1 and one.num_exact < len(one.drafts.alive[0].token_ids) - 1:
                self._run_again(one)

    def _run_again(self, branch: Branch) -> None:
        """Replace superposed inputs by the real tokens of a branch's only draft, except the last, which is fed next."""
        (draft,) = branch.drafts.alive
        tokens = draft.token_ids[branch.num_exact : -1]
        self._trees.run_tokens(branch, branch.num_context + branch.num_exact, tokens)
        branch.sequence.forward_rows += len(tokens)
        branch.num_exact += len(tokens)

    def reset_if_due(self, branch: Branch, faults: Faults) -> None:
        """Every s steps, draw one draft by its probability and continue from it alone (section 5.3).

        The draft's real tokens replace the superposed inputs of the last steps, so drafting restarts from an exact
        context. Their last logits choose the next tokens.
        """
        every = branch.sequence.params.reset_every
        if every is None or branch.num_steps == 0 or branch.num_steps % every or branch.is_done:
            return
        alive = branch.drafts.alive
        chosen = alive[choose_by_weight(draft_weights([draft.logprob for draft in alive]), branch.rng)]
        branch.drafts = DraftSet((chosen,), branch.drafts.finished)
        tokens = chosen.token_ids[branch.num_exact :]
        logits = self._trees.run_tokens(branch, branch.num_context + branch.num_exact, tokens)
        branch.sequence.forward_rows += len(tokens)
        branch.num_exact = len(chosen.token_ids)
        self._step.choose([Row(branch, 0)], logits, faults)


def _of_one_path(drafts: Seq[Draft]) -> tuple[Draft, ...]:
    """The drafts that may share a row: of the stems (typed tokens before a draft), those of the most probable one."""
    weights: dict[tuple[int, ...], float] = {}
    for draft in drafts:
        weights[draft.stem_ids] = weights.get(draft.stem_ids, 0.0) + math.exp(draft.lm_logprob)
    stem_ids = max(weights, key=lambda one: weights[one])
    return tuple(draft for draft in drafts if draft.stem_ids == stem_ids)
