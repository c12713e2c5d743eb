"""The playground: a page at `/` that shows drafts while a user types.

The page and its files are public, since a browser sends no key when it opens an address. They hold only files of this
package. The page gets everything else from the API, with a key if the server requires one.
"""

from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse
from starlette.staticfiles import StaticFiles

_STATIC = Path(__file__).parents[1] / "static"
# Only its own files and its own server: no inline scripts or styles, no other site, no text turned into HTML.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)

_FILES = StaticFiles(directory=_STATIC)

router = APIRouter(include_in_schema=False)


@router.api_route("/", methods=["GET", "HEAD"])
def playground() -> FileResponse:
    """The page. Its links are relative, so it also works under another path behind a proxy."""
    return FileResponse(_STATIC / "playground.html", headers={"content-security-policy": _POLICY})


@router.api_route("/static/{name:path}", methods=["GET", "HEAD"])
async def page_file(request: Request, name: str) -> Response:
    """One of the page's files; 404 for any other name."""
    return await _FILES.get_response(name, request.scope)
