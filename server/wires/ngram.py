"""Which n-gram models requests may name, for whoever offers a choice of them."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from superdraft.server.wires.openai.routes import ServiceDep

router = APIRouter(tags=["Superdraft"])


class NgramModelCard(BaseModel):
    """One n-gram model."""

    name: str
    order: int | None = Field(description="The longest n-gram, in tokens; null if the model is damaged.")
    size_bytes: int | None = Field(description="Of the binary; null if the model is damaged or not on disk.")
    tokenizer: str | None = Field(description="Whose token ids it is for; null if that is not known.")
    fits_tokenizer: bool = Field(description="Whether that is the served model's tokenizer: others are refused.")
    loaded: bool = Field(description="If not, the first request that names it waits for it.")


class NgramModelList(BaseModel):
    """The answer of `/v1/ngram_models`."""

    object: Literal["list"] = "list"
    data: list[NgramModelCard]
    default: str | None = Field(description="For requests that don't name one; null: none.")


@router.get("/v1/ngram_models", summary="The names that `ngram_model` takes")
async def list_ngram_models(service: ServiceDep) -> NgramModelList:
    """The models on disk as they are now; a new one can be used at once."""
    models = service.ngram_models
    cards = [
        NgramModelCard(
            name=known.name,
            order=known.order,
            size_bytes=known.size_bytes,
            tokenizer=known.tokenizer,
            fits_tokenizer=known.fits,
            loaded=known.is_loaded,
        )
        for known in await models.listed()
    ]
    return NgramModelList(data=cards, default=models.default)
