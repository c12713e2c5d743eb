"""The scheduler: which requests run in the next step, and in which slots. Plain lists, no tensors, no clock."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from superdraft.decoding.engine.sequence import Branch, Sequence
from superdraft.decoding.model.kv_cache import SlotMove


@dataclass(frozen=True, slots=True)
class Prefill:
    """A step that runs prompts into their slots: several short ones to their ends, or a chunk of a long one.

    Attributes:
        sequences: the requests whose prompts are run.
        max_tokens: limit per prompt.
    """

    sequences: list[Sequence]
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Decode:
    """A decode step of all running branches.

    Attributes:
        branches: all running branches, in the order of their slots from 0 on.
        joining: requests that join in this step: every prompt token except the last is cached. Their branches are the
            last `len(joining)` of `branches`.
    """

    branches: list[Branch]
    joining: list[Sequence]


class Scheduler:
    """First come, first served; prefills and decode steps take turns.

    Between two decode steps lies one prefill of at most `max_prefill_tokens` tokens, padding included. All waiting
    prompts that fit are run together: typists send many prompts with one or two new tokens each, and one pass over the
    weights serves them all. A longer prompt is cut into chunks, one such prompt at a time. It takes turns with the
    short ones, so that neither running drafts nor short prompts nor the long prompt itself have to wait for long. A
    prompt whose tokens are all cached except the last one needs no pass of its own: it joins the next decode step.

    Running branches always hold the slots [0, number running), so that a decode step is one contiguous block. The
    prompts of a batch use the slots behind them, where their branches will run. A long prompt uses the last slot.

    Args:
        num_slots: branches that can run at once.
        max_prefill_tokens: prompt tokens between two decode steps.
        num_unfed: returns how many tokens of a waiting prompt would have to be run now.

    Attributes:
        num_slots: branches that can run at once.
    """

    def __init__(self, num_slots: int, max_prefill_tokens: int, num_unfed: Callable[[Sequence], int]) -> None:
        self.num_slots = num_slots
        self._max_prefill_tokens = max_prefill_tokens
        self._num_unfed = num_unfed
        self._waiting: deque[Sequence] = deque()
        self._long: Sequence | None = None
        self._batch: list[Sequence] = []
        self._running: list[Branch] = []
        self._kept: dict[Sequence, int] = {}
        self._decode_is_next = False
        self._long_is_next = False

    @property
    def num_waiting(self) -> int:
        """Sequences without a slot."""
        return len(self._waiting)

    @property
    def num_used_slots(self) -> int:
        """Slots of running branches, and of prompts in a prefill."""
        return len(self._running) + len(self._batch) + (self._long is not None)

    @property
    def _reserved(self) -> int:
        """Slots for the long prompt's branches, plus the slots into which running sequences may still fork."""
        return (self._long.params.num_rows if self._long is not None else 0) + sum(self._kept.values())

    def num_kept_slots(self, sequence: Sequence) -> int:
        """Slots that a running sequence may still fork into."""
        return self._kept.get(sequence, 0)

    def release_kept(self, sequence: Sequence) -> None:
        """Free the slots that were kept for a sequence, because it will not fork any more."""
        self._kept.pop(sequence, None)

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence. It must not need more branches than there are slots."""
        self._waiting.append(sequence)

    def schedule(self) -> Prefill | Decode | None:
        """Decide what the next step does; None if there is nothing to do."""
        prefill = None if self._decode_is_next and self._has_decode else self._next_prefill()
        self._decode_is_next = prefill is not None
        return prefill or self._next_decode()

    @property
    def _has_decode(self) -> bool:
        return bool(self._running) or self._joins_next

    @property
    def _joins_next(self) -> bool:
        """Whether the first waiting sequence can join the next decode step."""
        if not self._waiting or self._batch:
            return False
        params = self._waiting[0].params
        if params.max_tokens == 0 or len(self._running) + self._reserved + params.num_rows > self.num_slots:
            return False
        return self._num_unfed(self._waiting[0]) == 1

    def _next_decode(self) -> Decode | None:
        joining = []
        while self._joins_next:
            joining.append(self._waiting.popleft())
            self._run(joining[-1])
        return Decode(list(self._running), joining) if self._running else None

    def _next_prefill(self) -> Prefill | None:
        if not self._long_is_next or self._long is None:
            self._take_waiting()
            if self._batch:
                self._long_is_next = True
                return Prefill(list(self._batch), self._max_prefill_tokens)
        self._long_is_next = False
        return Prefill([self._long], self._max_prefill_tokens) if self._long is not None else None

    def _take_waiting(self) -> None:
        """Move waiting sequences into the batch, as many as fit, and at most one long prompt into its slot."""
        widest = 0
        next_slot = len(self._running)
        while self._waiting:
            sequence = self._waiting[0]
            rows = sequence.params.num_rows
            if next_slot + self._reserved + rows > self.num_slots:
                return
            num_unfed = self._num_unfed(sequence)
            if num_unfed == 1 and sequence.params.max_tokens:
                return  # it joins the next decode step
            if num_unfed > self._max_prefill_tokens:
                if self._long is not None:
                    return
                self._long = self._waiting.popleft()
                self._long.branches[0].slot = self.num_slots - 1
                continue
            widest = max(widest, num_unfed)
            # The prompts of a batch are padded to the longest one.
            if self._batch and widest * (len(self._batch) + 1) > self._max_prefill_tokens:
                return
            self._batch.append(self._waiting.popleft())
            sequence.branches[0].slot = next_slot
            next_slot += rows

    def start(self, sequence: Sequence) -> SlotMove | None:
        """Start a sequence whose prompt is complete: its first branch runs from now on.

        Sequences of a batch must be started or removed in the order of the batch, each with all its forks before the
        next one.

        Returns:
            The copy that brings the branch to the slot behind the running ones; None if it is there already.
        """
        (branch,) = sequence.branches
        if sequence is self._long:
            self._long = None
        else:
            self._batch.remove(sequence)
        assert branch.slot is not None
        source = branch.slot
        self._run(sequence)
        return SlotMove(source, branch.slot, branch.num_computed) if source != branch.slot else None

    def _run(self, sequence: Sequence) -> None:
        """Give a sequence's branch the slot behind the running ones, and keep the slots that it will fork into."""
        (branch,) = sequence.branches
        branch.slot = len(self._running)
        self._running.append(branch)
        if sequence.params.num_rows > 1:
            self._kept[sequence] = sequence.params.num_rows - 1

    def fork(self, branch: Branch, twin: Branch) -> SlotMove:
        """Give `twin` a slot of its own. The returned copy lets it continue where `branch` is."""
        assert branch.slot is not None
        assert len(self._running) < self.num_slots
        twin.slot = len(self._running)
        self._running.append(twin)
        num_kept = self._kept.pop(branch.sequence, 0) - 1
        if num_kept > 0:
            self._kept[branch.sequence] = num_kept
        return SlotMove(branch.slot, twin.slot, branch.num_computed)

    def end(self, branch: Branch) -> SlotMove | None:
        """Free a running branch's slot.

        Returns:
            The copy that closes the hole among the slots of the running branches; None if there is no hole.
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
        """Forget a sequence in any state. Returns the copies that close the holes, in order."""
        self.release_kept(sequence)
        if sequence is self._long or sequence in self._batch:
            if sequence is self._long:
                self._long = None
            else:
                self._batch.remove(sequence)
            sequence.branches[0].slot = None
            return []
        running = [branch for branch in sequence.branches if branch.slot is not None]
        if not running and sequence in self._waiting:
            self._waiting.remove(sequence)
        return [move for branch in running if (move := self.end(branch)) is not None]
