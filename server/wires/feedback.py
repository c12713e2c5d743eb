"""What users do with drafts, and what the server has learned from it."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field, model_validator

from superdraft.server.edge.access import current_caller
from superdraft.server.edge.error_map import ErrorResponse, NotFoundError
from superdraft.server.ngrams.personal_models import Owner, PersonalModels, owner_of
from superdraft.server.observe.metrics import DraftEvent
from superdraft.server.service import Service
from superdraft.server.wires.common import Integer, Number, without_nulls
from superdraft.server.wires.json_body import documented, json_body
from superdraft.server.wires.openai.routes import ERROR_RESPONSES, ServiceDep

_MAX_ELAPSED_MS = 24 * 3600 * 1000

router = APIRouter(tags=["Superdraft"])


class FeedbackRequest(BaseModel):
    """What the user did with a draft. A null field means its default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    completion_id: str = Field(min_length=1, max_length=128, description="The `id` of the answer.")
    event: DraftEvent
    index: Integer = Field(default=0, ge=0, description="Of the draft or choice in the answer.")
    elapsed_ms: Number | None = Field(default=None, ge=0, le=_MAX_ELAPSED_MS, description="Since it was shown.")
    num_characters: Integer | None = Field(
        default=None, ge=1, description="How much of its text was accepted; absent: all."
    )

    @model_validator(mode="before")
    @classmethod
    def _nulls_are_defaults(cls, data: Any) -> Any:
        return without_nulls(data)


class FeedbackResponse(BaseModel):
    """The event was taken."""

    object: Literal["feedback"] = "feedback"
    completion_id: str
    event: DraftEvent
    rank: int = Field(description="The draft's place among those of its run; 0 is the best.")
    counted: bool = Field(description="False: it had come before.")
    learned: bool = Field(description="The personal model has the draft; it is on the disk.")


class PersonalText(BaseModel):
    """A text that was accepted. `before`: the end of what stood in front of it."""

    before: str
    text: str


class PersonalModelCard(BaseModel):
    """A personal model, with all that it was fed."""

    object: Literal["personal_model"] = "personal_model"
    user: str | None
    num_tokens: int
    max_tokens: int = Field(description="Beyond it the oldest texts are forgotten.")
    weight: float = Field(description="Beside the default n-gram model.")
    texts: list[PersonalText] = Field(description="The oldest first.")


class PersonalModelDeleted(BaseModel):
    """The answer to a deletion. `deleted`: whether there was anything."""

    object: Literal["personal_model.deleted"] = "personal_model.deleted"
    user: str | None
    deleted: bool


_PERSONAL_RESPONSES: Mapping[int | str, dict[str, Any]] = {
    404: {"model": ErrorResponse, "description": "This server keeps no personal models, or none for this caller."}
}
User = Annotated[str | None, Query(description="As in the requests; absent: that of requests without `user`.")]


@router.post(
    "/v1/feedback",
    responses={
        **ERROR_RESPONSES,
        404: {"model": ErrorResponse, "description": "No such answer is remembered for this key."},
    },
    openapi_extra=documented(FeedbackRequest),
    summary="What the user did with a draft",
)
async def feedback(
    service: ServiceDep, body: Annotated[FeedbackRequest, Depends(json_body(FeedbackRequest))]
) -> FeedbackResponse:
    """Count the event under the draft's rank, once however often it is sent."""
    outcome = await service.feedback.take(
        body.completion_id,
        body.event,
        body.index,
        elapsed_s=None if body.elapsed_ms is None else body.elapsed_ms / 1000,
        part=lambda text: text[: body.num_characters],
    )
    return FeedbackResponse(
        completion_id=body.completion_id,
        event=body.event,
        rank=outcome.rank,
        counted=outcome.is_new,
        learned=outcome.is_learned,
    )


@router.get("/v1/personal_model", responses=dict(_PERSONAL_RESPONSES), summary="What is remembered of a user")
async def get_personal_model(service: ServiceDep, user: User = None) -> PersonalModelCard:
    """The model of the request's key and this user."""
    personal, owner = _models(service, user)
    texts, num_tokens = await personal.contents(owner)
    return PersonalModelCard(
        user=user,
        num_tokens=num_tokens,
        max_tokens=personal.max_tokens,
        weight=personal.weight,
        texts=[PersonalText(before=text.before, text=text.text) for text in texts],
    )


@router.delete("/v1/personal_model", responses=dict(_PERSONAL_RESPONSES), summary="Forget a user")
async def delete_personal_model(service: ServiceDep, user: User = None) -> PersonalModelDeleted:
    """Forget all that the request's key and this user have accepted; it is gone from the disk with the answer."""
    personal, owner = _models(service, user)
    return PersonalModelDeleted(user=user, deleted=await personal.delete(owner))


def _models(service: Service, user: str | None) -> tuple[PersonalModels, Owner]:
    caller = current_caller()
    if service.personal is None:
        message = "This server keeps no personal models; start it with --personal-ngrams."
        raise NotFoundError(message, param="user", code="personal_models_off")
    if not service.personal.allows(caller):
        message = "This server keeps personal models for API keys only; start it with --personal-anonymous."
        raise NotFoundError(message, param="user", code="personal_models_off")
    return service.personal, owner_of(caller, user)
