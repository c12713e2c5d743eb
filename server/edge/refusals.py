"""Why a request is not served although nothing in it is wrong: who asks, how often, and how much there is to do."""

import math
from collections.abc import Mapping
from typing import Final

from superdraft.decoding.errors import EngineError

# A client that sends the same key press again gets an answer that nobody waits for any more.
NO_RETRY: Final[Mapping[str, str]] = {"x-should-retry": "false"}


def retry_after(seconds: float) -> dict[str, str]:
    """Headers that say when it may be worth asking again."""
    return {"retry-after-ms": str(math.ceil(seconds * 1000)), "retry-after": str(max(1, math.ceil(seconds)))}


class UnauthorizedError(Exception):
    """No key, or one that is not known."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code


class ForbiddenError(Exception):
    """The key is known but does not have the scope."""


class TooManyRequestsError(Exception):
    """A limit is reached, the caller's own or the server's.

    Args:
        message: which limit.
        code: a short machine-readable reason.
        retry_after_s: when it may be worth asking again.
    """

    def __init__(self, message: str, *, code: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.code = code
        self.headers = {**NO_RETRY, **retry_after(retry_after_s)}


class OverloadedError(TooManyRequestsError, EngineError):
    """The server has too much to do; like all of the engine's errors, it may end a stream."""
