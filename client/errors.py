"""Exceptions raised by the client.

::

    ClientError
    ├── ConnectionFailedError      no server answers at the address, or the connection broke
    │   ├── InvalidAddressError    the address is not a valid HTTP URL
    │   └── StreamBrokenError      a stream ended before its last event
    ├── RequestTimeoutError        the server did not respond in time
    ├── InvalidAnswerError         the server is not Superdraft, or is an incompatible version
    └── StatusError                the server responded with an error
        ├── BadRequestError        invalid_request_error: the request must be corrected
        ├── AuthenticationError    authentication_error, permission_error
        ├── SupersededError        cancelled_error: replaced by a newer request of the same session
        ├── NotFoundError          not_found_error: no such model, completion or route
        ├── OverloadedError        rate_limit_error, overloaded_error: try again later
        └── ServerError            server_error
"""

from functools import partial
from typing import Any


class ClientError(Exception):
    """Base class of all exceptions that the client raises on purpose."""


class ConnectionFailedError(ClientError):
    """No server answers at the address, or the connection broke before the response was complete."""


class InvalidAddressError(ConnectionFailedError):
    """The address is not a valid HTTP URL."""


class StreamBrokenError(ConnectionFailedError):
    """The connection ended before the stream's last event; the drafts so far are not the final ones."""


class RequestTimeoutError(ClientError):
    """The server did not respond within the timeout."""


class InvalidAnswerError(ClientError):
    """The response is not one that a Superdraft server would send."""


class StatusError(ClientError):
    """The server responded with an error.

    Attributes:
        status: the HTTP status; 200 if the error arrived as an event of a stream.
        kind: the error's `type`.
        param: the field at fault, if a single field is.
        code: a short machine-readable reason.
        request_id: the server's `x-request-id`, which identifies the request in the server's log.
        should_retry: the server's `x-should-retry`; None if the header is missing.
        retry_after_s: seconds to wait before trying again; None if the server did not say.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        kind: str | None = None,
        param: str | None = None,
        code: str | None = None,
        request_id: str | None = None,
        should_retry: bool | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.param = param
        self.code = code
        self.request_id = request_id
        self.should_retry = should_retry
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle with the required keyword, so that a process pool can pass the error on."""
        return partial(type(self), status=self.status), self.args, vars(self)


class BadRequestError(StatusError):
    """The request is invalid or too large."""


class AuthenticationError(StatusError):
    """The API key is missing or invalid, or does not permit the request."""


class NotFoundError(StatusError):
    """The server has no such model, completion or route."""


class SupersededError(StatusError):
    """A newer request of the same session replaced this one. This is not a fault."""


class OverloadedError(StatusError):
    """The server is busy or shutting down, or the key's rate limit is reached; try again later."""


class ServerError(StatusError):
    """The server failed."""


_BY_TYPE: dict[str | None, type[StatusError]] = {
    "authentication_error": AuthenticationError,
    "permission_error": AuthenticationError,
    "not_found_error": NotFoundError,
    "cancelled_error": SupersededError,
    "rate_limit_error": OverloadedError,
    "overloaded_error": OverloadedError,
    "server_error": ServerError,
}
_BY_STATUS: dict[int, type[StatusError]] = {
    400: BadRequestError,
    413: BadRequestError,
    401: AuthenticationError,
    403: AuthenticationError,
    404: NotFoundError,
    499: SupersededError,
    429: OverloadedError,
    503: OverloadedError,
}


def error_class(status: int, kind: str | None = None) -> type[StatusError]:
    """Return the exception class for an error's type or, failing that, for its HTTP status.

    `invalid_request_error` is checked last, because the server also uses this type for unknown routes.
    """
    if found := _BY_TYPE.get(kind) or _BY_STATUS.get(status):
        return found
    if kind == "invalid_request_error":
        return BadRequestError
    return ServerError if status >= 500 else StatusError
