"""Loader for language models and their tokenizers; every failure is explained in one line.

A model is given as a name in the catalogue (`smollm2-135m`), a local folder with safetensors weights, a `.gguf` file,
or a model id on the Hugging Face hub. Pickled weights are never read. Code that comes with a model runs only if the
caller allows it.
"""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from superdraft.decoding.errors import BrokenModelError, ModelLoadError, UnknownModelError, UnsupportedModelError
from superdraft.decoding.loading.catalogue import CATALOGUE
from superdraft.decoding.loading.converted import ConvertedFiles, load_expanded
from superdraft.decoding.loading.hub import fetch_weights
from superdraft.decoding.loading.model_size import ModelSize, loading_bytes, size_of
from superdraft.decoding.loading.quiet import quiet_transformers
from superdraft.decoding.loading.store import KNOWN_MODELS, ModelStore
from superdraft.decoding.loading.stored_layers import StoredConversion
from superdraft.decoding.loading.support import check_config, check_model_class
from superdraft.decoding.memory import require_memory, resident_bytes, shown
from superdraft.decoding.model.linear import Conversion, WeightFormat
from superdraft.decoding.model.weight_formats import choose_weight_format
from superdraft.decoding.progress import Stage, stage

_PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tokenizer_config.json",
)
_MESSAGE_LENGTH = 300

