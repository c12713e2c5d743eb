"""Reads a request's body as JSON into a schema, whatever its content type.

`curl -d` sends `application/x-www-form-urlencoded`, and editor plugins send various types. All routes here take JSON,
so the header carries no information.
"""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.requests import ClientDisconnect

from superdraft.server.edge.error_map import BodyTooLargeError, MalformedBodyError, describe, invalid_request

SchemaT = TypeVar("SchemaT", bound=BaseModel)


def json_body(schema: type[SchemaT]) -> Callable[[Request], Awaitable[SchemaT]]:
    """A FastAPI dependency that reads the body as a `schema`.

    The dependency raises BodyTooLargeError, MalformedBodyError and InvalidRequestError.
    """

    async def read(request: Request) -> SchemaT:
        body = await _read_body(request, request.app.state.settings.max_body_bytes)
        try:
            return schema.model_validate(_parse_object(body))
        except ValidationError as error:
            raise invalid_request(error) from None

    return read


def documented(schema: type[BaseModel]) -> dict[str, Any]:
    """OpenAPI fields of a route whose body `json_body(schema)` reads. The schema must not contain other schemas."""
    content = {"application/json": {"schema": schema.model_json_schema()}}
    return {"requestBody": {"required": True, "content": content}}


async def _read_body(request: Request, limit: int) -> bytes:
    too_large = BodyTooLargeError(f"The body is over the limit of {limit} bytes; send a shorter prompt.")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limit:
        raise too_large
    chunks, size = [], 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                raise too_large
            chunks.append(chunk)
    except ClientDisconnect:
        raise MalformedBodyError("The connection was closed before the whole body was read.") from None
    return b"".join(chunks)


def _parse_object(body: bytes) -> dict[str, Any]:
    """Strict JSON: UTF-8, no NaN or Infinity, no lone surrogates, 200 levels at most."""
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise MalformedBodyError(f"The body is not valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise MalformedBodyError(f"The body must be a JSON object, got {describe(value)}.")
    return value
