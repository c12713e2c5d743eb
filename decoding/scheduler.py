"""Who runs in the next step. Plain lists: no tensors, no clock."""

from collections import deque
from dataclasses import dataclass

from superdraft.decoding.sequence import Branch, Sequence


@dataclass(frozen=True, slots=True)
class Prefill:
    """The next step runs at most `max_tokens` more tokens of one prompt into its slot."""

    sequence: Sequence
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Decode:
    """The next step is a decode step of all running branches, in the order of their slots from 0 on."""

    branches: list[Branch]


@dataclass(frozen=True, slots=True)
class SlotMove:
    """The first `length` positions of slot `source` have to be copied to slot `target`."""

    source: int
    target: int
    length: int


class Scheduler:
    """First come, first served, in turns: prompts, then a decode step, then prompts again.

    Between two decode steps at most `max_prefill_tokens` tokens of prompts are run, so that a long prompt cannot stall
    the drafts that are being written; it is cut into chunks instead. One prompt is prefilled at a time.

    Running branches always hold the slots [0, number running), so that a decode step is one contiguous block. The
    prompt being prefilled uses the slot behind them.

    Args:
        num_slots: branches that can run at once.
        max_prefill_tokens: prompt tokens between two decode steps.
    """

    def __init__(self, num_slots: int, max_prefill_tokens: int) -> None:
        self.num_slots = num_slots
        self._max_prefill_tokens = max_prefill_tokens
        self._budget = max_prefill_tokens
        self._waiting: deque[Sequence] = deque()
        self._prefilling: Sequence | None = None
        self._running: list[Branch] = []

    @property
    def num_waiting(self) -> int:
        """Sequences without a slot."""
        return len(self._waiting)

    @property
    def num_used_slots(self) -> int:
        """Slots of running branches and of the prompt being prefilled."""
        return len(self._running) + (self._prefilling is not None)

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence. It must not want more branches than there are slots."""
        self._waiting.append(sequence)

    def schedule(self) -> Prefill | Decode | None:
        """The next step's work; None when there is none."""
        if self._prefilling is None and self._waiting:
            wanted = self._waiting[0].params.num_rows
            if len(self._running) + wanted <= self.num_slots:
                self._prefilling = self._waiting.popleft()
                self._prefilling.branches[0].slot = len(self._running)
        # Without running branches nobody waits for the decode step that would renew the budget.
        if self._prefilling is not None and not self._running:
            self._budget = self._max_prefill_tokens
        if self._prefilling is not None and self._budget > 0:
            return Prefill(self._prefilling, self._budget)
        self._budget = self._max_prefill_tokens
        return Decode(list(self._running)) if self._running else None

    def charge(self, num_tokens: int) -> None:
        """Count prompt tokens that were run since the last decode step; at least one a prompt."""
        self._budget -= max(num_tokens, 1)

    def start(self) -> SlotMove | None:
        """The prompt that was being prefilled is through: its first branch runs from now on.

        Returns:
            The copy that brings it to the end of the running ones, if some of these ended in the meantime.
        """
        assert self._prefilling is not None
        (branch,) = self._prefilling.branches
        self._prefilling = None
        assert branch.slot is not None
        source, branch.slot = branch.slot, len(self._running)
        self._running.append(branch)
        return SlotMove(source, branch.slot, branch.num_computed) if source != branch.slot else None

    @property
    def can_fork(self) -> bool:
        """A slot is free behind the running ones; the prompt that is being prefilled has that place."""
        return self._prefilling is None and len(self._running) < self.num_slots

    def fork(self, branch: Branch, twin: Branch) -> SlotMove:
        """Give `twin` a slot of its own, if `can_fork`; the returned copy makes it continue where `branch` is."""
        assert branch.slot is not None
        assert self.can_fork
        twin.slot = len(self._running)
        self._running.append(twin)
        return SlotMove(branch.slot, twin.slot, branch.num_computed)

    def end(self, branch: Branch) -> SlotMove | None:
        """Take a running branch's slot back.

        Returns:
            The copy that closes the hole among the running ones' slots, if there is one.
        """
        assert branch.slot is not None
        hole, branch.slot = branch.slot, None
        last = self._running.pop()
        if last is branch:
            return None
        move = SlotMove(source=len(self._running), target=hole, length=last.num_computed)
        self._running[hole] = last
        last.slot = hole
        return move

    def remove(self, sequence: Sequence) -> list[SlotMove]:
        """Forget a sequence, wherever it is; the copies that close the holes, in order."""
        if sequence is self._prefilling:
            self._prefilling = None
            sequence.branches[0].slot = None
            return []
        running = [branch for branch in sequence.branches if branch.slot is not None]
        if not running and sequence in self._waiting:
            self._waiting.remove(sequence)
        return [move for branch in running if (move := self.end(branch)) is not None]