_P = ParamSpec("_P")
_Loaded = TypeVar("_Loaded")


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to decode with: in evaluation mode, without gradients, on its device.

    Attributes:
        model: the causal language model.
        tokenizer: its tokenizer.
        name: the known name, the folder's or file's name, or the hub id.
        path: the folder or `.gguf` file it came from; None for a hub id.
        convert: converts its linear layers to the requested weight format; None: they stay as they are. On a CPU, an
            engine that converts them frees the dense ones, so the model can serve that engine alone.
    """

    model: transformers.PreTrainedModel
    tokenizer: transformers.PreTrainedTokenizerBase
    name: str
    path: Path | None
    convert: Conversion | None = None


@dataclass(frozen=True)
class LoadedGguf:
    """A `.gguf` file for llama.cpp, which maps it when an engine is built.

    Attributes:
        path: the file.
        tokenizer: its tokenizer.
        name: the known name, or the file's name.
        num_threads: on the CPU; None: all cores.
        gpu_layers: layers that a GPU runs; None: all of them, if llama.cpp was built for a GPU.
        checks_memory: refuse it, before it is mapped, if there is not enough free memory.
    """

    path: Path
    tokenizer: transformers.PreTrainedTokenizerBase
    name: str
    num_threads: int | None = None
    gpu_layers: int | None = None
    checks_memory: bool = True


@dataclass(frozen=True)
class _Source:
    """The place a model is read from; `location` is the argument of `from_pretrained`."""

    name: str
    location: str
    path: Path | None = None
    gguf: Path | None = None
    hint: str = ""
    home: Path | None = None
    entry: Path | None = None  # of the cache of expanded GGUF files, read in place of the file

    @property
    def shown(self) -> str:
        return str(self.path) if self.path is not None else self.name

    @property
    def gguf_options(self) -> dict[str, str]:
        return {} if self.gguf is None or self.entry is not None else {"gguf_file": self.gguf.name}


def _parsing_gguf_once(load: Callable[_P, _Loaded]) -> Callable[_P, _Loaded]:
    """Parse the metadata of a GGUF file once per call of `load`, whose first argument names a model."""

    @functools.wraps(load)
    def loading(*args: _P.args, **kwargs: _P.kwargs) -> _Loaded:
        spec = args[0] if args else kwargs["spec"]
        if not str(spec).endswith(".gguf"):
            return load(*args, **kwargs)
        # Imported late, because it imports gguf, which only GGUF models need.
        from superdraft.decoding.loading.gguf_conversion import parsed_once

        with parsed_once():
            return load(*args, **kwargs)

    return loading


@_parsing_gguf_once
def load_model(
    spec: str,
    *,
    home: Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
    checks_memory: bool = True,
) -> LoadedModel:
    """Load a model and its tokenizer. A known model is fetched first if it is not cached.

    Args:
        spec: a name in the catalogue, a local folder, a `.gguf` file, or a hub id.
        home: folder of the known models; None: the default folder.
        device: "auto" (the GPU if there is one), "cpu", "cuda" or "cuda:N".
        dtype: name of a weight format, or "auto"; see `choose_weight_format`.
        trust_remote_code: run Python code that comes with the model.
        checks_memory: refuse a model, before its weights are read, if there is not enough free memory.

    Raises:
        UnknownModelError: there is no model `spec`.
        BrokenModelError: it is damaged, incomplete, or has only pickled weights.
        UnsupportedModelError: Superposed Decoding cannot run on its architecture.
        NotEnoughMemoryError: it does not fit in the free memory.
        ModelLoadError: the device or dtype is not available, or the model could not be fetched.
    """
    target = _device(device)
    weight_format = choose_weight_format(dtype, target)
    source = _expanded(_locate(spec, home), weight_format.dtype)
    if source.path is not None and source.gguf is None:
        _check_weight_files(source.path)
    with _reading_tokenizer(source):
        config = _check_architecture(source, trust_remote_code)
        tokenizer = _read_tokenizer(source, trust_remote_code)
    if source.path is None:
        _fetch_weights(source)
    size = None if config is None else _size(config)
    if checks_memory and size is not None:
        _check_memory(source, size, weight_format, is_on_gpu=target.type == "cuda")
    with _reading(source, size, weight_format):
        model = _read_weights(source, weight_format.dtype, trust_remote_code)
    _check_vocabulary(model, tokenizer, source)
    with _explained(f"cannot place model {source.name!r} on {target}", ModelLoadError):
        model.to(target)
    model.requires_grad_(False).eval()
    check_config(model.config, source.name)  # again, for models that come with their own classes
    check_model_class(type(model), model.config, source.name)
    convert = _conversion(source, weight_format) if target.type == "cpu" else weight_format.convert
    return LoadedModel(model, tokenizer, source.name, source.path, convert)


@_parsing_gguf_once
def load_gguf(
    spec: str,
    *,
    home: Path | None = None,
    num_threads: int | None = None,
    gpu_layers: int | None = None,
    checks_memory: bool = True,
) -> LoadedGguf:
    """Find a `.gguf` file and load its tokenizer. A known model is fetched first if it is not cached.

    Args:
        spec: a known name, or a `.gguf` file.
        home: folder of the known models; None: the default folder.
        num_threads: see `LoadedGguf`.
        gpu_layers: see `LoadedGguf`.
        checks_memory: see `LoadedGguf`.

    Raises:
        UnknownModelError: there is no file `spec`, or it is not a `.gguf` file.
        BrokenModelError: its tokenizer cannot be read.
        ModelLoadError: the model could not be fetched.
    """
    source = _locate(spec, home)
    path = source.gguf
    if path is None and source.path is not None and spec in KNOWN_MODELS:
        path = source.path / KNOWN_MODELS[spec].gguf_name
    if path is None:
        known = ", ".join(KNOWN_MODELS)
        raise UnknownModelError(f"--runner llamacpp needs a .gguf file or a known model ({known}), got {spec!r}.")
    with _reading_tokenizer(source):
        tokenizer = _kept_tokenizer(source) or _read_tokenizer(source, trust_remote_code=False)
    return LoadedGguf(path, tokenizer, source.name, num_threads, gpu_layers, checks_memory)


def _kept_tokenizer(source: _Source) -> transformers.PreTrainedTokenizerBase | None:
    """The tokenizer of a GGUF file from the cache, where it is kept at the first use; None if it cannot be."""
    if source.gguf is None:
        return None
    entry = ConvertedFiles(source.home).ensure(source.gguf, None)
    if entry is None:
        return None
    try:
        return _read_tokenizer(replace(source, location=str(entry), entry=entry), trust_remote_code=False)
    except BrokenModelError:
        ConvertedFiles(source.home).remove(entry)
        return None


@_parsing_gguf_once
def load_tokenizer(
    spec: str, *, home: Path | None = None, trust_remote_code: bool = False
) -> transformers.PreTrainedTokenizerBase:
    """Load only a model's tokenizer; arguments and errors are those of `load_model`."""
    return _read_tokenizer(_locate(spec, home), trust_remote_code)


