"""The n-gram models that requests may name, alone or mixed by weight."""

from typing import Final

import structlog

from superdraft.decoding.errors import InvalidRequestError
from superdraft.ngram_models.errors import (
    BrokenNgramModelError,
    NgramModelError,
    NgramModelNotFoundError,
    TokenizerMismatchError,
)
from superdraft.ngram_models.store.manifest import Tuning
from superdraft.ngram_models.store.registry import ListedModel
from superdraft.server.edge.error_map import NotFoundError
from superdraft.server.ngrams.folders import ModelFolders
from superdraft.server.ngrams.mixture import MixtureScorer, Scorer

MAX_PARTS: Final = 8
"""Most models in a mixture, since each is queried at every step."""

NgramChoice = str | dict[str, float] | None
"""What a request may ask for: a model's name, {name: weight} of a mixture, or no n-gram model."""

log = structlog.get_logger(__name__)


class NgramModels:
    """The models that requests may name.

    Args:
        folders: the models on disk, of which the first is the default; None: there are none.

    Attributes:
        default: name of the model for requests that name none; None: they use none.
        default_scorer: its scorer, as of the last check.
    """

    def __init__(self, folders: ModelFolders | None = None) -> None:
        self._folders = folders
        first = None if folders is None else folders.first
        self.default = None if first is None else first.name
        self.default_scorer: Scorer | None = None if first is None else first.scorer
        self._default_is_current = True

    async def current_default(self) -> Scorer | None:
        """The scorer for requests that name no model, after checking whether the model was replaced.

        If the default model has been removed or damaged, the loaded one stays in use.
        """
        if self.default is not None and self._folders is not None:
            try:
                self.default_scorer = (await self._folders.get(self.default)).scorer
                self._default_is_current = True
            except NgramModelError as error:
                if self._default_is_current:  # logged once, not at every request
                    log.warning("default_ngram_model_kept", ngram_model=self.default, reason=type(error).__name__)
                self._default_is_current = False
        return self.default_scorer

    async def choose(self, choice: NgramChoice) -> Scorer | None:
        """The scorer that a request asks for. Loads models that are not loaded.

        Raises:
            NotFoundError: the request names a model that is not here.
            InvalidRequestError: a model is damaged or for another tokenizer, or there are too many models.
        """
        if choice is None:
            return None
        weights = {choice: 1.0} if isinstance(choice, str) else dict(choice)
        if len(weights) > MAX_PARTS:
            message = f"ngram_model mixes {MAX_PARTS} models at most, got {len(weights)}; name fewer."
            raise InvalidRequestError(message, param="ngram_model")
        parts = [(await self._part(name), weight) for name, weight in weights.items()]
        return parts[0][0] if len(parts) == 1 else MixtureScorer(parts)

    async def tuning(self, choice: NgramChoice) -> Tuning | None:
        """The tuning for a choice that `choose` accepted; of several models, the first one's."""
        names = [choice] if isinstance(choice, str) else list(choice or ())
        if not names or self._folders is None:
            return None
        try:
            return (await self._folders.get(names[0])).manifest.tuning
        except NgramModelError:  # it has just been deleted
            return None

    async def listed(self) -> list[ListedModel]:
        """All models that have a name, whether or not they fit the tokenizer."""
        return [] if self._folders is None else await self._folders.listed()

    def fits(self, model: ListedModel) -> bool:
        """Whether a listed model is for the language model's tokenizer."""
        folders, manifest = self._folders, model.manifest
        return folders is not None and manifest is not None and manifest.tokenizer.fingerprint == folders.fingerprint

    def is_loaded(self, name: str) -> bool:
        """Whether a request can use a model without loading it."""
        return self._folders is not None and self._folders.is_loaded(name)

    async def _part(self, name: str) -> Scorer:
        try:
            if self._folders is None:
                raise NgramModelNotFoundError
            return (await self._folders.get(name)).scorer
        except NgramModelNotFoundError:
            names = ", ".join(model.name for model in await self.listed()) or "none"
            message = f"ngram_model names a model that is not here; known: {names}."
            raise NotFoundError(message, param="ngram_model", code="ngram_model_not_found") from None
        except TokenizerMismatchError as error:
            code = "ngram_model_wrong_tokenizer"
            raise InvalidRequestError(str(error), param="ngram_model", code=code) from None
        except BrokenNgramModelError:  # its message holds the server's paths
            message = f"The n-gram model {name!r} is damaged; the server's log says how. Name another one."
            raise InvalidRequestError(message, param="ngram_model", code="ngram_model_damaged") from None
