"""From settings to a loaded engine and its n-gram model."""

from dataclasses import dataclass
from importlib import resources

import structlog
import torch

from superdraft.decoding.engine import Engine, build_engine
from superdraft.decoding.model_loader import load_model
from superdraft.decoding.params import DEFAULT_ALPHA, DEFAULT_TAU
from superdraft.ngram_models.manifest import Tuning
from superdraft.ngram_models.registry import NgramModel, list_ngram_models, load_ngram_model
from superdraft.ngram_models.vocabulary import tokenizer_fingerprint
from superdraft.server.service import NgramModels
from superdraft.server.settings import Settings

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedService:
    """All that serving or completing needs.

    Attributes:
        engine: the engine, unused so far.
        model_name: the model's own name.
        ngram_models: the loaded n-gram models.
        alpha: from the settings, else tuned for the n-gram model, else the paper's.
        tau: likewise.
    """

    engine: Engine
    model_name: str
    ngram_models: NgramModels
    alpha: float
    tau: float


def load_service(settings: Settings) -> LoadedService:
    """Load the model and its n-gram model.

    Raises:
        ModelLoadError: the model cannot be used.
        NgramModelError: a named n-gram model cannot be used.
    """
    # One core less than torch takes by itself: the event loop shares the machine, and two threads on one core wait for
    # each other at every operation.
    torch.set_num_threads(settings.num_threads or max(1, torch.get_num_threads() - 1))
    loaded = load_model(
        settings.model,
        home=settings.home,
        device=settings.device,
        dtype=settings.dtype,
        trust_remote_code=settings.trust_remote_code,
    )
    engine = build_engine(loaded, settings.engine_config())
    ngram_model = choose_ngram_model(settings, tokenizer_fingerprint(engine.tokenizer.vocabulary))
    tuning = ngram_model.manifest.tuning if ngram_model is not None else None
    alpha, tau = _defaults(settings, tuning)
    return LoadedService(engine, loaded.name, _as_only_one(ngram_model), alpha, tau)


def choose_ngram_model(settings: Settings, fingerprint: str) -> NgramModel | None:
    """The n-gram model that the settings ask for, for a language model whose tokenizer has this fingerprint.

    Raises:
        NgramModelError: a named model is missing, damaged or for another tokenizer.
    """
    if settings.ngram_model == "none":
        return None
    if settings.ngram_model != "auto":
        return load_ngram_model(settings.ngram_model, fingerprint=fingerprint, home=settings.home)
    data = resources.files("superdraft.ngram_models") / "data"
    shipped = {entry.name for entry in data.iterdir()}
    for listed in list_ngram_models(settings.home):
        manifest = listed.manifest
        if listed.name in shipped and manifest is not None and manifest.tokenizer.fingerprint == fingerprint:
            return load_ngram_model(listed.name, fingerprint=fingerprint, home=settings.home)
    log.warning(
        "no_ngram_model",
        model=settings.model,
        reason="no shipped n-gram model is for this tokenizer; drafts come from the language model alone",
        remedy="superdraft ngram build makes one",
    )
    return None


def _as_only_one(ngram_model: NgramModel | None) -> NgramModels:
    if ngram_model is None:
        return NgramModels()
    name = ngram_model.manifest.name
    return NgramModels({name: ngram_model.scorer}, name)


def _defaults(settings: Settings, tuning: Tuning | None) -> tuple[float, float]:
    alpha = tuning.alpha if tuning is not None else DEFAULT_ALPHA
    tau = tuning.tau if tuning is not None else DEFAULT_TAU
    return (
        alpha if settings.default_alpha is None else settings.default_alpha,
        tau if settings.default_tau is None else settings.default_tau,
    )
