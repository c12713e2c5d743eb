"""The KV-cache slots' contents: prompts and tokens are run into them, prefixes are kept and copied back."""

from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from superdraft.decoding.engine.prefix_cache import PrefixCache
from superdraft.decoding.engine.sequence import Branch, Sequence
from superdraft.decoding.method.scoring import are_numbers
from superdraft.decoding.model.kv_cache import SlotMove
from superdraft.decoding.model.runner import ModelRunner


class Slots:
    """Runs the model into slots, and carries out on their tensors what scheduler and prefix cache decide.

    Args:
        runner: the model and its KV cache.

    Attributes:
        prefixes: the prompts that are kept for reuse.
        num_run_tokens: real tokens run so far; superposed inputs are not counted.
    """

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self.prefixes = PrefixCache(runner.cache.plan.num_prefix_positions)
        self.num_run_tokens = 0

    def num_unfed(self, sequence: Sequence) -> int:
        """Prompt tokens that would have to be run now, at least those whose logits are needed."""
        return len(sequence.prompt_token_ids) - len(self._kept_prefix(sequence))

    def reuse_prefix(self, sequence: Sequence, started_s: float) -> None:
        """Begin a request: copy the longest kept prefix of its prompt into its slot.

        Args:
            sequence: the request; its first branch has a slot.
            started_s: the clock now.
        """
        sequence.start_s = started_s
        branch = sequence.branches[0]
        assert branch.slot is not None
        positions = self._kept_prefix(sequence)
        if positions:
            self._runner.cache.load_prefix(branch.slot, positions)
        branch.num_computed = sequence.num_cached_tokens = len(positions)

    def _kept_prefix(self, sequence: Sequence) -> list[int]:
        return self.prefixes.match(sequence.prompt_token_ids[: sequence.num_reusable], sequence.request.isolation)

    def run_prompts(self, sequences: Seq[Sequence], max_tokens: int) -> list[Tensor]:
        """Run the next tokens of some prompts in one forward.

        Args:
            sequences: the prompts; their first branches have slots.
            max_tokens: limit per prompt. The tokens whose logits are needed are run together even if they are more.

        Returns:
            For each prompt, float32. Complete: the logits after its last shared token and after each of the T tokens
            behind it, shape [T + 1, V]. Not complete: logits that must not be used.
        """
        slots, tokens, starts, nums = [], [], [], []
        for sequence in sequences:
            branch, end = sequence.branches[0], len(sequence.prompt_token_ids)
            assert branch.slot is not None
            start = branch.num_computed
            stop = start + max_tokens
            # The last chunk begins at the last shared token at the latest: its logits are needed, and all after it.
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

    def run_tokens(self, branch: Branch, token_ids: Seq[int]) -> Tensor:
        """Run real tokens in a branch's slot. Returns the logits after the last one, float32, shape [1, V]."""
        assert branch.slot is not None
        logits = self._runner.prefill([branch.slot], [token_ids], [branch.num_computed]).float()
        branch.num_computed += len(token_ids)
        self.num_run_tokens += len(token_ids)
        return logits

    def keep_prefix(self, sequence: Sequence, logits: Tensor) -> None:
        """Keep the keys and values of a complete prompt for later requests.

        Args:
            sequence: its first branch's slot holds the prompt and nothing superposed yet.
            logits: the model's output for the prompt, shape [T, V]. If they are not numbers, nothing is kept: every
                prompt that begins like this one would fail too.
        """
        if not are_numbers(logits):
            return
        branch = sequence.branches[0]
        assert branch.slot is not None
        start, positions = self.prefixes.insert(sequence.prompt_token_ids, sequence.request.isolation)
        if positions:
            self._runner.cache.save_prefix(branch.slot, start, positions)

    def read(self, branch: Branch) -> list[Tensor]:
        """A copy of what a branch's slot holds after the prompt's shared tokens."""
        assert branch.slot is not None
        return self._runner.cache.read(branch.slot, branch.sequence.num_shared, branch.num_computed)

    def write(self, branch: Branch, saved: list[Tensor], num_positions: int) -> None:
        """Write the first positions of a copy made by `read` to a branch's slot, after the prompt's shared tokens."""
        assert branch.slot is not None
        self._runner.cache.write(branch.slot, branch.sequence.num_shared, saved, num_positions)

    def move(self, *moves: SlotMove | None) -> None:
        """Copy what the scheduler moved; None: nothing moved."""
        for move in moves:
            if move is not None:
                self._runner.cache.move(move.source, move.target, move.length)

    def clear(self, sequence: Sequence) -> None:
        """Zero the slots of a request that failed, because a NaN in a slot would survive the attention mask."""
        for branch in sequence.branches:
            if branch.slot is not None:
                self._runner.cache.clear(branch.slot)