def fetch(name: str) -> None:
    """Fetch a model of the hub into the hub's own cache, unless it is there: config, tokenizer and weights.

    Args:
        name: a name in the catalogue, or a hub id.

    Raises:
        ModelLoadError: as in `load_model`.
    """
    source = _locate(name, None)
    _check_architecture(source, trust_remote_code=False)
    _read_tokenizer(source, trust_remote_code=False)
    _fetch_weights(source)


def model_size(spec: str, home: Path | None = None) -> ModelSize | None:
    """The size of a model, from the catalogue or from its config; None if it cannot be told. Fetches nothing."""
    if spec in CATALOGUE:
        return CATALOGUE[spec].size
    path = Path(spec).expanduser()
    if not path.exists():
        return None
    config = _check_architecture(_locate(spec, home), trust_remote_code=False)
    return None if config is None else _size(config)


def _locate(spec: str, home: Path | None) -> _Source:
    store = ModelStore(home)
    if store.knows(spec):
        folder = store.ensure(spec)
        return _Source(spec, str(folder), folder, hint=f" `superdraft models pull {spec}` checks and repairs it.")
    if spec in CATALOGUE:
        listed = CATALOGUE[spec]
        hint = " Its licence must be accepted on the hub, and HF_TOKEN set." if listed.is_gated else ""
        return _Source(spec, listed.hub_id, hint=hint)
    if not spec.strip():
        raise UnknownModelError(f"the model's name must not be empty, got {spec!r}.")
    path = Path(spec).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise BrokenModelError(f"the folder {path} contains no model: config.json is missing.")
        return _Source(path.resolve().name, str(path), path)
    if path.suffix == ".gguf" and path.is_file():
        return _Source(path.stem, str(path.parent), path, gguf=path, home=home)
    looks_local = spec.startswith(("/", "./", "../", "~")) or path.suffix == ".gguf" or spec.count("/") > 1
    if looks_local or path.exists():
        raise UnknownModelError(f"{spec!r} is neither a folder with a model nor a .gguf file.")
    return _Source(spec, spec)


def _expanded(source: _Source, dtype: torch.dtype) -> _Source:
    """The source with its cache entry, if it is a GGUF file that was expanded before."""
    entry = None if source.gguf is None else ConvertedFiles(source.home).find(source.gguf, dtype)
    return source if entry is None else replace(source, location=str(entry), entry=entry)


def _check_weight_files(folder: Path) -> None:
    files = [file for file in folder.iterdir() if file.is_file()]
    if any(file.suffix == ".safetensors" for file in files):
        return
    pickles = sorted(file.name for file in files if file.suffix in _PICKLE_SUFFIXES)
    if pickles:
        raise BrokenModelError(
            f"{folder} has only pickled weights ({pickles[0]}). They are refused because reading them can run code. "
            "Save the model as safetensors."
        )
    ggufs = sorted(file for file in files if file.suffix == ".gguf")
    if ggufs:
        raise BrokenModelError(f"{folder} has no safetensors weights. To use its GGUF file, pass its path: {ggufs[0]}")
    raise BrokenModelError(f"{folder} has no safetensors weights.")


