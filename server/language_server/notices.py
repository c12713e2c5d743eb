"""Messages to the user: each fault once, not at every key press."""

from collections.abc import Callable

from superdraft.client.errors import ClientError, OverloadedError, RequestTimeoutError, SupersededError

_PASSING = (OverloadedError, RequestTimeoutError, SupersededError)
"""Faults that need no action of the user."""


class Notices:
    """Decides which messages are shown and which are only logged.

    Args:
        show: shows a message in the editor.
        log: writes a message to the editor's log.
    """

    def __init__(self, show: Callable[[str], None], log: Callable[[str], None]) -> None:
        self._show = show
        self._log = log
        self._shown: str | None = None

    def fault(self, message: str) -> None:
        """Show a message, unless it is the last one shown."""
        if message != self._shown:
            self._shown = message
            self._show(message)

    def requested(self, error: ClientError | None) -> None:
        """Note the outcome of a request: its error, or None if it succeeded."""
        if error is None:
            if self._shown is not None:
                self._log("The server answers again.")
            self._shown = None
        elif isinstance(error, _PASSING):
            self._log(str(error))
        else:
            self.fault(str(error))
