"""Requests and responses of both clients, independent of the network."""

import contextlib
import json
import math
import os
import re
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypedDict, TypeVar

import httpx

from superdraft.client.errors import (
    ConnectionFailedError,
    InvalidAddressError,
    InvalidAnswerError,
    RequestTimeoutError,
    StatusError,
    StreamBrokenError,
    error_class,
)
from superdraft.client.models import FeedbackReceipt, Model, from_json
from superdraft.client.retries import retry_after_s, should_retry

URL_VARIABLE, API_KEY_VARIABLE = "SUPERDRAFT_URL", "SUPERDRAFT_API_KEY"
DEFAULT_URL = "http://127.0.0.1:8000"
DRAFTS_ROUTE = "/v1/drafts"
FEEDBACK_ROUTE = "/v1/feedback"
MODELS_ROUTE = "/v1/models"
SESSION_HEADER = "x-session-id"
EVENT_STREAM = "text/event-stream"
READ_TOO_LATE = "The stream is closed: read it before its `with` block ends."
_HEADER_CHARACTERS = "".join(map(chr, range(0x21, 0x7F))).replace("%", "")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")

T = TypeVar("T")


class DraftsOptions(TypedDict, total=False):
    """Optional fields of `POST /v1/drafts`; the server chooses the missing ones. See docs/http-api.md."""

    model: str
    stop: str | Sequence[str]
    strategy: str
    selection: str
    max_branches: int
    min_probability: float
    min_draft_tokens: int
    elastic: bool
    alpha: float
    tau: float
    candidates_per_draft: int
    ngram_model: str | Mapping[str, float] | None  # None: no n-gram model
    num_branches: int
    temperature: float
    top_p: float
    seed: int
    reset_every: int
    logit_bias: Mapping[int, float]
    frequency_penalty: float
    presence_penalty: float
    token_healing: bool
    corrections: str
    single_line: bool
    trim: str
    min_score: float
    suffix: str
    path: str
    trigger: str
    min_probability_shown: float
    session_id: str
    timeout_ms: int


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A request, and how to read its response.

    Attributes:
        method: the HTTP method.
        path: the path after the base URL.
        read: converts the parsed JSON of a successful response; raises InvalidAnswerError.
        body: the JSON object to send; None for no body.
        headers: headers in addition to those of every request.
    """

    method: str
    path: str
    read: Callable[[Any], T]
    body: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server's address, and the settings for requests to it.

    Attributes:
        base_url: for example "http://127.0.0.1:8000".
        api_key: sent as a bearer token.
        timeout_s: seconds to wait for the connection, and then for each part of the response.
        default_headers: further headers of every request.
    """

    base_url: str
    api_key: str | None
    timeout_s: float
    default_headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        base_url: str | None,
        api_key: str | None,
        timeout: float,
        default_headers: Mapping[str, str] | None = None,
    ) -> "Endpoint":
        """Check the arguments and build an endpoint; a trailing "/v1" is removed from the URL.

        Args:
            base_url: None: that of the environment, or of a server on this machine.
            api_key: None: that of the environment; an empty one: no key.
            timeout: seconds.
            default_headers: further headers of every request.

        Raises:
            ValueError: the key or a header is not valid in HTTP, or the timeout is not a positive number.
        """
        url = base_url if base_url is not None else os.environ.get(URL_VARIABLE) or DEFAULT_URL
        key = (os.environ.get(API_KEY_VARIABLE) if api_key is None else api_key) or None
        if key is not None and not _fits_header(key):
            raise ValueError(f"{API_KEY_VARIABLE if api_key is None else 'api_key'} must be {_FITTING}")
        headers = {name.lower(): value for name, value in dict(default_headers or {}).items()}
        for name, value in headers.items():
            if not _HEADER_NAME.fullmatch(name):
                raise ValueError(f"default_headers has {name!r}, which is not a valid name of a header")
            if not _fits_header(value):
                raise ValueError(f"The value of {name!r} in default_headers must be {_FITTING}")
        return cls(url.rstrip("/").removesuffix("/v1"), key, checked_timeout(timeout), headers)

    @property
    def headers(self) -> dict[str, str]:
        """Headers of every request."""
        key = {} if self.api_key is None else {"authorization": f"Bearer {self.api_key}"}
        return {**key, **self.default_headers}

    def request(self, call: Call[Any], timeout_s: float) -> dict[str, Any]:
        """Return the arguments for httpx's `build_request`.

        Raises:
            ValueError: the body cannot be represented as JSON.
        """
        kind = {} if call.body is None else {"content-type": "application/json"}
        headers = {**self.headers, **call.headers, **kind}
        content = None if call.body is None else _json_bytes(call.body)
        url = self.base_url + call.path
        return {"method": call.method, "url": url, "content": content, "headers": headers, "timeout": timeout_s}

    @contextlib.contextmanager
    def translating(self, timeout_s: float, *, streams: bool = False) -> Iterator[None]:
        """Translate exceptions of httpx into the client's.

        Args:
            timeout_s: the timeout in force, for the error message.
            streams: whether the response has begun, so that a failure means a broken stream.
        """
        try:
            yield
        except httpx.TimeoutException:
            raise RequestTimeoutError(f"{self.base_url} did not respond within {timeout_s:g} s.") from None
        except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise InvalidAddressError(f"{self.base_url!r} is not a valid server address ({error}).") from None
        except httpx.StreamClosed:
            raise StreamBrokenError(READ_TOO_LATE) from None
        except RuntimeError as error:
            if str(error) != "Event loop is closed":
                raise
            # A kept connection of a loop that has ended, as between two calls of `asyncio.run`. It is dropped now, so a
            # retry opens another.
            message = f"The connection to {self.base_url} belongs to an event loop that has ended."
            raise ConnectionFailedError(message) from None
        except httpx.DecodingError:
            raise InvalidAnswerError(f"The response of {self.base_url} cannot be decompressed.") from None
        except httpx.TransportError as error:
            if streams:
                raise StreamBrokenError(broken(self.base_url)) from None
            if isinstance(error, httpx.ConnectError):
                message = f"No server answers at {self.base_url} ({error}). Is `superdraft serve` running there?"
            else:
                message = f"The connection to {self.base_url} broke before the response was complete ({error})."
            raise ConnectionFailedError(message) from None


