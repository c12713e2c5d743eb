"""Tabby's wire, as its editor plugins use it. Unknown fields are ignored.

Completions come on OpenAI's path, `POST /v1/completions`, and are recognised by their field `segments`.
"""

import contextlib
import uuid
from importlib.metadata import version
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, FailFast, Field, ValidationError, field_validator

from superdraft.decoding.text.fim import ContextFile, Gap
from superdraft.server.edge.error_map import NotFoundError, invalid_request
from superdraft.server.observe.metrics import DraftEvent
from superdraft.server.service import Service
from superdraft.server.wires.common import (
    ERROR_RESPONSES,
    MAX_PATH_CHARS,
    MAX_SNIPPETS,
    Integer,
    Number,
    ServiceDep,
    WireRequest,
    at_most,
    sender,
)
from superdraft.server.wires.editors import EditorRequest, drafting_request, fill
from superdraft.server.wires.feedback import MAX_ELAPSED_MS
from superdraft.server.wires.json_body import documented, json_body

# Schemas


class TabbySnippet(WireRequest):
    """A piece of code from another place."""

    filepath: str = Field(default="", max_length=MAX_PATH_CHARS)
    body: str


TabbySnippets = Annotated[tuple[TabbySnippet, ...], FailFast(), at_most(MAX_SNIPPETS, "snippets")]


class TabbySegments(WireRequest):
    """The text around the cursor, and related code that the plugin found."""

    prefix: str
    suffix: str = ""
    filepath: str = Field(default="", max_length=MAX_PATH_CHARS)
    declarations: TabbySnippets = ()
    relevant_snippets_from_changed_files: TabbySnippets = ()
    relevant_snippets_from_recently_opened_files: TabbySnippets = ()

    def gap(self) -> Gap:
        """The place to fill. Declarations of the names used there are the most useful context, so they come last."""
        snippets = [
            *self.relevant_snippets_from_recently_opened_files,
            *self.relevant_snippets_from_changed_files,
            *self.declarations,
        ]
        context = tuple(ContextFile(snippet.filepath, snippet.body) for snippet in snippets)
        return Gap(self.prefix, self.suffix, context, self.filepath)


class TabbyRequest(EditorRequest):
    """`POST /v1/completions` with `segments`. `temperature` and `seed` are for the sampling strategies."""

    segments: TabbySegments
    language: str = ""
    user: str | None = Field(default=None, max_length=256)
    seed: Integer | None = Field(default=None, ge=-(2**63), lt=2**64)
    mode: str = "standard"

    @field_validator("mode")
    @classmethod
    def _completes(cls, mode: str) -> str:
        if mode != "standard":  # a client could take a completion for code that is to replace its own
            raise ValueError('must be "standard": this server completes text, and edits none')
        return mode


class TabbyEvent(WireRequest):
    """`POST /v1/events`: what the user did with a choice."""

    type: Literal["view", "select", "dismiss"]
    completion_id: str = Field(min_length=1, max_length=128)
    choice_index: Integer = Field(default=0, ge=0)
    view_id: str | None = None
    elapsed: Number | None = None


class TabbyVersion(BaseModel):
    """`git_describe` must not be empty, or the plugins do not recognise a Tabby server."""

    git_describe: str


class TabbyHealth(BaseModel):
    """The answer to the plugins' first request."""

    model: str
    device: str
    version: TabbyVersion


class TabbyServerSetting(BaseModel):
    """Settings for the plugins."""

    disable_client_side_telemetry: bool = True


# Routes

_MEANINGS: dict[str, DraftEvent] = {"view": "shown", "select": "accepted", "dismiss": "dismissed"}

router = APIRouter(tags=["Tabby"])


async def complete_segments(body: dict[str, Any], request: Request, service: Service) -> JSONResponse:
    """Answer a Tabby completion: the best draft, or the next one for a request that repeats the one before.

    Args:
        body: the JSON object of the request; it has `segments` and no `prompt`.
        request: its body has been read.
        service: the served model.

    Raises:
        InvalidRequestError: a field is wrong.
        SuperdraftError: raised by the engine.
        ClientGoneError: the client left.
    """
    try:
        wanted = TabbyRequest.model_validate(body)
    except ValidationError as error:
        raise invalid_request(error) from None
    completion_id = f"cmpl-{uuid.uuid4()}"
    seed = None if wanted.seed is None else wanted.seed % 2**63
    drafting = drafting_request(request, service, wanted, completion_id, seed=seed)
    output, _ = await fill(request, service, drafting, wanted.segments.gap())
    choices = [{"index": 0, "text": output.drafts[0].text}]
    return JSONResponse({"id": completion_id, "choices": choices, "warnings": output.warnings})


@router.get("/v1/health", summary="Health, for Tabby's plugins")
@router.post("/v1/health", include_in_schema=False)
async def health(service: ServiceDep) -> TabbyHealth:
    """The served model and this server's version."""
    git_describe = f"v{version('superdraft')}"
    return TabbyHealth(
        model=service.model_name, device=service.settings.device, version=TabbyVersion(git_describe=git_describe)
    )


@router.get("/v1beta/server_setting", summary="Settings for Tabby's plugins")
async def server_setting() -> TabbyServerSetting:
    """Plugins are told to send no telemetry to Tabby's makers."""
    return TabbyServerSetting()


@router.post(
    "/v1/events",
    response_class=Response,
    responses={status: ERROR_RESPONSES[status] for status in (400, 413)},
    openapi_extra=documented(TabbyEvent),
    summary="What users did with drafts",
)
async def events(service: ServiceDep, body: Annotated[TabbyEvent, Depends(json_body(TabbyEvent))]) -> Response:
    """As `/v1/feedback`, except that events of unknown answers are ignored, since plugins expect no error."""
    with contextlib.suppress(NotFoundError):
        service.feedback.take(
            body.completion_id,
            _MEANINGS[body.type],
            body.choice_index,
            caller=sender().name,
            elapsed_s=None if body.elapsed is None else min(max(0.0, body.elapsed), MAX_ELAPSED_MS) / 1000,
        )
    return Response()
