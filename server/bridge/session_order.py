"""The order of a session's requests on their way to the engine, where each one ends the one before it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from superdraft.decoding.errors import SupersededError


@dataclass(slots=True)
class _Session:
    num_on_their_way: int = 0
    num_arrived: int = 0
    newest_gone: int = 0  # its number, counted by arrival


class SessionOrder:
    """Lets no request reach the engine after a newer one of its session. For one event loop."""

    def __init__(self) -> None:
        self._sessions: dict[str, _Session] = {}

    @contextmanager
    def arrival(self, name: str | None) -> Iterator[Callable[[], None]]:
        """The way of a request to the engine.

        Args:
            name: of the session; None: the request has none.

        Yields:
            A function to call when the request goes to the engine. It raises SupersededError if a newer request of the
            session has gone there.
        """
        if name is None:
            yield lambda: None
            return
        session = self._sessions.setdefault(name, _Session())
        session.num_on_their_way += 1
        session.num_arrived += 1
        number = session.num_arrived

        def go() -> None:
            if session.newest_gone > number:
                raise SupersededError("A newer request of this session replaced this one.")
            session.newest_gone = number

        try:
            yield go
        finally:
            session.num_on_their_way -= 1
            if not session.num_on_their_way:
                del self._sessions[name]
