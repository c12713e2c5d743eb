"""The n-gram models that requests may name, alone or mixed by weight."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import structlog

from superdraft.decoding.errors import InvalidRequestError
from superdraft.decoding.ngram import NgramScorer
from superdraft.ngram_models.errors import (
    BrokenNgramModelError,
    NgramModelError,
    NgramModelNotFoundError,
    TokenizerMismatchError,
)
from superdraft.ngram_models.scoring.mixture import mixed
from superdraft.ngram_models.store.manifest import Tuning
from superdraft.ngram_models.store.registry import ListedModel
from superdraft.server.edge.error_map import NotFoundError
from superdraft.server.ngrams.folders import ModelFolders

MAX_PARTS: Final = 8
"""Most models in a mixture, since each is queried at every step."""

Scorer = NgramScorer[Any]

NgramChoice = str | dict[str, float] | None
"""What a request may ask for: a model's name, {name: weight} of a mixture, or no n-gram model."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class KnownModel:
    """One name that `ngram_model` may have.

    Attributes:
        name: of the model.
        order: the longest n-gram, in tokens; None: its manifest cannot be read.
        size_bytes: of its binary; None: its manifest cannot be read, or the model is not on disk.
        tokenizer: name of the tokenizer that it is for; None: as for `size_bytes`.
        fits: whether that is the language model's tokenizer.
        is_loaded: whether a request can use the model without loading it.
    """

    name: str
    order: int | None
    size_bytes: int | None
    tokenizer: str | None
    fits: bool
    is_loaded: bool


class NgramModels:
    """The models that requests may name.

    Args:
        scorers: by name; these need no loading, and win over models on disk.
        default: name of the model for requests that name none; None: no model.
        folders: the models on disk; None: there are none.

    Raises:
        ValueError: the default is neither among `scorers` nor the first model of `folders`.
    """

    def __init__(
        self,
        scorers: Mapping[str, Scorer] | None = None,
        default: str | None = None,
        *,
        folders: ModelFolders | None = None,
    ) -> None:
        self.default = default
        self._scorers = dict(scorers or {})
        self._folders = folders
        self._default_scorer: Scorer | None = None
        self._default_is_current = True
        if default in self._scorers:
            self._default_scorer = self._scorers[default]
        elif folders is not None and folders.first is not None and folders.first.name == default:
            self._default_scorer = folders.first.scorer
        elif default is not None:
            raise ValueError(f"The default n-gram model {default!r} is not loaded.")

    @property
    def default_scorer(self) -> Scorer | None:
        """The scorer for requests that name no model, as of the last check; None: they use none."""
        return self._default_scorer

    async def current_default(self) -> Scorer | None:
        """The scorer for requests that name no model, after checking whether the model was replaced.

        If the default model has been removed or damaged, the loaded one stays in use.
        """
        if self.default is not None and self.default not in self._scorers and self._folders is not None:
            try:
                self._default_scorer = (await self._folders.get(self.default)).scorer
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
        return mixed([(await self._part(name), weight) for name, weight in weights.items()])

    async def tuning(self, choice: NgramChoice) -> Tuning | None:
        """The tuning for a choice that `choose` accepted; of several models, the first one's."""
        names = [choice] if isinstance(choice, str) else list(choice or ())
        first = next(iter(names), None)
        if first is None or first in self._scorers or self._folders is None:
            return None
        try:
            return (await self._folders.get(first)).manifest.tuning
        except NgramModelError:  # it has just been deleted
            return None

    async def listed(self) -> list[KnownModel]:
        """All models that have a name, whether or not they fit the tokenizer."""
        known = [KnownModel(name, scorer.order, None, None, True, True) for name, scorer in self._scorers.items()]
        if self._folders is not None:
            listed = [model for model in await self._folders.listed() if model.name not in self._scorers]
            known += [_known(model, self._folders) for model in listed]
        return known

    async def _part(self, name: str) -> Scorer:
        if name in self._scorers:
            return self._scorers[name]
        try:
            if self._folders is None:
                raise NgramModelNotFoundError
            return (await self._folders.get(name)).scorer
        except NgramModelNotFoundError:
            message = f"ngram_model names a model that is not here; known: {', '.join(await self._names()) or 'none'}."
            raise NotFoundError(message, param="ngram_model", code="ngram_model_not_found") from None
        except TokenizerMismatchError as error:
            code = "ngram_model_wrong_tokenizer"
            raise InvalidRequestError(str(error), param="ngram_model", code=code) from None
        except BrokenNgramModelError:  # its message holds the server's paths
            message = f"The n-gram model {name!r} is damaged; the server's log says how. Name another one."
            raise InvalidRequestError(message, param="ngram_model", code="ngram_model_damaged") from None

    async def _names(self) -> list[str]:
        on_disk = [] if self._folders is None else [model.name for model in await self._folders.listed()]
        return list(dict.fromkeys([*self._scorers, *on_disk]))


def _known(model: ListedModel, folders: ModelFolders) -> KnownModel:
    manifest = model.manifest
    if manifest is None:
        return KnownModel(model.name, None, None, None, False, False)
    tokenizer = manifest.tokenizer
    fits = tokenizer.fingerprint == folders.fingerprint
    is_loaded = folders.is_loaded(model.name)
    return KnownModel(model.name, manifest.order, manifest.binary_bytes, tokenizer.name, fits, is_loaded)
