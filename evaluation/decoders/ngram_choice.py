"""N-gram models by the names that requests give them: one model, or several with weights."""

from collections.abc import Sequence
from typing import Any

from superdraft.decoding.ngram import NgramScorer
from superdraft.decoding.text.tokenizer import Tokenizer
from superdraft.ngram_models.scoring.mixture import mixed
from superdraft.ngram_models.store.registry import NgramModel, load_ngram_model
from superdraft.ngram_models.vocabulary import tokenizer_fingerprint
from superdraft.server.drafting import DraftingDefaults
from superdraft.server.errors import CommandError
from superdraft.server.loading import choose_ngram_model, drafting_defaults
from superdraft.server.settings import Settings

AUTO = "auto"
NONE = "none"
_DOMAIN = "{domain}"


class NgramModels:
    """Loads n-gram models, each once.

    A *choice* is "none", "auto" (the server's default), a name or path, or a mixture, `a=0.7,b=0.3`. `{domain}` in it
    stands for the domain of the prompt.

    Args:
        settings: the server's, with the language model and the default n-gram model.
        tokenizer: the language model's.
        domains: all domains that there are.
    """

    def __init__(self, settings: Settings, tokenizer: Tokenizer, domains: Sequence[str] = ()) -> None:
        self._settings = settings
        self._fingerprint = tokenizer_fingerprint(tokenizer.vocabulary)
        self._domains = domains
        self._loaded: dict[str, NgramModel | None] = {}
        self._scorers: dict[str, NgramScorer[Any] | None] = {}

    def scorer(self, choice: str, domain: str) -> NgramScorer[Any] | None:
        """The scorer of a choice for prompts of a domain; None for "none".

        Raises:
            NgramModelError: a model cannot be used.
            CommandError: a weight is not a positive number.
        """
        choice = choice.replace(_DOMAIN, domain)
        if choice not in self._scorers:
            parts = [(model.scorer, weight) for name, weight in _parse(choice).items() if (model := self.model(name))]
            self._scorers[choice] = mixed(parts) if parts else None
        return self._scorers[choice]

    def identity(self, choice: str) -> dict[str, str]:
        """SHA-256 of the models behind a choice; a model that is rebuilt has another identity."""
        models = {name: self.model(name) for name in self._names(choice)}
        return {name: model.manifest.binary_sha256 for name, model in models.items() if model is not None}

    def drafting(self, choice: str) -> DraftingDefaults:
        """The server's defaults for a request with this choice.

        If the choice stands for several models, the values tuned for the first one are used.
        """
        named = [self.model(name) for name in self._names(choice) if name != AUTO]
        first = next((model for model in named if model is not None), None)
        tuning = None if first is None else first.manifest.tuning
        return drafting_defaults(self._settings, self.model(AUTO)).with_tuning(tuning)

    def _names(self, choice: str) -> list[str]:
        domains = self._domains if _DOMAIN in choice else ("",)
        return [name for domain in domains for name in _parse(choice.replace(_DOMAIN, domain))]

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


def _parse(choice: str) -> dict[str, float]:
    """Names and weights of a choice; a single name has the weight 1."""
    if "=" not in choice:
        return {choice: 1.0}
    weights = {}
    for part in choice.split(","):
        name, _, weight = part.partition("=")
        try:
            weights[name] = float(weight)
        except ValueError:
            weights[name] = 0.0
        if not name or not weights[name] > 0:
            raise CommandError(f"n-gram model {choice!r}: {part!r} is not NAME=WEIGHT with a weight above 0.")
    return weights
