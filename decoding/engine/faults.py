"""Faults: what went wrong in a step, and which requests it ends."""

from collections.abc import Iterator
from contextlib import contextmanager

from superdraft.decoding.engine.sequence import Sequence


class Faults:
    """The requests that cannot go on, each with the reason. All others are not affected."""

    def __init__(self) -> None:
        self._reasons: dict[Sequence, Exception] = {}

    @contextmanager
    def ending(self, *sequences: Sequence) -> Iterator[None]:
        """Run a block whose failure ends these requests and no others.

        An n-gram model from outside may raise anything, and a forward pass may run out of memory.
        """
        try:
            yield
        except Exception as reason:
            for sequence in sequences:
                self._reasons.setdefault(sequence, reason)

    def of(self, sequence: Sequence) -> Exception | None:
        """Why a request cannot go on; None: it can."""
        return self._reasons.get(sequence)
