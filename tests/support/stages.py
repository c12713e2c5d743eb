"""A recorder in place of `superdraft.decoding.progress.stage`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from superdraft.decoding.progress import Stage


class Stages:
    """Stages in the order in which they ended; `record` takes the place of `stage`."""

    def __init__(self) -> None:
        self.ended: list[Stage] = []

    @contextmanager
    def record(self, what: str, **options: Any) -> Iterator[Stage]:
        current = Stage(what, **options)
        yield current
        self.ended.append(current)

    @property
    def names(self) -> list[str]:
        return [stage.what for stage in self.ended]
