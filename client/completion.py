"""What both clients hand out and are made of."""

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from superdraft.client.errors import ClientError
from superdraft.client.models import DraftsAnswer, FeedbackReceipt
from superdraft.client.retries import Attempts, RetryPolicy
from superdraft.client.wire import Call, Endpoint, checked_timeout, feedback_call

ReceiptT = TypeVar("ReceiptT")


class ReportableAnswer(DraftsAnswer, Generic[ReceiptT]):
    """Drafts, and a way to tell the server what the user did with them.

    The methods raise NotFoundError if the server takes no feedback or remembers no such completion (any more), and else
    what `complete` raises. An event counts once, however often it is sent.
    """

    __slots__ = ("_send",)
    _send: Callable[[Call[FeedbackReceipt]], ReceiptT]

    def shown(self, rank: int = 0) -> ReceiptT:
        """The draft was on the screen, for long enough to be read (250 ms, say)."""
        return self._report(feedback_call(self.id, "shown", rank))

    def accepted(self, rank: int = 0, *, elapsed_ms: float | None = None) -> ReceiptT:
        """The user took the draft or a part of it, `elapsed_ms` after it was shown."""
        return self._report(feedback_call(self.id, "accepted", rank, elapsed_ms))

    def dismissed(self, rank: int = 0, *, elapsed_ms: float | None = None) -> ReceiptT:
        """The user did not take the draft."""
        return self._report(feedback_call(self.id, "dismissed", rank, elapsed_ms))

    def _report(self, call: Call[FeedbackReceipt]) -> ReceiptT:
        send = getattr(self, "_send", None)
        if send is None:
            raise ClientError("This completion came from no client, so there is nobody to report to.")
        return send(call)  # type: ignore[no-any-return]


class Completion(ReportableAnswer[FeedbackReceipt]):
    """The drafts for one prompt, best first."""

    __slots__ = ()


class AsyncCompletion(ReportableAnswer[Awaitable[FeedbackReceipt]]):
    """The drafts for one prompt, best first. Its methods are to be awaited."""

    __slots__ = ()


def reporting_through(answer: ReportableAnswer[ReceiptT], send: Callable[[Call[FeedbackReceipt]], ReceiptT]) -> None:
    """Make `answer` report through a client."""
    object.__setattr__(answer, "_send", send)  # the fields are frozen


class ClientBase:
    """Settings of a client.

    Args:
        base_url: "http://127.0.0.1:8000"; a trailing "/v1" does no harm.
        api_key: sent as a bearer token.
        timeout: seconds to wait for the connection, and then for each next part of the answer.
        max_retries: how often a request that failed is sent again, see `RetryPolicy`.
    """

    def __init__(self, base_url: str, api_key: str | None, timeout: float, max_retries: int) -> None:
        self._endpoint = Endpoint.of(base_url, api_key, timeout)
        self._policy = RetryPolicy(max_retries)

    @property
    def base_url(self) -> str:
        """Of the server, without "/v1"."""
        return self._endpoint.base_url

    def _timeout_s(self, timeout: float | None) -> float:
        return self._endpoint.timeout_s if timeout is None else checked_timeout(timeout)

    def _attempts(self, max_retries: int | None) -> Attempts:
        return Attempts(self._policy if max_retries is None else RetryPolicy(max_retries))
