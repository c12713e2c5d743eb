"""The part that both clients share: everything but sending a request and reading its response."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Generic, Self, TypedDict, TypeVar, Unpack

from superdraft.client.completion import ReportableAnswer
from superdraft.client.retries import RetryPolicy
from superdraft.client.wire import (
    Call,
    DraftsOptions,
    Endpoint,
    checked_timeout,
    drafts_call,
    feedback_call,
    models_call,
)

HttpT = TypeVar("HttpT")
CompletionT = TypeVar("CompletionT")
StreamT = TypeVar("StreamT")
ModelsT = TypeVar("ModelsT")
ReceiptT = TypeVar("ReceiptT")


class ClientOptions(TypedDict, total=False):
    """Settings of a client that `with_options` changes."""

    api_key: str
    timeout: float
    max_retries: int
    default_headers: Mapping[str, str]


class ClientBase(ABC, Generic[HttpT, CompletionT, StreamT, ModelsT, ReceiptT]):
    """A connection to a Superdraft server. `AsyncSuperdraft` returns awaitables of what `Superdraft` returns.

    Args:
        base_url: for example "http://127.0.0.1:8000"; a trailing "/v1" is ignored. None: the environment variable
            SUPERDRAFT_URL, or else a server on this machine, port 8000.
        api_key: sent as a bearer token. None: the environment variable SUPERDRAFT_API_KEY; "": no key.
        timeout: seconds to wait for the connection, and then for each part of the response.
        max_retries: how often a failed request is retried, see `RetryPolicy`; 0: never.
        default_headers: sent with every request, for example for a proxy.
        http_client: an httpx.Client or httpx.AsyncClient for the connections, with its own proxies, certificates
            and limits. It stays open when this client is closed. None: one of the client's own.
    """

    _kind: type[ReportableAnswer[Any]]
    _http_kind: type[HttpT]

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout: float = 30.0,
        max_retries: int = 2,
        *,
        default_headers: Mapping[str, str] | None = None,
        http_client: HttpT | None = None,
    ) -> None:
        self._endpoint = Endpoint.of(base_url, api_key, timeout, default_headers)
        self._policy = RetryPolicy(max_retries)
        self._owns_http = http_client is None
        self._http: HttpT = self._http_kind(timeout=timeout) if http_client is None else http_client  # type: ignore[call-arg]

    @property
    def base_url(self) -> str:
        """URL of the server, without "/v1"."""
        return self._endpoint.base_url

    def with_options(self, **changes: Unpack[ClientOptions]) -> Self:
        """Return a client with other settings and the same connections, which this one closes.

        ::

            client.with_options(timeout=2, max_retries=0).complete("Thank you for")

        Args:
            changes: `api_key`, `timeout`, `max_retries`, or `default_headers`, which are added to this client's.
        """
        endpoint = self._endpoint
        headers = {**endpoint.default_headers, **changes.pop("default_headers", {})}
        settings: dict[str, Any] = {
            "api_key": endpoint.api_key or "",
            "timeout": endpoint.timeout_s,
            "max_retries": self._policy.max_retries,
            **changes,
        }
        return type(self)(endpoint.base_url, **settings, default_headers=headers, http_client=self._http)

    def complete(
        self,
        prompt: str | Sequence[int],
        num_drafts: int = 3,
        max_tokens: int = 16,
        *,
        timeout: float | None = None,
        max_retries: int | None = None,
        **options: Unpack[DraftsOptions],
    ) -> CompletionT:
        """Return the best `num_drafts` continuations of `prompt`, or fewer if there are not enough distinct ones.

        Args:
            prompt: text or token ids.
            num_drafts: k.
            max_tokens: maximum number of new tokens per draft.
            timeout: seconds; overrides the client's timeout for this request.
            max_retries: overrides the client's setting for this request.
            options: other fields of `POST /v1/drafts`, see `DraftsOptions`.

        Raises:
            ConnectionFailedError: no server answers at the base URL, or the connection broke.
            RequestTimeoutError: the server did not respond within the timeout.
            StatusError: the server responded with an error; see the subclasses.
            InvalidAnswerError: the response is not one of a Superdraft server.
        """
        call = drafts_call(prompt, num_drafts, max_tokens, options, self._completion)
        completion: CompletionT = self._ask(call, timeout, max_retries)
        return completion

    def stream(
        self,
        prompt: str | Sequence[int],
        num_drafts: int = 3,
        max_tokens: int = 16,
        *,
        timeout: float | None = None,
        max_retries: int | None = None,
        **options: Unpack[DraftsOptions],
    ) -> StreamT:
        """Stream the drafts of `complete` while they grow. Leaving the `with` block early cancels the request.

        ::

            with client.stream("Thank you for") as stream:
                for snapshot in stream:
                    print([draft.text for draft in snapshot.drafts])
                completion = stream.result()

        With `AsyncSuperdraft`, it is `async with`, `async for` and `await stream.result()`.

        Raises:
            ClientError: as in `complete`. Failures before the response begins are retried in the same way.
        """
        call = drafts_call(prompt, num_drafts, max_tokens, options, self._completion, stream=True)
        return self._stream(call, timeout, max_retries)

    def models(self) -> ModelsT:
        """List the values that the option `model` accepts.

        Raises:
            ClientError: as in `complete`.
        """
        models: ModelsT = self._ask(models_call())
        return models

    def feedback(
        self,
        completion_id: str,
        event: str,
        rank: int = 0,
        *,
        elapsed_ms: float | None = None,
    ) -> ReceiptT:
        """Report an event like `Completion.shown`, `accepted` and `dismissed`, given only the completion's id.

        Raises:
            ClientError: as in `complete`.
        """
        receipt: ReceiptT = self._ask(feedback_call(completion_id, event, rank, elapsed_ms))
        return receipt

    @abstractmethod
    def _ask(self, call: Call[Any], timeout: float | None = None, max_retries: int | None = None) -> Any:
        """Send a call, and read its answer."""

    @abstractmethod
    def _stream(self, call: Call[Any], timeout: float | None, max_retries: int | None) -> StreamT:
        """Send a call whose answer is a stream."""

    def _completion(self, answer: Any) -> ReportableAnswer[Any]:
        """Read an answer, whose feedback this client will send."""
        completion = self._kind.from_json(answer)
        object.__setattr__(completion, "_send", self._ask)  # the fields are frozen
        return completion

    def _timeout_s(self, timeout: float | None) -> float:
        return self._endpoint.timeout_s if timeout is None else checked_timeout(timeout)

    def _retries(self, max_retries: int | None) -> RetryPolicy:
        return self._policy if max_retries is None else RetryPolicy(max_retries)
