"""The page of the HTTP API at `/docs`: Swagger UI, from files of the package fastapi-swagger.

Like the playground, the page is public and contacts no other site, so it also works without internet.
"""

from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse
from starlette.staticfiles import StaticFiles

_PAGE = Path(__file__).parents[1] / "static" / "docs.html"
# Swagger UI sets styles of its elements, and its style sheet has small pictures as data.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)

_FILES = StaticFiles(packages=[("fastapi_swagger", "resources")])

router = APIRouter(include_in_schema=False)


@router.api_route("/docs", methods=["GET", "HEAD"])
def page() -> FileResponse:
    """The page. Its links are relative, so it also works under another path behind a proxy."""
    return FileResponse(_PAGE, headers={"content-security-policy": _POLICY})


@router.api_route("/docs/{name}", methods=["GET", "HEAD"])
async def swagger_file(request: Request, name: str) -> Response:
    """One of Swagger UI's files; 404 for any other name."""
    return await _FILES.get_response(name, request.scope)
