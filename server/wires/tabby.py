"""Tabby's wire. Its completions come on OpenAI's path, `POST /v1/completions`, and are told apart by `segments`."""

import contextlib
import uuid
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from superdraft.server.bridge.fan_out import twin_key
from superdraft.server.edge.error_map import NotFoundError, invalid_request
from superdraft.server.observe.metrics import DraftEvent
from superdraft.server.service import get_service
from superdraft.server.wires.editors import EditorRequest, editor_params, fill
from superdraft.server.wires.json_body import documented, json_body
from superdraft.server.wires.openai.routes import ServiceDep
from superdraft.server.wires.tabby_schemas import (
    TabbyEvent,
    TabbyHealth,
    TabbyRequest,
    TabbyServerSetting,
    TabbyVersion,
)

_MEANINGS: dict[str, DraftEvent] = {"view": "shown", "select": "accepted", "dismiss": "dismissed"}

router = APIRouter(tags=["Tabby"])


async def complete_segments(body: dict[str, Any], request: Request) -> JSONResponse:
    """Answer a Tabby completion: the best draft, or the next one for a request that repeats the one before.

    Args:
        body: the JSON object of the request; it has `segments` and no `prompt`.
        request: its body has been read.

    Raises:
        InvalidRequestError: a field is wrong.
        SuperdraftError: the engine's.
        ClientGoneError: the client left.
    """
    try:
        wanted = TabbyRequest.model_validate(body)
    except ValidationError as error:
        raise invalid_request(error) from None
    service, completion_id = get_service(request), f"cmpl-{uuid.uuid4()}"
    seed = None if wanted.seed is None else wanted.seed % 2**63
    params = editor_params(service, temperature=wanted.temperature, seed=seed)
    editor_request = EditorRequest(completion_id, params, twin_key(request, wanted))
    filled = await fill(request, service, editor_request, wanted.segments.gap())
    drafts = filled.share.output.drafts[:1]
    service.feedback.remember(service.feedback.asked(completion_id), drafts)
    choices = [{"index": 0, "text": drafts[0].text}]
    return JSONResponse({"id": completion_id, "choices": choices, "warnings": filled.warnings})


@router.get("/v1/health", summary="What Tabby's plugins ask first")
@router.post("/v1/health", include_in_schema=False)
async def health(service: ServiceDep) -> TabbyHealth:
    """The served model and this server's version."""
    git_describe = f"v{version('superdraft')}"
    return TabbyHealth(
        model=service.model_name, device=service.settings.device, version=TabbyVersion(git_describe=git_describe)
    )


@router.get("/v1beta/server_setting", summary="What Tabby's plugins are asked to do")
async def server_setting() -> TabbyServerSetting:
    """Plugins should send nothing to Tabby's makers."""
    return TabbyServerSetting()


@router.post(
    "/v1/events",
    response_class=Response,
    openapi_extra=documented(TabbyEvent),
    summary="What users did with drafts",
)
async def events(service: ServiceDep, body: Annotated[TabbyEvent, Depends(json_body(TabbyEvent))]) -> Response:
    """As `/v1/feedback`; but an event of an answer that is not remembered is no error, since no plugin expects one."""
    with contextlib.suppress(NotFoundError):
        service.feedback.take(
            body.completion_id,
            _MEANINGS[body.type],
            body.choice_index,
            elapsed_s=None if body.elapsed is None else max(0.0, body.elapsed / 1000),
        )
    return Response()
