"""N-gram models by the names that requests give them."""

from typing import Any

from superdraft.decoding.ngram import NgramScorer
from superdraft.decoding.text.tokenizer import Tokenizer
from superdraft.ngram_models.store.registry import NgramModel, load_ngram_model
from superdraft.ngram_models.vocabulary import tokenizer_fingerprint
from superdraft.server.drafting import DraftingDefaults
from superdraft.server.loading import choose_ngram_model, drafting_defaults
from superdraft.server.settings import Settings

AUTO = "auto"
NONE = "none"


class NgramModels:
    """Loads n-gram models, each once: "none", "auto" (the server's default), or a name or path.

    Args:
        settings: the server's, with the language model and the default n-gram model.
        tokenizer: the language model's.
    """

    def __init__(self, settings: Settings, tokenizer: Tokenizer) -> None:
        self._settings = settings
        self._fingerprint = tokenizer_fingerprint(tokenizer.vocabulary)
        self._loaded: dict[str, NgramModel | None] = {}

    def scorer(self, name: str) -> NgramScorer[Any] | None:
        """The scorer of a model; None for "none". Errors are those of `model`."""
        model = self.model(name)
        return None if model is None else model.scorer

    def identity(self, name: str) -> dict[str, str]:
        """SHA-256 of the model by its name; a model that is rebuilt has another identity."""
        model = self.model(name)
        return {} if model is None else {name: model.manifest.binary_sha256}

    def drafting(self, name: str) -> DraftingDefaults:
        """The server's defaults for a request that names this model."""
        model = None if name == AUTO else self.model(name)
        tuning = None if model is None else model.manifest.tuning
        return drafting_defaults(self._settings, self.model(AUTO)).with_tuning(tuning)

    def model(self, name: str) -> NgramModel | None:
        """One model by its name; None for "none".

        Raises:
            NgramModelError: it cannot be used.
        """
        if name not in self._loaded:
            if name == NONE:
                self._loaded[name] = None
            elif name == AUTO:
                self._loaded[name] = choose_ngram_model(self._settings, self._fingerprint)
            else:
                self._loaded[name] = load_ngram_model(name, fingerprint=self._fingerprint, home=self._settings.home)
        return self._loaded[name]
