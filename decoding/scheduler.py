"""Who runs in the next step. Plain lists: no tensors, no clock."""

from collections import deque
from dataclasses import dataclass

from superdraft.decoding.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Batch:
    """The work of one step: one prompt to prefill, or one decode step of all running sequences in slot order."""

    sequences: list[Sequence]
    is_prefill: bool


@dataclass(frozen=True, slots=True)
class SlotMove:
    """A slot's content that has to be copied, since its sequence now lives elsewhere."""

    source: int
    target: int
    length: int


class Scheduler:
    """First come, first served. A waiting prompt goes before the next decode step as long as a slot is free.

    Running sequences always hold the slots [0, number running), so that a decode step is one contiguous block.

    Args:
        num_slots: sequences that can run at once.
    """

    def __init__(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []

    @property
    def num_waiting(self) -> int:
        """Sequences without a slot."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Sequences with a slot."""
        return len(self._running)

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence."""
        self._waiting.append(sequence)

    def schedule(self) -> Batch | None:
        """The next step's work; None when there is none."""
        if self._waiting and len(self._running) < self._num_slots:
            sequence = self._waiting.popleft()
            sequence.slot = len(self._running)
            self._running.append(sequence)
            return Batch([sequence], is_prefill=True)
        return Batch(list(self._running), is_prefill=False) if self._running else None

    def remove(self, sequence: Sequence) -> SlotMove | None:
        """Forget a sequence, waiting or running.

        Returns:
            The copy that closes the hole it left among the running ones' slots, if it left one.
        """
        if sequence.slot is None:
            self._waiting.remove(sequence)
            return None
        hole, sequence.slot = sequence.slot, None
        last = self._running.pop()
        if last is sequence:
            return None
        move = SlotMove(source=len(self._running), target=hole, length=last.num_computed)
        self._running[hole] = last
        last.slot = hole
        return move
