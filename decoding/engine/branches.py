"""What happens to a branch: it takes a prompt, chooses tokens, forks, resets."""

import math
from collections.abc import Sequence as Seq
from typing import Any

import torch
from torch import Tensor

from superdraft.decoding.engine.prefix_cache import PrefixCache
from superdraft.decoding.engine.scheduler import Scheduler, SlotMove
from superdraft.decoding.engine.sequence import Branch, Sequence
from superdraft.decoding.engine.token_chooser import TokenChooser
from superdraft.decoding.method.draft_set import Draft, DraftSet
from superdraft.decoding.method.sampling import choose_by_weight, make_generator
from superdraft.decoding.method.scoring import Candidates
from superdraft.decoding.model.runner import ModelRunner
from superdraft.decoding.text.covers import Covers


class BranchSteps:
    """Steps of single branches; keeps the slots' tensors in line with what the scheduler says of the slots.

    Args:
        runner: the model and its KV cache.
        chooser: chooses next tokens.
        scheduler: gives out the slots.
        prefixes: knows which prompts are kept.

    Attributes:
        num_run_tokens: real tokens fed so far.
    """

    def __init__(self, runner: ModelRunner, chooser: TokenChooser, scheduler: Scheduler, prefixes: PrefixCache) -> None:
        self._runner = runner
        self._chooser = chooser
        self._scheduler = scheduler
        self._prefixes = prefixes
        self.num_run_tokens = 0

    def run_tokens(self, branch: Branch, token_ids: Seq[int]) -> Tensor:
        """Feed real tokens to a branch's slot; logits after the last one, float32, shape [1, V]."""
        assert branch.slot is not None
        logits = self._runner.prefill([branch.slot], [token_ids], [branch.num_computed]).float()
        branch.num_computed += len(token_ids)
        self.num_run_tokens += len(token_ids)
        return logits

    def run_prompts(self, sequences: Seq[Sequence], max_tokens: int) -> list[Tensor]:
        """Feed the next tokens of some prompts, at most `max_tokens` each unless the last few are more.

        Returns:
            For each prompt that is through the logits after its last shared token and after each of the others, shape
            [T + 1, V], float32; for one that is not, nothing of use.
        """
        slots, tokens, starts, nums = [], [], [], []
        for sequence in sequences:
            branch, end = sequence.branches[0], len(sequence.prompt_token_ids)
            assert branch.slot is not None
            start = branch.num_computed
            stop = start + max_tokens
            # The tokens whose logits are needed are run together.
            stop = end if sequence.num_reusable <= start or end <= stop else min(stop, sequence.num_reusable)
            slots.append(branch.slot)
            starts.append(start)
            tokens.append(sequence.prompt_token_ids[start:stop])
            nums.append(end - sequence.num_reusable if stop == end else 1)
        logits = self._runner.prefill(slots, tokens, starts, nums).float()
        for sequence, chunk in zip(sequences, tokens, strict=True):
            sequence.branches[0].num_computed += len(chunk)
            self.num_run_tokens += len(chunk)
        return list(torch.split(logits, nums))

    def take_step(self, branch: Branch, logits: Tensor, shared: Candidates) -> None:
        """What becomes of a branch in a decode step, from its logits, shape [V]."""
        branch.count_step()
        if branch.is_joining:
            self._begin(branch, logits, shared)
            return
        self._chooser.choose(branch, logits, shared)
        self.divide_if_due(branch)
        self.reset_if_due(branch)

    def _begin(self, branch: Branch, logits: Tensor, shared: Candidates) -> None:
        """The prompt's last token was fed in a decode step: choose first tokens from its logits, shape [V]."""
        sequence = branch.sequence
        if shared.token_ids:  # else every prompt that begins like this one would fail, too
            self._end_prompt(branch)
        self.fork_rows(sequence, branch)
        for one in list(sequence.branches):
            self._chooser.choose(one, logits, shared)
            self.divide_if_due(one)

    def _end_prompt(self, branch: Branch) -> None:
        """All of a branch's prompt is in its slot, the last token by a decode step."""
        self.num_run_tokens += 1
        self.keep_prefix(branch.sequence, branch)

    def choose_from(self, branch: Branch, logits: Tensor) -> None:
        """Choose the next tokens of one branch outside a decode step; logits have shape [1, V]."""
        (shared,) = self._chooser.shared_candidates(logits, [branch])
        self._chooser.choose(branch, logits[0], shared)

    def choose_starts(self, sequence: Sequence, logits: Tensor) -> None:
        """Choose the first tokens of a prompt that is healed, and give each draft the stem that it goes on from.

        Args:
            sequence: the prompt is in its first branch's slot; it has all branches that it samples.
            logits: as `run_prompts` gives them.
        """
        first = sequence.branches[0]
        covers = self._chooser.covers(sequence, logits)
        saved = self._run_stems(first, covers)
        if sequence.params.verify_top is not None:
            sequence.start_alternatives = self._chooser.start_alternatives(covers, sequence.params.verify_top)
        for branch in list(sequence.branches):
            self._chooser.choose_start(branch, covers)
            self.divide_if_due(branch)
        for branch in sequence.branches:
            if branch.drafts.alive and not branch.is_done:
                self._take_path(branch, branch.drafts.alive[0].path, saved)

    def _run_stems(self, branch: Branch, covers: Covers) -> dict[tuple[int, ...], Any]:
        """Run the stems off the prompt's own borders that may matter, one after another in the prompt's slot.

        Returns:
            What the slot held behind the shared tokens for each path that was run, so that no token is run twice.
        """
        assert branch.slot is not None
        sequence, cache = branch.sequence, self._runner.cache
        saved: dict[tuple[int, ...], Any] = {}
        while (stem := covers.next_unrun()) is not None:
            if sequence.num_shared + len(stem.path) > sequence.max_positions:
                continue  # it has more tokens than the prompt's own end, and the slot is full
            if not saved:
                saved[branch.path] = cache.read(branch.slot, sequence.num_shared, branch.num_computed)
            self._take_path(branch, stem.path[:-1], saved)
            logits = self.run_tokens(branch, stem.path[-1:])[0]
            sequence.forward_rows += 1
            branch.path = stem.path
            saved[stem.path] = cache.read(branch.slot, sequence.num_shared, branch.num_computed)
            self._chooser.add_stem(covers, stem, sequence, logits)
        return saved

    def _take_path(self, branch: Branch, path: tuple[int, ...], saved: dict[tuple[int, ...], Any]) -> None:
        """Put a stem's path into a branch's slot behind the shared tokens; it is in the slot already, or saved."""
        num_shared = branch.sequence.num_shared
        if branch.path[: len(path)] != path:
            assert branch.slot is not None
            whole = next(known for known in saved if known[: len(path)] == path)
            self._runner.cache.write(branch.slot, num_shared, saved[whole], len(path))
        branch.path = path
        branch.num_computed = num_shared + len(path)

    def start(self, sequence: Sequence, first: Branch) -> None:
        """Begin drafting, the prompt being through: a slot for each branch, all with the prompt's keys and values."""
        self.move(self._scheduler.start(sequence))
        if sequence.healing is not None:
            first.path = sequence.healing.tail
        self.fork_rows(sequence, first)

    def fork_rows(self, sequence: Sequence, first: Branch) -> None:
        """Give each branch of a request that samples a slot, with the prompt's keys and values."""
        if sequence.params.strategy == "superposed":
            return  # its only draft is the prompt; `divide_if_due` comes when there are several
        for index in range(1, sequence.params.num_rows):
            twin = self.fork(first, first.drafts)
            twin.rng = make_generator(sequence.params.seed, index)

    def fork(self, branch: Branch, drafts: DraftSet) -> Branch:
        """A new branch of the same request that continues from here with `drafts`, in a slot of its own.

        The caller divides the drafts: what goes to the new branch should leave the old one's `drafts`.
        """
        twin = Branch(
            branch.sequence,
            drafts,
            branch.rng,
            num_computed=branch.num_computed,
            path=branch.path,
            num_steps=branch.num_steps,
            num_exact=branch.num_exact,
        )
        self.move(self._scheduler.fork(branch, twin))
        branch.sequence.branches.append(twin)
        return twin

    def divide_if_due(self, branch: Branch) -> None:
        """Give the most probable drafts of a branch rows of their own, as far as the request's rows go.

        The others stay together on the last row, as far as they follow the same tokens. A draft that is alone on its
        row is decoded exactly: where the row held superposed inputs, its real tokens take their place.
        """
        sequence, alive = branch.sequence, branch.drafts.alive
        num_kept = self._scheduler.num_kept_slots(sequence)
        if not num_kept or branch.is_done:
            return
        num_rows = min(1 + num_kept, len(alive))
        groups = [(draft,) for draft in alive[: num_rows - 1]] + [_of_one_path(alive[num_rows - 1 :])]
        branch.drafts = DraftSet(groups[0], branch.drafts.finished)
        for one in (branch, *(self.fork(branch, DraftSet(group)) for group in groups[1:])):
            if len(one.drafts.alive) == 1 and one.num_exact < len(one.drafts.alive[0].token_ids) - 1:
                self._run_again(one)
        if sum(one.drafts.num_shown for one in sequence.branches) >= sequence.params.num_drafts:
            self._scheduler.release_kept(sequence)

    def _run_again(self, branch: Branch) -> None:
        """Put the real tokens of a branch's only draft in the place of superposed inputs, all but the last one."""
        (draft,) = branch.drafts.alive
        fed = draft.token_ids[branch.num_exact : -1]
        branch.num_computed -= len(fed)
        self.run_tokens(branch, fed)
        branch.sequence.forward_rows += len(fed)
        branch.num_exact += len(fed)

    def reset_if_due(self, branch: Branch) -> None:
        """Every s steps: draw one draft by its probability and go on from it alone (section 5.3).

        What the slot holds of the last steps are superposed inputs. The chosen draft's real tokens take their place, so
        drafting restarts from an exact context.
        """
        every = branch.sequence.params.reset_every
        if every is None or branch.num_steps == 0 or branch.num_steps % every or branch.is_done:
            return
        chosen = branch.drafts.alive[choose_by_weight(branch.drafts.weights, branch.rng)]
        branch.drafts = DraftSet((chosen,), branch.drafts.finished)
        real_tokens = chosen.token_ids[branch.num_exact :]
        branch.num_computed -= len(real_tokens) - 1
        logits = self.run_tokens(branch, real_tokens)
        branch.sequence.forward_rows += len(real_tokens)
        branch.num_exact = len(chosen.token_ids)
        self.choose_from(branch, logits)

    def reuse_prefix(self, sequence: Sequence, branch: Branch) -> None:
        """Take what an earlier prompt left of this one, except for the tokens whose logits are needed."""
        assert branch.slot is not None
        positions = self._prefixes.match(sequence.prompt_token_ids[: sequence.num_reusable])
        if positions:
            self._runner.cache.load_prefix(branch.slot, positions)
        branch.num_computed = sequence.num_cached_tokens = len(positions)

    def keep_prefix(self, sequence: Sequence, branch: Branch) -> None:
        """Keep the prompt's keys and values for the next request; at this point they all come from real tokens."""
        assert branch.slot is not None
        start, positions = self._prefixes.insert(sequence.prompt_token_ids)
        if positions:
            self._runner.cache.save_prefix(branch.slot, start, positions)

    def move(self, move: SlotMove | None) -> None:
        """Copy what the scheduler moved, if it moved anything."""
        if move is not None:
            self._runner.cache.move(move.source, move.target, move.length)


def _of_one_path(drafts: Seq[Draft]) -> tuple[Draft, ...]:
    """Those drafts that may share a row: they follow the same typed tokens as the most probable ones."""
    weights: dict[tuple[int, ...], float] = {}
    for draft in drafts:
        weights[draft.path] = weights.get(draft.path, 0.0) + math.exp(draft.lm_logprob)
    path = max(weights, key=lambda one: weights[one])
    return tuple(draft for draft in drafts if draft.path == path)
