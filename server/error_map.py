"""Every failure in one JSON shape, OpenAI's: `{"error": {"message", "type", "param", "code"}}`.

`_ERRORS` is the one table from exception to status. No message holds prompt text or a traceback.
"""

import http
import math
from collections.abc import Mapping
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from superdraft.decoding.errors import EngineStoppedError, InvalidRequestError, SequenceFailedError, SuperdraftError

log = structlog.get_logger(__name__)

_MAX_QUOTED = 80


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
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


# exception -> (HTTP status, type, code unless the exception has its own); the first match counts
_ERRORS: tuple[tuple[type[Exception], int, str, str], ...] = (
    (InvalidRequestError, 400, "invalid_request_error", "invalid_value"),
    (MalformedBodyError, 400, "invalid_request_error", "invalid_json"),
    (NotFoundError, 404, "not_found_error", "not_found"),
    (BodyTooLargeError, 413, "invalid_request_error", "body_too_large"),
    (EngineStoppedError, 503, "overloaded_error", "shutting_down"),
    (SequenceFailedError, 500, "server_error", "sequence_failed"),
    (SuperdraftError, 500, "server_error", "engine_failed"),
)


def error_response(
    status: int,
    message: str,
    *,
    kind: str,
    code: str,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """An answer in OpenAI's error shape."""
    detail = ErrorDetail(message=message, type=kind, param=param, code=code)
    return JSONResponse(ErrorResponse(error=detail).model_dump(), status, headers=headers)


def response_of(error: Exception) -> JSONResponse:
    """The answer for an exception; one that is not in the table is an internal error that tells nothing."""
    for kind_of_error, status, kind, code in _ERRORS:
        if isinstance(error, kind_of_error):
            code, param = getattr(error, "code", code), getattr(error, "param", None)
            return error_response(status, str(error), kind=kind, code=code, param=param)
    message = "The server failed on this request; its log says why, under the request id in x-request-id."
    return error_response(500, message, kind="server_error", code="internal_error")


def install(app: FastAPI) -> None:
    """Answer every expected failure of `app` in the error shape."""
    for kind_of_error, *_ in _ERRORS:
        app.add_exception_handler(kind_of_error, _on_expected)
    app.add_exception_handler(HTTPException, _on_http)


async def _on_expected(_: Request, error: Exception) -> JSONResponse:
    response = response_of(error)
    if response.status_code >= 500:
        log.error("request_failed", status=response.status_code, error=str(error))
    return response


async def _on_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 (what it is registered for)
    status, where = error.status_code, f"{request.method} {request.url.path[:_MAX_QUOTED]}"
    if status == http.HTTPStatus.NOT_FOUND:
        message, code = f"There is no {where} here; GET /docs lists what there is.", "route_not_found"
    elif status == http.HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "another method")
        message, code = f"{where} is not allowed; this path takes {allowed}.", "method_not_allowed"
    else:
        message, code = str(error.detail), http.HTTPStatus(status).name.lower()
    return error_response(status, message, kind="invalid_request_error", code=code, headers=error.headers)


def invalid_request(error: ValidationError) -> InvalidRequestError:
    """Pydantic's first complaint as a message that names field, limit and value, but quotes no text of the caller."""
    item = error.errors(include_url=False, include_context=False)[0]
    path = [str(part)[:_MAX_QUOTED] for part in item["loc"]]
    param = path[0] if path else None
    where = ".".join(path) or "The body"
    if item["type"] == "missing":
        return InvalidRequestError(f"{where} is missing; it is required.", param=param, code="missing")
    if item["type"] == "extra_forbidden":
        return InvalidRequestError(
            f"{where} is not a field of this request; /docs lists them.", param=param, code="unknown_field"
        )
    complaint = item["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return InvalidRequestError(f"{where} {complaint}, got {describe(item['input'])}.", param=param)


def describe(value: Any) -> str:
    """A JSON value for an error message: numbers as they are, text and containers by kind and size."""
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
        case _:
            return "an object" if isinstance(value, dict) else type(value).__name__
