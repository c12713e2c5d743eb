"""What the routes work with: the engine, the names of the served model, and the n-gram models."""

import asyncio
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_args

from fastapi import Request

from superdraft.decoding.text.fim import FimTokens
from superdraft.ngram_models.store.manifest import Tuning
from superdraft.server.bridge.async_engine import AsyncEngine
from superdraft.server.bridge.fan_out import FanOut
from superdraft.server.drafting import DraftingDefaults
from superdraft.server.edge.error_map import NotFoundError
from superdraft.server.feedback import Feedback
from superdraft.server.ngrams.registry import NgramModels
from superdraft.server.observe.metrics import Metrics
from superdraft.server.observe.stats import Statistics
from superdraft.server.settings import Settings
from superdraft.server.wires.common import Strategy
from superdraft.server.wires.native.schemas import DraftsRequest
from superdraft.server.wires.openai.schemas import CompletionRequest

MODEL_ALIAS = "superdraft"  # editors send ids that start with "gpt" or "o" to the chat route: this one they don't

T = TypeVar("T")
RequestT = TypeVar("RequestT", CompletionRequest, DraftsRequest)


class ClientGoneError(Exception):
    """The client closed the connection before its answer was ready."""


@dataclass(frozen=True, slots=True)
class Service:
    """One served model.

    Attributes:
        settings: the server's settings.
        engine: runs the requests.
        model_name: the model's name in answers.
        ngram_models: what requests may name.
        feedback: what users did with drafts.
        drafting: how to decode for requests that don't say.
        created: when the model was loaded, in Unix seconds.
        metrics: what Prometheus may ask.
        statistics: of the last minutes' requests.
        fim: the model's fill-in-the-middle tokens; None: it has none, or they are not used.
        fan_out: shares runs among twin requests.
    """

    settings: Settings
    engine: AsyncEngine
    model_name: str
    ngram_models: NgramModels
    feedback: Feedback
    drafting: DraftingDefaults
    created: int = field(default_factory=lambda: int(time.time()))
    metrics: Metrics = field(default_factory=Metrics)
    statistics: Statistics = field(default_factory=Statistics)
    fim: FimTokens | None = None
    fan_out: FanOut = field(default_factory=FanOut)

    def drafting_for(self, tuning: Tuning | None) -> DraftingDefaults:
        """How to decode a request that doesn't say; `tuning` is that of an n-gram model that it names."""
        return self.drafting.with_tuning(self.settings, tuning)

    @property
    def model_names(self) -> tuple[str, ...]:
        """The served model's names; the first is the answer's."""
        return tuple(dict.fromkeys((self.model_name, MODEL_ALIAS)))

    @property
    def strategy_aliases(self) -> Mapping[str, Strategy]:
        """Names that choose a strategy with the model: `<model>:<strategy>`."""
        return {f"{name}:{strategy}": strategy for name in self.model_names for strategy in get_args(Strategy)}

    def check_model(self, name: str | None) -> None:
        """Raise NotFoundError unless `name` is absent or names the served model."""
        if name is not None and name not in self.model_names:
            message = f"The model in the request is not served here; served: {', '.join(self.model_names)}."
            raise NotFoundError(message, param="model", code="model_not_found")

    def strategy_of(self, model: str | None) -> Strategy:
        """How to decode a request that names this model and says nothing of a strategy.

        Raises:
            NotFoundError: the model is not served here.
        """
        alias = self.strategy_aliases.get(model or "")
        if alias is None:
            self.check_model(model)
        return alias or self.settings.default_strategy

    def with_strategy(self, body: RequestT) -> RequestT:
        """The request with the strategy that it runs under: its own, else its model alias's, else the server's.

        Raises:
            NotFoundError: the model that it names is not served here.
        """
        default = self.strategy_of(body.model)
        return body if "strategy" in body.model_fields_set else body.model_copy(update={"strategy": default})


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
