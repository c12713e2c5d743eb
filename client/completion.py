"""Completions with feedback methods."""

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from superdraft.client.errors import ClientError
from superdraft.client.models import DraftsAnswer, FeedbackReceipt
from superdraft.client.wire import Call, feedback_call

ReceiptT = TypeVar("ReceiptT")


class ReportableAnswer(DraftsAnswer, Generic[ReceiptT]):
    """Drafts with methods to tell the server what the user did with them.

    The methods raise NotFoundError if the server accepts no feedback or no longer remembers the completion. Otherwise
    they raise the same errors as `complete`. The server counts each event once, even if it is sent repeatedly.
    """

    __slots__ = ("_send",)
    _send: Callable[[Call[FeedbackReceipt]], ReceiptT]

    def shown(self, rank: int = 0) -> ReceiptT:
        """Report that the draft was on the screen long enough to be read (for example, 250 ms)."""
        return self._report(feedback_call(self.id, "shown", rank))

    def accepted(self, rank: int = 0, *, elapsed_ms: float | None = None) -> ReceiptT:
        """Report that the user accepted all or part of the draft, `elapsed_ms` after it was shown."""
        return self._report(feedback_call(self.id, "accepted", rank, elapsed_ms))

    def dismissed(self, rank: int = 0, *, elapsed_ms: float | None = None) -> ReceiptT:
        """Report that the user did not accept the draft, `elapsed_ms` after it was shown."""
        return self._report(feedback_call(self.id, "dismissed", rank, elapsed_ms))

    def _report(self, call: Call[FeedbackReceipt]) -> ReceiptT:
        send = getattr(self, "_send", None)
        if send is None:
            raise ClientError(
                "This completion came from JSON or is a copy, and has no client. Report with the client's `feedback`."
            )
        return send(call)  # type: ignore[no-any-return]


class Completion(ReportableAnswer[FeedbackReceipt]):
    """The drafts for one prompt, best first."""

    __slots__ = ()


class AsyncCompletion(ReportableAnswer[Awaitable[FeedbackReceipt]]):
    """The drafts for one prompt, best first. Its methods must be awaited."""

    __slots__ = ()
