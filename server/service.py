"""What the routes work with: the engine, the names of the served model, and the n-gram models."""

import asyncio
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import Request

from superdraft.decoding.errors import InvalidRequestError
from superdraft.decoding.ngram import NgramScorer
from superdraft.decoding.params import DEFAULT_ALPHA, DEFAULT_TAU
from superdraft.server.async_engine import AsyncEngine
from superdraft.server.error_map import NotFoundError
from superdraft.server.schemas_native import NgramChoice
from superdraft.server.settings import Settings

MODEL_ALIAS = "superdraft"  # editors send ids that start with "gpt" or "o" to the chat route: this one they don't

T = TypeVar("T")


class ClientGoneError(Exception):
    """The client closed the connection before its answer was ready."""


@dataclass(frozen=True, slots=True)
class NgramModels:
    """The loaded n-gram models.

    Attributes:
        scorers: by name.
        default: the one for requests that don't say; None: none.
    """

    scorers: Mapping[str, NgramScorer[Any]] = field(default_factory=dict)
    default: str | None = None

    @property
    def default_scorer(self) -> NgramScorer[Any] | None:
        """The scorer of the default model; None: requests use no n-gram model unless they name one."""
        return None if self.default is None else self.scorers[self.default]

    def choose(self, choice: NgramChoice) -> NgramScorer[Any] | None:
        """The scorer that a request asks for.

        Raises:
            NotFoundError: it names a model that is not loaded.
            InvalidRequestError: it asks for a mixture of several models.
        """
        if choice is None:
            return None
        names = [choice] if isinstance(choice, str) else list(choice)
        for name in names:
            if name not in self.scorers:
                loaded = ", ".join(self.scorers) or "none"
                message = f"ngram_model names a model that is not loaded; loaded: {loaded}."
                raise NotFoundError(message, param="ngram_model", code="ngram_model_not_found")
        if len(names) > 1:
            message = f"ngram_model takes one model in a request, got {len(names)}."
            raise InvalidRequestError(message, param="ngram_model")
        return self.scorers[names[0]]


@dataclass(frozen=True, slots=True)
class Service:
    """One served model.

    Attributes:
        settings: the server's settings.
        engine: runs the requests.
        model_name: the model's name in answers.
        ngram_models: what requests may name.
        alpha: the n-gram model's weight for requests that don't say.
        tau: the temperature for requests that don't say.
        created: when the model was loaded, in Unix seconds.
    """

    settings: Settings
    engine: AsyncEngine
    model_name: str
    ngram_models: NgramModels
    alpha: float = DEFAULT_ALPHA
    tau: float = DEFAULT_TAU
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def model_names(self) -> tuple[str, ...]:
        """Every name that a request's `model` may have; the first is the answer's."""
        return tuple(dict.fromkeys((self.model_name, MODEL_ALIAS)))

    def check_model(self, name: str | None) -> None:
        """Raise NotFoundError unless `name` is absent or names the served model."""
        if name is not None and name not in self.model_names:
            message = f"The model in the request is not served here; served: {', '.join(self.model_names)}."
            raise NotFoundError(message, param="model", code="model_not_found")


def get_service(request: Request) -> Service:
    """The service of the app that a request came to."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


async def unless_client_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`, but cancel it as soon as the client closes the connection.

    The request's body must have been read.

    Raises:
        ClientGoneError: the client went first.
    """
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_wait_for_disconnect(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGoneError
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def all_or_none(works: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Await all; when one fails or the caller is cancelled, cancel the rest."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
