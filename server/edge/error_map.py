"""Errors as HTTP answers, in OpenAI's JSON shape: `{"error": {"message", "type", "param", "code"}}`.

`_ERRORS` is the only table from exceptions to statuses, for JSON answers and event streams. No message holds prompt
text or a traceback.
"""

import http
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from structlog.contextvars import get_contextvars

from superdraft.decoding.errors import (
    EngineStoppedError,
    InvalidRequestError,
    SequenceFailedError,
    SuperdraftError,
    SupersededError,
)
from superdraft.server.edge.refusals import (
    NO_RETRY,
    ForbiddenError,
    TooManyRequestsError,
    UnauthorizedError,
    retry_after,
)
from superdraft.server.observe.request_record import CLIENT_CLOSED_REQUEST, current_record

log = structlog.get_logger(__name__)

_MAX_QUOTED = 80
# The beginning of Pydantic's messages, which is replaced by the field's name.
_SUBJECT = re.compile(r"^(Value error, |(Input|String|List|Dictionary) (?=should ))")


class BodyTooLargeError(Exception):
    """The request's body is over the limit."""


class MalformedBodyError(Exception):
    """The request's body is not a JSON object."""


class NotFoundError(Exception):
    """A model named in the request does not exist here."""

    def __init__(self, message: str, *, param: str, code: str) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ErrorDetail(BaseModel):
    """The error."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorEvent(BaseModel):
    """The last event of a stream that fails. The request's id is in the header `x-request-id`."""

    error: ErrorDetail


class ErrorResponse(ErrorEvent):
    """The body of every error answer. `request_id`: as in the header `x-request-id` and in the log."""

    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """The answer to an exception."""

    status: int
    detail: ErrorDetail
    headers: Mapping[str, str] = field(default_factory=dict)
    cause: Exception | None = None

    @property
    def body(self) -> ErrorEvent:
        """The answer as an event of a stream."""
        return ErrorEvent(error=self.detail)

    def log(self) -> None:
        """Note the failure for the request's log line, and on a line of its own if it is the server's fault."""
        current_record().fail(self.status, self.detail.code)
        if self.status >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
            cause = self.cause if self.status == http.HTTPStatus.INTERNAL_SERVER_ERROR else None
            log.error("request_failed", status=self.status, error=self.detail.message, exc_info=cause)


_RETRY_SOON = {"x-should-retry": "true", **retry_after(1.0)}  # by then another server may be ready

# exception -> (HTTP status, type, code and headers unless the exception has its own); the first match applies
_ERRORS: tuple[tuple[type[Exception], int, str, str, Mapping[str, str]], ...] = (
    (UnauthorizedError, 401, "authentication_error", "invalid_api_key", {"www-authenticate": "Bearer"}),
    (ForbiddenError, 403, "permission_error", "insufficient_scope", {}),
    (TooManyRequestsError, 429, "rate_limit_error", "too_many_requests", {}),
    (InvalidRequestError, 400, "invalid_request_error", "invalid_value", {}),
    (MalformedBodyError, 400, "invalid_request_error", "invalid_json", {}),
    (NotFoundError, 404, "not_found_error", "not_found", {}),
    (BodyTooLargeError, 413, "invalid_request_error", "body_too_large", {}),
    (SupersededError, CLIENT_CLOSED_REQUEST, "cancelled_error", "superseded", NO_RETRY),
    (EngineStoppedError, 503, "overloaded_error", "shutting_down", _RETRY_SOON),
    (SequenceFailedError, 500, "server_error", "sequence_failed", {}),
    (SuperdraftError, 500, "server_error", "engine_failed", {}),
)


def failure_of(error: Exception) -> Failure:
    """The answer to an exception. One that is not in the table is an internal error, whose message is not sent."""
    for kind_of_error, status, kind, code, headers in _ERRORS:
        if isinstance(error, kind_of_error):
            code, param = getattr(error, "code", code), getattr(error, "param", None)
            headers = getattr(error, "headers", headers)
            return Failure(status, ErrorDetail(message=str(error), type=kind, param=param, code=code), headers, error)
    message = "The server failed on this request; its log says why, under the request id in x-request-id."
    return Failure(500, ErrorDetail(message=message, type="server_error", code="internal_error"), cause=error)


def response_of(error: Exception) -> JSONResponse:
    """The HTTP response to an exception, which is also logged."""
    return _response(failure_of(error))


def _response(failure: Failure) -> JSONResponse:
    failure.log()
    body = ErrorResponse(error=failure.detail, request_id=get_contextvars().get("request_id"))
    return JSONResponse(body.model_dump(), failure.status, headers=failure.headers)


def install(app: FastAPI) -> None:
    """Answer every expected failure of `app` in the error shape."""
    for kind_of_error, *_ in _ERRORS:
        app.add_exception_handler(kind_of_error, _on_expected)
    app.add_exception_handler(HTTPException, _on_http)


async def _on_expected(_: Request, error: Exception) -> JSONResponse:
    return response_of(error)


async def _on_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    status, where = error.status_code, f"{request.method[:_MAX_QUOTED]} {request.url.path[:_MAX_QUOTED]}"
    if status == http.HTTPStatus.NOT_FOUND:
        message, code = f"There is no {where} here; GET /docs lists the routes.", "route_not_found"
    elif status == http.HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "another method")
        message, code = f"{where} is not allowed; this path takes {allowed}.", "method_not_allowed"
    else:
        message, code = str(error.detail), http.HTTPStatus(status).name.lower()
    return _response(
        Failure(status, ErrorDetail(message=message, type="invalid_request_error", code=code), error.headers or {})
    )


def invalid_request(error: ValidationError) -> InvalidRequestError:
    """Pydantic's first error as a message with field, limit and value, which quotes no text of the caller."""
    item = error.errors(include_url=False)[0]
    path = [str(part)[:_MAX_QUOTED] for part in item["loc"]]
    param = path[0] if path else None
    where = ".".join(path) or "The body"
    if item["type"] == "missing":
        return InvalidRequestError(f"{where} is missing; it is required.", param=param, code="missing")
    if item["type"] == "extra_forbidden":
        return InvalidRequestError(
            f"{where} is not a field of this request; /docs lists them.", param=param, code="unknown_field"
        )
    problem = _SUBJECT.sub("", item["msg"])
    if item["type"] == "less_than":  # Pydantic's message has the limit of `seed`, 2**63, as a rounded float
        problem = f"should be less than {item['ctx']['lt']}"
    return InvalidRequestError(f"{where} {problem}, got {describe(item['input'])}.", param=param)


def describe(value: Any) -> str:
    """A JSON value in an error message: numbers as they are, text and containers by kind and size."""
    match value:
        case None | bool():
            return {None: "null", True: "true", False: "false"}[value]
        case int():
            return str(value) if abs(value) < 10**18 else "a larger integer"
        case float():
            return f"{value:g}" if math.isfinite(value) else "a number that is not finite"
        case str():
            return f"a string of {len(value)} characters"
        case list() | tuple():
            return f"a list of {len(value)}"
        case dict():
            return f"an object of {len(value)}"
        case _:
            return type(value).__name__
