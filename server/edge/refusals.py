"""Exceptions for valid requests that are not answered: authentication, rate limits, overload, clients that leave."""

import math
from collections.abc import Mapping
from typing import Final

from superdraft.decoding.errors import EngineError

# The answer to a repeated keystroke would come too late: the user has typed on.
NO_RETRY: Final[Mapping[str, str]] = {"x-should-retry": "false"}


def retry_after(seconds: float) -> dict[str, str]:
    """Headers that say when a client may try again."""
    return {"retry-after-ms": str(math.ceil(seconds * 1000)), "retry-after": str(max(1, math.ceil(seconds)))}


class UnauthorizedError(Exception):
    """The request has no API key, or an unknown one."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code


class ForbiddenError(Exception):
    """The API key is known but lacks the scope."""


class TooManyRequestsError(Exception):
    """A limit is reached, the caller's own or the server's.

    Args:
        message: which limit.
        code: a short machine-readable reason.
        retry_after_s: seconds after which the client may try again.
    """

    def __init__(self, message: str, *, code: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.code = code
        self.headers = {**NO_RETRY, **retry_after(retry_after_s)}


class OverloadedError(TooManyRequestsError, EngineError):
    """The server is full. Like the engine's errors, this one may end a stream."""


class ClientGoneError(Exception):
    """The client closed the connection before its answer was ready."""
