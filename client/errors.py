"""The exceptions of the client.

::

    ClientError
    ├── ConnectionFailedError      no server answers there, or the connection broke
    │   ├── InvalidAddressError    the address is none
    │   └── StreamBrokenError      a stream ended before its last event
    ├── RequestTimeoutError        it did not answer in time
    ├── InvalidAnswerError         what answers is no Superdraft server, or one of another version
    └── StatusError                it answered with an error
        ├── BadRequestError        invalid_request_error: mend the request
        ├── AuthenticationError    authentication_error, permission_error
        ├── SupersededError        cancelled_error: a newer request of the same session took its place
        ├── NotFoundError          not_found_error: the model, the completion or the route
        ├── OverloadedError        rate_limit_error, overloaded_error: try again later
        └── ServerError            server_error
"""


class ClientError(Exception):
    """Base of every exception that the client raises on purpose."""


class ConnectionFailedError(ClientError):
    """No server answers at the address, or the connection broke before the answer was complete."""


class InvalidAddressError(ConnectionFailedError):
    """The address is not one that HTTP can go to."""


class StreamBrokenError(ConnectionFailedError):
    """The connection ended before the stream's last event; the drafts so far are not the final ones."""


class RequestTimeoutError(ClientError):
    """The server did not answer within the timeout."""


class InvalidAnswerError(ClientError):
    """The answer is not one of a Superdraft server."""


class StatusError(ClientError):
    """The server answered with an error.

    Attributes:
        status: the HTTP status; 200 if the error came as an event of a stream.
        kind: the error's `type`.
        param: the field at fault, if it is one.
        code: a short machine-readable reason.
        request_id: the server's `x-request-id`, to find the request in its log.
        should_retry: the server's `x-should-retry`; None: it doesn't say.
        retry_after_s: when it may be worth asking again; None: it doesn't say.
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


class BadRequestError(StatusError):
    """The request is wrong, or too large."""


class AuthenticationError(StatusError):
    """The API key is missing or not good enough."""


class NotFoundError(StatusError):
    """The server has no such model, completion or route."""


class SupersededError(StatusError):
    """A newer request of the same session took this one's place; nothing is wrong."""


class OverloadedError(StatusError):
    """The server is busy or shutting down, or the key's limit is reached; try again later."""


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
    """The exception of an error's type, or else of its HTTP status.

    `invalid_request_error` comes last: a route that is not there has this type, too.
    """
    if found := _BY_TYPE.get(kind) or _BY_STATUS.get(status):
        return found
    if kind == "invalid_request_error":
        return BadRequestError
    return ServerError if status >= 500 else StatusError
