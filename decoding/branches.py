"""What happens to a branch: it takes a prompt, chooses tokens, forks, resets, gives up healing."""

from collections.abc import Sequence as Seq

from torch import Tensor

from superdraft.decoding.choosing import NothingMatchesError, TokenChooser
from superdraft.decoding.draft_set import Draft, DraftSet
from superdraft.decoding.model_runner import ModelRunner
from superdraft.decoding.prefix_cache import PrefixCache
from superdraft.decoding.sampling import choose_by_weight, make_generator
from superdraft.decoding.scheduler import Scheduler, SlotMove
from superdraft.decoding.scoring import Candidates
from superdraft.decoding.sequence import Branch, Sequence


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

    def run_prompts(self, sequences: Seq[Sequence], max_tokens: int) -> Tensor:
        """Feed the next tokens of some prompts, at most `max_tokens` each; logits after them, float32, shape [P, V]."""
        slots, tokens, starts = [], [], []
        for sequence in sequences:
            branch = sequence.branches[0]
            assert branch.slot is not None
            slots.append(branch.slot)
            starts.append(branch.num_computed)
            tokens.append(sequence.prompt_token_ids[branch.num_computed : branch.num_computed + max_tokens])
        logits = self._runner.prefill(slots, tokens, starts).float()
        for sequence, chunk in zip(sequences, tokens, strict=True):
            sequence.branches[0].num_computed += len(chunk)
            self.num_run_tokens += len(chunk)
        return logits

    def take_step(self, branch: Branch, logits: Tensor, shared: Candidates) -> None:
        """What becomes of a branch in a decode step, from its logits, shape [V]."""
        branch.count_step()
        if branch.is_joining:
            self._begin(branch, logits, shared)
            return
        self.choose(branch, logits, shared)
        self.divide_if_due(branch)
        self.reset_if_due(branch)

    def _begin(self, branch: Branch, logits: Tensor, shared: Candidates) -> None:
        """The prompt's last token was fed in a decode step: choose first tokens from its logits, shape [V]."""
        sequence = branch.sequence
        if shared.token_ids:  # else every prompt that begins like this one would fail, too
            self.end_prompt(branch)
        self.fork_rows(sequence, branch)
        for one in list(sequence.branches):
            self.choose(one, logits, shared)
            self.divide_if_due(one)

    def end_prompt(self, branch: Branch) -> None:
        """All of a branch's prompt is in its slot, the last token by a decode step."""
        self.num_run_tokens += 1
        self.keep_prefix(branch.sequence, branch)

    def choose(self, branch: Branch, logits: Tensor, shared: Candidates) -> None:
        """Choose the next tokens of one branch from its logits, shape [V]."""
        try:
            self._chooser.choose(branch, logits, shared)
        except NothingMatchesError:
            self.choose_from(branch, self._unheal(branch))

    def choose_from(self, branch: Branch, logits: Tensor) -> None:
        """Do the same outside a decode step; logits have shape [1, V]."""
        (shared,) = self._chooser.shared_candidates(logits, [branch])
        self.choose(branch, logits[0], shared)

    def _unheal(self, branch: Branch) -> Tensor:
        """Give up token healing: start again with the tokens that it took back."""
        sequence = branch.sequence
        branch.num_computed = len(sequence.prompt_token_ids)
        branch.num_steps = branch.num_healing_steps = 0
        warning = "No token continues the last word of the prompt; it was completed without token healing."
        if warning not in sequence.warnings:
            sequence.warnings.append(warning)
        branch.is_unhealed = True
        logits = self.run_tokens(branch, sequence.healed_token_ids)
        state = None
        if sequence.scorer is not None:
            state = sequence.scorer.initial_state(branch.context_token_ids)
        branch.drafts = DraftSet((Draft(ngram_state=state),))
        return logits

    def start(self, sequence: Sequence, first: Branch) -> None:
        """Begin drafting, the prompt being through: a slot for each branch, all with the prompt's keys and values."""
        self.move(self._scheduler.start(sequence))
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
            num_steps=branch.num_steps,
            num_healing_steps=branch.num_healing_steps,
            num_exact=branch.num_exact,
            is_unhealed=branch.is_unhealed,
        )
        self.move(self._scheduler.fork(branch, twin))
        branch.sequence.branches.append(twin)
        return twin

    def divide_if_due(self, branch: Branch) -> None:
        """Give the most probable drafts of a branch rows of their own, as far as the request's rows go.

        The others stay together on the last row. A draft that is alone on its row is decoded exactly: where the row
        held superposed inputs, while what was typed had to be repeated, its real tokens take their place.
        """
        sequence, alive = branch.sequence, branch.drafts.alive
        num_kept = self._scheduler.num_kept_slots(sequence)
        if not num_kept or branch.is_done or not all(draft.start for draft in alive):
            return
        num_rows = min(1 + num_kept, len(alive))
        groups = [(draft,) for draft in alive[: num_rows - 1]] + [alive[num_rows - 1 :]]
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
        num_new = branch.num_steps - branch.num_healing_steps
        if every is None or num_new == 0 or num_new % every or branch.is_done:
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
        """Take what an earlier prompt left of this one. The last token is always run: its logits are needed."""
        assert branch.slot is not None
        positions = self._prefixes.match(sequence.prompt_token_ids[:-1])
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
