"""Loading of the engine and the n-gram models that the settings ask for."""

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import structlog
import torch

from superdraft.decoding.build import build_engine
from superdraft.decoding.config import EngineConfig
from superdraft.decoding.engine.engine import Engine
from superdraft.decoding.errors import ModelLoadError, NotEnoughMemoryError, UnsupportedModelError
from superdraft.decoding.loading.loader import LoadedGguf, LoadedModel, load_gguf, load_model
from superdraft.decoding.memory import free_bytes, shown
from superdraft.decoding.model.kv_cache import cells_per_slot
from superdraft.decoding.model.llamacpp.library import library
from superdraft.decoding.model.native.library import has_kernels, why_unavailable
from superdraft.decoding.model.threads import threads_file
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

    With the runner `auto`, torch runs a GGUF file that llama.cpp cannot run this way.

    Raises:
        ModelLoadError: the model cannot be used.
        NgramModelError: a named n-gram model cannot be used.
    """
    loaded = load_language_model(settings)
    try:
        return service_of(loaded, settings, settings.engine_config())
    except UnsupportedModelError as error:
        if settings.runner != "auto" or not isinstance(loaded, LoadedGguf):
            raise
        log.warning("torch runs the model, because llama.cpp cannot", model=settings.model, reason=str(error))
    return service_of(_load_for_torch(settings), settings, settings.engine_config())


def load_language_model(settings: Settings) -> LoadedModel | LoadedGguf:
    """Load the model that the settings name. Sets torch's number of threads if the settings have one.

    Raises:
        ModelLoadError: the model cannot be used, or not with these settings.
    """
    if settings.num_threads is not None:
        torch.set_num_threads(settings.num_threads)
    if settings.runner == "llamacpp" or gguf_for_llama_cpp(settings) is not None:
        return _load_gguf(settings)
    if settings.gpu_layers is not None:
        raise ModelLoadError("gpu_layers is for --runner llamacpp; with torch, --device says where the model runs.")
    try:
        return _load_for_torch(settings)
    except NotEnoughMemoryError as error:
        if gguf_for_llama_cpp(settings, is_short_of_memory=True) is None:
            raise
        log.warning("torch would need more memory than there is", model=settings.model, reason=str(error))
    return _load_gguf(settings)


def _load_for_torch(settings: Settings) -> LoadedModel:
    return load_model(
        settings.model,
        home=settings.home,
        device=settings.device,
        dtype=settings.dtype,
        trust_remote_code=settings.trust_remote_code,
        checks_memory=settings.memory_check,
    )


def gguf_for_llama_cpp(settings: Settings, *, is_short_of_memory: bool = False) -> Path | None:
    """The `.gguf` file, given by its path, that llama.cpp is to run; None: something else runs, or another model.

    The runner `auto` takes torch where the settings are torch's own, where llama.cpp would leave a GPU idle that torch
    can use, and on processors for which there are kernels: steps are two to six times as fast with them (`superdraft
    lab bench runners`). The choice for a file is logged.

    Args:
        settings: the server's settings.
        is_short_of_memory: torch has too little.
    """
    path = Path(settings.model).expanduser()
    if settings.runner == "torch" or path.suffix != ".gguf" or not path.is_file():
        return None
    if settings.runner == "llamacpp":
        return path
    if settings.dtype != "auto" or settings.device not in ("auto", "cpu"):
        log.info("torch runs the model", model=settings.model, reason="dtype and device are settings for torch")
        return None
    is_on_gpu = settings.gpu_layers or (settings.device == "auto" and torch.cuda.is_available())
    if has_kernels() and not is_on_gpu and not is_short_of_memory:
        log.info("torch runs the model", model=settings.model, reason="there are faster kernels for this processor")
        return None
    try:
        llama_cpp = library()
    except ModelLoadError as error:
        if is_short_of_memory:
            return None
        log.warning(
            "torch runs the model, which expands the file",
            model=settings.model,
            reason=str(error),
            remedy="pip install '.[llamacpp]' in the folder of Superdraft's sources",
        )
        return None
    if settings.device == "auto" and torch.cuda.is_available() and not llama_cpp.llama_supports_gpu_offload():
        log.info("torch runs the model", model=settings.model, reason="llama-cpp-python was built without a GPU")
        return None
    log.info("llama.cpp runs the model", model=settings.model)
    return path


def _load_gguf(settings: Settings) -> LoadedGguf:
    if settings.dtype != "auto":
        raise ModelLoadError(
            f"with --runner llamacpp the weights are those of the file, so dtype must be auto, got {settings.dtype!r}."
        )
    if settings.device not in ("auto", "cpu"):
        raise ModelLoadError(
            f"with --runner llamacpp, --gpu-layers says what a GPU runs; device must be auto or cpu, got "
            f"{settings.device!r}."
        )
    return load_gguf(
        settings.model,
        home=settings.home,
        num_threads=settings.num_threads,
        gpu_layers=0 if settings.device == "cpu" else settings.gpu_layers,
        checks_memory=settings.memory_check,
    )


def service_of(loaded: LoadedModel | LoadedGguf, settings: Settings, config: EngineConfig) -> LoadedService:
    """An engine over a loaded model, with the n-gram model that the settings ask for.

    Args:
        loaded: the model.
        settings: the server's settings.
        config: of the engine.

    Raises:
        ModelLoadError: the model cannot be used.
        NgramModelError: a named n-gram model cannot be used.
    """
    is_on_cpu = isinstance(loaded, LoadedModel) and loaded.model.device.type == "cpu"
    if is_on_cpu and settings.dtype in ("auto", "int4") and (problem := why_unavailable()):
        log.warning("without the fast kernels for CPUs, torch's own are used", reason=problem)
    engine = build_engine(loaded, config, threads_file(settings.home) if settings.num_threads is None else None)
    if is_on_cpu and settings.memory_check:
        _warn_of_cache(engine)
    fingerprint = tokenizer_fingerprint(engine.tokenizer.vocabulary)
    ngram_model = choose_ngram_model(settings, fingerprint)
    return LoadedService(
        engine,
        loaded.name,
        open_ngram_models(settings, fingerprint, ngram_model),
        drafting_defaults(settings, ngram_model),
    )


def _warn_of_cache(engine: Engine) -> None:
    """Log it if the KV cache, whose memory is used only as it fills, will not fit when it is full."""
    free = free_bytes()
    full = engine.num_slots * cells_per_slot(engine.max_model_len) * engine.kv_bytes_per_position
    if free is not None and full > free:
        log.warning(
            "the KV cache does not fit in the free memory when it is full",
            cache=shown(full),
            free=shown(free),
            remedy="lower --kv-memory or --num-slots",
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
    folders = ModelFolders(fingerprint, home=settings.home, paths=paths, first=default)
    return NgramModels(default=None if default is None else default.name, folders=folders)
