"""N-gram models by the names that requests give them: one model, several with weights, the prompt's own n-grams."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from superdraft.decoding.ngram import NgramScorer
from superdraft.decoding.params import DEFAULT_ALPHA, DEFAULT_TAU
from superdraft.decoding.tokenizer import Tokenizer
from superdraft.ngram_models.corpus import read_sequences
from superdraft.ngram_models.encoder import Encoder
from superdraft.ngram_models.frequency_table import FrequencyTableScorer
from superdraft.ngram_models.in_context import DocumentCache, combined
from superdraft.ngram_models.manifest import file_sha256
from superdraft.ngram_models.registry import NgramModel, load_ngram_model
from superdraft.ngram_models.vocabulary import tokenizer_fingerprint
from superdraft.server.errors import CommandError
from superdraft.server.loading import choose_ngram_model
from superdraft.server.ngram_options import IN_CONTEXT
from superdraft.server.settings import Settings

FREQUENCIES = "frequencies:"
_DOMAIN = "{domain}"


class NgramModels:
    """Loads n-gram models, each once.

    A *choice* is "none", "auto" (what the server would choose), a name or path, "in_context" (the prompt's own
    n-grams), "frequencies:FILE" (the paper's raw n-gram frequencies of a corpus, counted here) or a mixture,
    `a=0.7,in_context=0.3`. `{domain}` in it stands for the domain of the prompt.

    Args:
        model: the language model, as in the settings.
        tokenizer: its tokenizer.
        domains: all domains that there are.
    """

    def __init__(self, model: str, tokenizer: Tokenizer, domains: Sequence[str] = ()) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._fingerprint = tokenizer_fingerprint(tokenizer.vocabulary)
        self._vocabulary_size = tokenizer.vocab_size
        self._documents = DocumentCache(tokenizer.eos_token_ids)
        self._domains = domains
        self._loaded: dict[str, NgramModel | None] = {}
        self._scorers: dict[str, NgramScorer[Any] | None] = {}

    def scorer(self, choice: str, domain: str) -> NgramScorer[Any] | None:
        """The scorer of a choice for prompts of a domain; None for "none".

        Raises:
            NgramModelError: a model cannot be used.
            CommandError: a weight is no positive number.
        """
        choice = choice.replace(_DOMAIN, domain)
        if choice not in self._scorers:
            self._scorers[choice] = self._combine(_parse(choice))
        return self._scorers[choice]

    def _combine(self, weights: dict[str, float]) -> NgramScorer[Any] | None:
        """As the server combines them: the prompt's n-grams lie over a mixture of the others."""
        own_weight = weights.pop(IN_CONTEXT, 0.0)
        parts = [(scorer, weight) for name, weight in weights.items() if (scorer := self._part(name)) is not None]
        if not parts and not own_weight:
            return None
        return combined(parts, own_weight, self._documents, self._vocabulary_size)

    def _part(self, name: str) -> NgramScorer[Any] | None:
        if not name.startswith(FREQUENCIES):
            model = self.model(name)
            return None if model is None else model.scorer
        ends = self._tokenizer.eos_token_ids
        sequences = read_sequences(
            [_corpus(name)], encode=Encoder(self._tokenizer.hf_tokenizer), end_of_text_id=min(ends, default=None)
        )
        return FrequencyTableScorer(sequences, end_of_text_ids=ends)

    def identity(self, choice: str) -> dict[str, str]:
        """SHA-256 of the files that a choice stands for; a model that was built anew is another one."""
        names = self._names(choice)
        models = {name: self.model(name) for name in names}
        binaries = {name: model.manifest.binary_sha256 for name, model in models.items() if model is not None}
        return binaries | {name: file_sha256(Path(_corpus(name))) for name in names if name.startswith(FREQUENCIES)}

    def tuned(self, choice: str) -> dict[str, Any]:
        """What a request takes for parameters that it does not give: tuned for the model, else the paper's.

        Where the choice stands for several models, what was tuned for the first counts.
        """
        models = [model for name in self._names(choice) if (model := self.model(name)) is not None]
        tuning = models[0].manifest.tuning if models else None
        if tuning is not None:
            return asdict(tuning)
        return {"alpha": 0.0 if choice == "none" else DEFAULT_ALPHA, "tau": DEFAULT_TAU}

    def _names(self, choice: str) -> list[str]:
        domains = self._domains if _DOMAIN in choice else ("",)
        return [name for domain in domains for name in _parse(choice.replace(_DOMAIN, domain))]

    def model(self, name: str) -> NgramModel | None:
        """One model by its name; None for "none", "in_context" and "frequencies:FILE", which are no models on disk.

        Raises:
            NgramModelError: it cannot be used.
        """
        if name not in self._loaded:
            if name == IN_CONTEXT or name.startswith(FREQUENCIES):
                self._loaded[name] = None
            elif name in ("none", "auto"):
                settings = Settings(model=self._model, ngram_model=name)
                self._loaded[name] = choose_ngram_model(settings, self._fingerprint)
            else:
                self._loaded[name] = load_ngram_model(name, fingerprint=self._fingerprint)
        return self._loaded[name]


def _corpus(name: str) -> str:
    """The file of a frequency table's name.

    Raises:
        CommandError: there is no such file.
    """
    path = name.removeprefix(FREQUENCIES)
    if not Path(path).is_file():
        raise CommandError(f"n-gram model {name!r}: there is no file {path!r} to count n-grams in.")
    return path


def _parse(choice: str) -> dict[str, float]:
    """Names and weights; a single name weighs 1."""
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
