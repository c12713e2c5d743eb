"""The pages for browsers: the playground at `/`, and the page of the HTTP API at `/docs`.

The playground shows drafts while a user types. The API's page is Swagger UI, from files of the package fastapi-swagger.
Both are public, since a browser sends no key when it opens an address: they hold only files of packages, and contact no
other site. They get everything else from the API, with a key if the server requires one.
"""

from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse
from starlette.staticfiles import StaticFiles

_STATIC = Path(__file__).parents[1] / "static"
_POLICY = "default-src 'none'; script-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
_POLICY += "frame-ancestors 'none'; "
# Only its own files and its own server: no inline scripts or styles, no other site, no text turned into HTML.
_PLAYGROUND_POLICY = _POLICY + (
    "style-src 'self'; img-src 'self'; require-trusted-types-for 'script'; trusted-types 'none'"
)
# Swagger UI sets styles of its elements, and its style sheet has small pictures as data.
_API_POLICY = _POLICY + "style-src 'self' 'unsafe-inline'; img-src 'self' data:"

_FILES = StaticFiles(directory=_STATIC)
_SWAGGER_FILES = StaticFiles(packages=[("fastapi_swagger", "resources")])

router = APIRouter(include_in_schema=False)


@router.api_route("/", methods=["GET", "HEAD"])
def playground() -> FileResponse:
    """The playground. Its links are relative, so it also works under another path behind a proxy."""
    return FileResponse(_STATIC / "playground.html", headers={"content-security-policy": _PLAYGROUND_POLICY})


@router.api_route("/docs", methods=["GET", "HEAD"])
def api_page() -> FileResponse:
    """The API's page. Its links are relative, too."""
    return FileResponse(_STATIC / "docs.html", headers={"content-security-policy": _API_POLICY})


@router.api_route("/static/{name:path}", methods=["GET", "HEAD"])
async def page_file(request: Request, name: str) -> Response:
    """One of the playground's files; 404 for any other name."""
    return await _FILES.get_response(name, request.scope)


@router.api_route("/docs/{name}", methods=["GET", "HEAD"])
async def swagger_file(request: Request, name: str) -> Response:
    """One of Swagger UI's files; 404 for any other name."""
    return await _SWAGGER_FILES.get_response(name, request.scope)
