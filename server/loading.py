"""Loading of the engine and the n-gram models that the settings ask for."""

from dataclasses import dataclass
from importlib import resources

import structlog

from superdraft.decoding.build import open_engine
from superdraft.decoding.engine.engine import Engine
from superdraft.decoding.loading.loader import ModelOptions
from superdraft.ngram_models.store.registry import NgramModel, list_ngram_models, load_ngram_model, named_model_folder
from superdraft.ngram_models.vocabulary import tokenizer_fingerprint
from superdraft.server.drafting import DraftingDefaults
from superdraft.server.ngrams.folders import ModelFolders
from superdraft.server.ngrams.registry import NgramModels
from superdraft.server.settings import Settings

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedService:
    """Everything needed to serve or complete.

    Attributes:
        engine: not used by anything else.
        model_name: the model's own name.
        ngram_models: the models that requests may name; the default is loaded.
        drafting: defaults of requests.
    """

    engine: Engine
    model_name: str
    ngram_models: NgramModels
    drafting: DraftingDefaults


def load_service(settings: Settings) -> LoadedService:
    """Load the model and its n-gram model.

    Raises:
        ModelLoadError: the model cannot be used.
        NgramModelError: a named n-gram model cannot be used.
    """
    name, engine = open_engine(model_options(settings), settings.engine_config())
    fingerprint = tokenizer_fingerprint(engine.tokenizer.vocabulary)
    ngram_model = choose_ngram_model(settings, fingerprint)
    return LoadedService(
        engine,
        name,
        open_ngram_models(settings, fingerprint, ngram_model),
        drafting_defaults(settings, ngram_model),
    )


def model_options(settings: Settings) -> ModelOptions:
    """The model that the settings name, and how it runs."""
    return ModelOptions(
        model=settings.model,
        home=settings.home,
        runner=settings.runner,
        device=settings.device,
        dtype=settings.dtype,
        num_threads=settings.num_threads,
        gpu_layers=settings.gpu_layers,
        trust_remote_code=settings.trust_remote_code,
        checks_memory=settings.memory_check,
    )


def drafting_defaults(settings: Settings, ngram_model: NgramModel | None) -> DraftingDefaults:
    """The defaults of requests.

    Args:
        settings: the server's settings.
        ngram_model: the default model; None: there is none.
    """
    return DraftingDefaults.of(settings).with_tuning(None if ngram_model is None else ngram_model.manifest.tuning)


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


def open_ngram_models(settings: Settings, fingerprint: str, default: NgramModel | None) -> NgramModels:
    """The models that requests may name, with the default already loaded.

    Args:
        settings: the server's settings.
        fingerprint: of the language model's tokenizer.
        default: for requests that don't name one; None: they use none.
    """
    paths = {}
    if default is not None and named_model_folder(default.name, settings.home) != default.folder:
        paths[default.name] = default.folder  # the settings name it by path: its name alone would not find it
    return NgramModels(ModelFolders(fingerprint, home=settings.home, paths=paths, first=default))