_FITTING = "a string of printable ASCII characters without blanks around them"


def _fits_header(value: object) -> bool:
    return isinstance(value, str) and value.isascii() and value.isprintable() and value == value.strip()


def _json_bytes(body: Mapping[str, Any]) -> bytes:
    fields = []
    for name, value in body.items():
        try:
            field = json.dumps({name: value}, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
            fields.append(field[1:-1].encode())
        except UnicodeEncodeError:
            raise ValueError(f"{name} contains half a surrogate pair, which is not valid Unicode.") from None
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{name} cannot be sent as JSON: {error}.") from None
    return b"{" + b",".join(fields) + b"}"


def checked_timeout(timeout: float) -> float:
    """Return `timeout`, in seconds, if it is valid.

    Raises:
        ValueError: it is not a number, not finite or not above 0.
    """
    if not isinstance(timeout, int | float) or not math.isfinite(timeout) or timeout <= 0:
        raise ValueError(f"timeout must be a finite number of seconds above 0, got {timeout!r}")
    return timeout


def drafts_call(
    prompt: str | Sequence[int],
    num_drafts: int,
    max_tokens: int,
    options: DraftsOptions,
    read: Callable[[Any], T],
    *,
    stream: bool = False,
) -> Call[T]:
    """`POST /v1/drafts`, whose answer `read` converts.

    The session id is also sent as a header, for proxies that read no bodies.

    Raises:
        TypeError: the prompt is neither a text nor a sequence of token ids, or `stream` is among the options.
    """
    # Bytes would pass as token ids, and a stream as an answer that is not JSON.
    if isinstance(prompt, bytes | bytearray) or not isinstance(prompt, Iterable):
        raise TypeError(f"prompt must be a string or a sequence of token ids, got {type(prompt).__name__}")
    if "stream" in options:
        raise TypeError("stream is not an option: for a stream, call the client's method `stream`")
    body: dict[str, Any] = {
        "prompt": prompt if isinstance(prompt, str) else list(prompt),
        "num_drafts": num_drafts,
        "max_tokens": max_tokens,
        **options,
    }
    headers = {}
    if isinstance(session_id := body.get("session_id"), str):
        headers[SESSION_HEADER] = urllib.parse.quote(session_id, safe=_HEADER_CHARACTERS)
    if stream:
        body["stream"] = True
        headers["accept"] = EVENT_STREAM
    return Call("POST", DRAFTS_ROUTE, read, body, headers)


def feedback_call(completion_id: str, event: str, rank: int, elapsed_ms: float | None = None) -> Call[FeedbackReceipt]:
    """`POST /v1/feedback`."""
    body: dict[str, Any] = {"completion_id": completion_id, "event": event, "index": rank}
    if elapsed_ms is not None:
        body["elapsed_ms"] = elapsed_ms
    return Call("POST", FEEDBACK_ROUTE, lambda answer: from_json(FeedbackReceipt, answer, FEEDBACK_ROUTE), body)


@dataclass(frozen=True, slots=True)
class _ModelList:
    data: tuple[Model, ...]


def models_call() -> Call[tuple[Model, ...]]:
    """`GET /v1/models`."""
    return Call("GET", MODELS_ROUTE, lambda answer: from_json(_ModelList, answer, MODELS_ROUTE).data)


def read_answer(call: Call[T], response: httpx.Response, base_url: str) -> T:
    """Parse a successful response whose body has been read.

    Raises:
        InvalidAnswerError: the body is not a valid response to this call.
    """
    try:
        answer = response.json()
    except (ValueError, RecursionError):
        raise InvalidAnswerError(f"The response of {base_url} is not JSON.") from None
    return call.read(answer)


def status_error(response: httpx.Response) -> StatusError:
    """Build the exception for an error response whose body has been read."""
    try:
        error = response.json()["error"]
    except (ValueError, RecursionError, KeyError, TypeError):  # an error page of a proxy, or another kind of server
        error = None
    return error_of(error, response)


def error_of(error: Any, response: httpx.Response) -> StatusError:
    """Build the exception for an `error` object in a response or in one of its events."""
    detail = error if isinstance(error, Mapping) else {}
    message, kind, param, code = (
        value if isinstance(value := detail.get(name), str) else None for name in ("message", "type", "param", "code")
    )
    return error_class(response.status_code, kind)(
        message or f"The server responded with status {response.status_code}.",
        status=response.status_code,
        kind=kind,
        param=param,
        code=code,
        request_id=response.headers.get("x-request-id"),
        should_retry=should_retry(response.headers),
        retry_after_s=retry_after_s(response.headers),
    )


def broken(base_url: str) -> str:
    """Return the message for a stream that ended too early."""
    return f"The connection to {base_url} ended before the drafts were finished."
