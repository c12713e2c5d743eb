"""The faults of a step, and the requests that they end."""

from collections.abc import Iterator
from contextlib import contextmanager

from superdraft.decoding.engine.sequence import Sequence


class Faults:
    """The requests that cannot continue after a step, each with its first fault. Other requests are not affected."""

    def __init__(self) -> None:
        self._reasons: dict[Sequence, Exception] = {}

    @contextmanager
    def ending(self, *sequences: Sequence) -> Iterator[None]:
        """Run a block; if it raises, these requests cannot continue.

        Every `Exception` is caught: an n-gram model comes from outside and may raise anything, and a forward pass may
        run out of memory.
        """
        try:
            yield
        except Exception as reason:
            for sequence in sequences:
                self._reasons.setdefault(sequence, reason)

    def of(self, sequence: Sequence) -> Exception | None:
        """The fault of a request; None: it has none."""
        return self._reasons.get(sequence)