def _check_architecture(source: _Source, trust_remote_code: bool) -> transformers.PretrainedConfig | None:
    """Check the config and class before any weights are read; the config, None if it comes with its own class."""
    reading = f"cannot read the config of model {source.shown!r}"
    unreadable: type[ModelLoadError] = BrokenModelError
    if source.path is None:
        known = ", ".join(KNOWN_MODELS)
        reading = (
            f"{source.name!r} is not a known model ({known}), a folder or a .gguf file, and cannot be read from the hub"
            if source.name == source.location
            else f"{source.name!r} ({source.location}) cannot be read from the hub"
        )
        unreadable = UnknownModelError
    with _explained(reading, unreadable, source.hint), quiet_transformers():
        raw, _ = transformers.PretrainedConfig.get_config_dict(source.location, **source.gguf_options)
    model_type = raw.get("model_type")
    if model_type not in CONFIG_MAPPING:
        _check_foreign(source, raw, trust_remote_code)
        return None
    with _explained(reading, BrokenModelError, source.hint), quiet_transformers():
        config = transformers.AutoConfig.from_pretrained(source.location, **source.gguf_options)
    check_config(config, source.name)
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if model_class is None:
        raise UnsupportedModelError(f"{source.name!r} ({model_type}) is not a causal language model.")
    check_model_class(model_class, config, source.name)
    return config


def _fetch_weights(source: _Source) -> None:
    with _explained(f"cannot fetch the weights of model {source.shown!r}", ModelLoadError, source.hint):
        fetch_weights(source.location)


def _size(config: transformers.PretrainedConfig) -> ModelSize | None:
    """The model's size; None if it cannot be told, which is no reason to refuse the model."""
    try:
        return size_of(config)
    except Exception:  # whatever an unusual config makes transformers raise
        return None


def _check_memory(source: _Source, size: ModelSize, weight_format: WeightFormat, *, is_on_gpu: bool) -> None:
    """Refuse a model whose weights do not fit in the free memory while they are loaded.

    Raises:
        NotEnoughMemoryError: they do not.
    """
    is_gguf = source.gguf is not None and source.entry is None
    needed = loading_bytes(size, weight_format.name, is_gguf=is_gguf, is_on_gpu=is_on_gpu)
    remedies = []
    if source.gguf is not None:
        file = shown(source.gguf.stat().st_size)
        remedies += [f"--runner llamacpp expands nothing: the file's {file} and the KV cache (--kv-memory)."]
    small = loading_bytes(size, "int4", is_gguf=is_gguf)
    if small < needed:
        remedies += [f"--dtype int4 needs about {shown(small)}."]
    remedies += ["`superdraft models list` shows smaller models."]
    require_memory(needed, f"loading {source.name!r} as {weight_format.name}", " ".join(remedies))


def _reading_tokenizer(source: _Source) -> contextlib.AbstractContextManager[object]:
    """Show that a tokenizer is read, which takes long for some GGUF files; the hub's client shows its own progress."""
    return contextlib.nullcontext() if source.path is None else stage(f"Reading the tokenizer of {source.name}")


@contextlib.contextmanager
def _reading(source: _Source, size: ModelSize | None, weight_format: WeightFormat) -> Iterator[Stage]:
    """Show how much of the weights is in memory."""
    before = resident_bytes()

    def growth() -> int | None:
        now = resident_bytes()
        return None if now is None or before is None else max(0, now - before)

    is_expanded = source.gguf is None or source.entry is not None
    what = f"Reading {source.name}" if is_expanded else f"Expanding {source.name}.gguf"
    total = None if size is None else size.num_weights * weight_format.dtype.itemsize
    with stage(what, total=total, measured=growth) as current:
        yield current


def _check_foreign(source: _Source, raw: dict[str, Any], trust_remote_code: bool) -> None:
    """Accept a model type that transformers does not have only if it comes with its own, trusted code."""
    model_type = raw.get("model_type")
    if "AutoModelForCausalLM" not in raw.get("auto_map", {}):
        raise UnsupportedModelError(
            f"{source.shown!r} has the unknown architecture {model_type!r}: transformers {transformers.__version__} "
            "does not support it, or config.json does not describe a language model."
        )
    if not trust_remote_code:
        raise UnsupportedModelError(
            f"{source.shown!r} ({model_type}) needs Python code that comes with it. If you trust its author, allow it "
            "with trust_remote_code."
        )


