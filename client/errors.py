"""The exceptions of the client.

::

    ClientError
    ├── ConnectionFailedError      no server answers there
    ├── RequestTimeoutError        it did not answer in time
    ├── InvalidAnswerError         what answers is no Superdraft server, or one of another version
    └── StatusError                it answered with an error
        ├── BadRequestError        400, 413: mend the request
        ├── AuthenticationError    401, 403
        ├── SupersededError        499: a newer request of the same session took its place
        ├── NotFoundError          404: the model or the route
        ├── OverloadedError        429, 503: try again later
        └── ServerError            other 5xx
"""


class ClientError(Exception):
    """Base of every exception that the client raises on purpose."""


class ConnectionFailedError(ClientError):
    """No server answers at the address."""


class RequestTimeoutError(ClientError):
    """The server did not answer within the timeout."""


class InvalidAnswerError(ClientError):
    """The answer is not one of a Superdraft server."""


class StatusError(ClientError):
    """The server answered with an error.

    Attributes:
        status: the HTTP status.
        kind: the error's `type`.
        param: the field at fault, if it is one.
        code: a short machine-readable reason.
        request_id: the server's `x-request-id`, to find the request in its log.
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
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.param = param
        self.code = code
        self.request_id = request_id


class BadRequestError(StatusError):
    """The request is wrong, or too large."""


class AuthenticationError(StatusError):
    """The API key is missing or not good enough."""


class NotFoundError(StatusError):
    """The server has no such model or route."""


class SupersededError(StatusError):
    """A newer request of the same session took this one's place; nothing is wrong."""


class OverloadedError(StatusError):
    """The server is busy or shutting down; try again later."""


class ServerError(StatusError):
    """The server failed."""


def error_class(status: int) -> type[StatusError]:
    """The exception of an HTTP status."""
    by_status: dict[int, type[StatusError]] = {
        400: BadRequestError,
        413: BadRequestError,
        401: AuthenticationError,
        403: AuthenticationError,
        404: NotFoundError,
        499: SupersededError,
        429: OverloadedError,
        503: OverloadedError,
    }
    return by_status.get(status, ServerError if status >= 500 else StatusError)
