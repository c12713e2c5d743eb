"""Completions with feedback methods, and the base class of both clients."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Generic, TypedDict, TypeVar

from superdraft.client.errors import ClientError
from superdraft.client.models import DraftsAnswer, FeedbackReceipt
from superdraft.client.retries import Attempts, RetryPolicy
from superdraft.client.wire import Call, Endpoint, checked_timeout, feedback_call

ReceiptT = TypeVar("ReceiptT")


class ClientOptions(TypedDict, total=False):
    """Settings of a client that `with_options` changes."""

    api_key: str
    timeout: float
    max_retries: int
    default_headers: Mapping[str, str]


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


def reporting_through(answer: ReportableAnswer[ReceiptT], send: Callable[[Call[FeedbackReceipt]], ReceiptT]) -> None:
    """Make `answer` send its feedback with `send`."""
    object.__setattr__(answer, "_send", send)  # the fields are frozen


class ClientBase:
    """Settings shared by both clients; see there."""

    def __init__(
        self,
        base_url: str | None,
        api_key: str | None,
        timeout: float,
        max_retries: int,
        default_headers: Mapping[str, str] | None,
    ) -> None:
        self._endpoint = Endpoint.of(base_url, api_key, timeout, default_headers)
        self._policy = RetryPolicy(max_retries)

    @property
    def base_url(self) -> str:
        """URL of the server, without "/v1"."""
        return self._endpoint.base_url

    def _options(self, changes: ClientOptions) -> dict[str, Any]:
        """The arguments of a client like this one with some changes; headers are added."""
        endpoint = self._endpoint
        headers = {**endpoint.default_headers, **changes.get("default_headers", {})}
        own = {
            "api_key": endpoint.api_key or "",
            "timeout": endpoint.timeout_s,
            "max_retries": self._policy.max_retries,
        }
        return {"base_url": endpoint.base_url, **own, **changes, "default_headers": headers}

    def _timeout_s(self, timeout: float | None) -> float:
        return self._endpoint.timeout_s if timeout is None else checked_timeout(timeout)

    def _attempts(self, max_retries: int | None) -> Attempts:
        return Attempts(self._policy if max_retries is None else RetryPolicy(max_retries))