def _read_tokenizer(source: _Source, trust_remote_code: bool) -> transformers.PreTrainedTokenizerBase:
    unreadable = BrokenModelError if source.path is not None else UnknownModelError
    with _explained(f"cannot read the tokenizer of model {source.shown!r}", unreadable, source.hint):
        if source.gguf is not None and source.entry is None:
            # Imported late, because it imports gguf, which only GGUF models need.
            from superdraft.decoding.loading.gguf_tokenizer import load_gguf_tokenizer

            return load_gguf_tokenizer(source.gguf)
        folder = source.entry or source.path
        if folder is not None and not any((folder / name).is_file() for name in _TOKENIZER_FILES):
            raise BrokenModelError(f"{folder} contains no tokenizer (tokenizer.json is missing).")
        with quiet_transformers():
            return transformers.AutoTokenizer.from_pretrained(source.location, trust_remote_code=trust_remote_code)


def _read_weights(source: _Source, dtype: torch.dtype, trust_remote_code: bool) -> transformers.PreTrainedModel:
    with _explained(f"cannot load the weights of model {source.shown!r}", BrokenModelError, source.hint):
        if source.gguf is not None:
            return _read_gguf_weights(source, source.gguf, dtype)
        with quiet_transformers():
            model, info = transformers.AutoModelForCausalLM.from_pretrained(
                source.location,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
            )
    _check_complete(info, source)
    return model


def _read_gguf_weights(source: _Source, gguf: Path, dtype: torch.dtype) -> transformers.PreTrainedModel:
    """The weights mapped from the cache, expanded into it first if they are not there; else expanded in memory."""
    cache = ConvertedFiles(source.home)
    if source.entry is not None:
        try:
            return load_expanded(source.entry, dtype)
        except Exception as error:  # whatever transformers and safetensors raise about damaged files
            sys.stderr.write(f"{source.entry} is damaged and prepared again: {type(error).__name__}: {error}\n")
            cache.remove(source.entry)
    size_mb = gguf.stat().st_size // 10**6
    sys.stderr.write(f"Reading {gguf.name} ({size_mb} MB); expanding its weights may take minutes.\n")
    entry = cache.ensure(gguf, dtype)
    if entry is not None:
        return load_expanded(entry, dtype)
    from superdraft.decoding.loading.gguf_conversion import load_gguf_model

    model, info = load_gguf_model(gguf, dtype=dtype)
    _check_complete(info, source)
    return model


def _conversion(source: _Source, weight_format: WeightFormat) -> Conversion | None:
    """The weight format's conversion; for a GGUF file in the cache, one that keeps the converted layers there."""
    if weight_format.convert is None or source.gguf is None:
        return weight_format.convert
    entry = ConvertedFiles(source.home).find(source.gguf, weight_format.dtype)
    return weight_format.convert if entry is None else StoredConversion(weight_format.convert, entry)


def _check_complete(info: dict[str, Any], source: _Source) -> None:
    """Refuse a model with missing weights: transformers fills them with random numbers."""
    if absent := sorted(info["missing_keys"]):
        raise BrokenModelError(
            f"{source.shown!r} lacks {len(absent)} of its weights, for example {absent[0]}.{source.hint}"
        )


def _check_vocabulary(
    model: transformers.PreTrainedModel, tokenizer: transformers.PreTrainedTokenizerBase, source: _Source
) -> None:
    rows = model.get_input_embeddings().weight.shape[0]
    if not 0 < len(tokenizer) <= rows:
        raise BrokenModelError(
            f"the tokenizer of {source.shown!r} has {len(tokenizer)} tokens and the model {rows} embeddings: "
            f"they do not belong together.{source.hint}"
        )


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError:
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise ModelLoadError(f"device must be auto, cpu, cuda or cuda:N, got {device!r}.")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ModelLoadError(f"device {device!r} was requested, but torch sees {torch.cuda.device_count()} GPUs.")
    return found


@contextlib.contextmanager
def _explained(what: str, error_class: type[ModelLoadError], hint: str = "") -> Iterator[None]:
    """Turn any exception that transformers, torch or the system raises about a user's files into a one-line error."""
    try:
        yield
    except ModelLoadError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or "no reason given"
        if len(reason) > _MESSAGE_LENGTH:
            reason = f"{reason[:_MESSAGE_LENGTH]}..."
        raise error_class(f"{what}: {type(error).__name__}: {reason}{hint}") from error
