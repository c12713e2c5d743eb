"""Loader for language models and their tokenizers; every failure is explained in one line.

A model is given as a name in the catalogue (`smollm2-135m`), a local folder with safetensors weights, a `.gguf` file,
or a model id on the Hugging Face hub. Pickled weights are never read. Code that comes with a model runs only if the
caller allows it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from superdraft.decoding.errors import BrokenModelError, ModelLoadError, UnknownModelError, UnsupportedModelError
from superdraft.decoding.loading.catalogue import DEFAULT_MODEL, KNOWN_MODELS, ModelSize
from superdraft.decoding.loading.hub import fetch_weights
from superdraft.decoding.loading.model_size import loading_bytes, size_of
from superdraft.decoding.loading.quiet import quiet_transformers
from superdraft.decoding.loading.reading import (
    ensure_expanded,
    expand,
    find_expanded,
    parsing_gguf_once,
    read_tokenizer,
    read_weights,
    stored_conversion,
    tokenizer_stage,
    weights_stage,
)
from superdraft.decoding.loading.source import Source, check_weight_files, explained, locate, resolve
from superdraft.decoding.loading.stored_layers import StoredConversion
from superdraft.decoding.loading.support import check_config, check_model_class
from superdraft.decoding.memory import require_memory, shown
from superdraft.decoding.model.linear import Conversion, WeightFormat
from superdraft.decoding.model.weight_formats import choose_weight_format


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """A model, and where and how it runs.

    Attributes:
        model: a name in the catalogue (`superdraft models list`), a folder with safetensors weights, a `.gguf` file, or
            the id of a model on the hub. A model that is not on this machine is downloaded.
        home: folder of the known models and of what is made once; None: see `superdraft_home`.
        runner: "torch"; "llamacpp", for a `.gguf` file or a known model's own; "auto": torch where there are kernels
            for the processor and memory suffices, else llama.cpp for a `.gguf` file, if it is installed.
        device: for torch: "auto" (the GPU if there is one), "cpu", "cuda" or "cuda:N".
        dtype: for torch: name of a weight format, or "auto"; see `choose_weight_format`.
        num_threads: on the CPU; None: torch measures which number is fastest, llama.cpp takes all cores.
        gpu_layers: for llama.cpp: layers that a GPU runs; None: all of them, if it was built for a GPU.
        trust_remote_code: run Python code that comes with the model.
        checks_memory: refuse a model that does not fit in the free memory, before its weights are read.
    """

    model: str = DEFAULT_MODEL
    home: Path | None = None
    runner: str = "auto"
    device: str = "auto"
    dtype: str = "auto"
    num_threads: int | None = None
    gpu_layers: int | None = None
    trust_remote_code: bool = False
    checks_memory: bool = True


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to decode with: in evaluation mode, without gradients, on its device.

    Attributes:
        model: the causal language model.
        tokenizer: its tokenizer.
        name: the known name, the folder's or file's name, or the hub id.
        path: the folder or `.gguf` file it came from; None for a hub id.
        convert: converts its linear layers to the requested weight format; None: they stay as they are. An engine that
            converts them frees the dense ones, so the model can serve that engine alone.
        stored: the same conversion if it keeps what it has converted, which also knows whether the model has passed
            the runner's check before.
    """

    model: transformers.PreTrainedModel
    tokenizer: transformers.PreTrainedTokenizerBase
    name: str
    path: Path | None
    convert: Conversion | None = None
    stored: StoredConversion | None = None


@dataclass(frozen=True)
class LoadedGguf:
    """A `.gguf` file for llama.cpp, which maps it when an engine is built.

    Attributes:
        path: the file.
        tokenizer: its tokenizer.
        name: the known name, or the file's name.
        options: how llama.cpp is to run it.
    """

    path: Path
    tokenizer: transformers.PreTrainedTokenizerBase
    name: str
    options: ModelOptions


def load_model(options: ModelOptions) -> LoadedModel:
    """Load a model and its tokenizer for torch. A known model is fetched first if it is not cached.

    Raises:
        UnknownModelError: there is no such model.
        BrokenModelError: it is damaged, incomplete, or has only pickled weights.
        UnsupportedModelError: Superposed Decoding cannot run on its architecture.
        NotEnoughMemoryError: it does not fit in the free memory.
        ModelLoadError: the device or dtype is not available, or the model could not be fetched.
    """
    target = _device(options.device)
    weight_format = choose_weight_format(options.dtype, target)
    source = find_expanded(locate(options.model, options.home), weight_format.dtype)
    with parsing_gguf_once(source):
        return _load(source, weight_format, target, options)


def _load(source: Source, weight_format: WeightFormat, target: torch.device, options: ModelOptions) -> LoadedModel:
    if source.path is not None and source.gguf is None:
        check_weight_files(source.path)
    size = _checked_size(source, options.trust_remote_code)
    if options.checks_memory and size is not None:
        _check_memory(source, size, weight_format)
    source = expand(source, size, weight_format.dtype)
    with tokenizer_stage(source):
        tokenizer = read_tokenizer(source, options.trust_remote_code)
    if source.path is None:
        _fetch_weights(source)
    with weights_stage(f"Reading {source.name}", size, weight_format.dtype):
        model = read_weights(source, weight_format.dtype, options.trust_remote_code)
    _check_vocabulary(model, tokenizer, source)
    with explained(f"cannot place model {source.name!r} on {target}", ModelLoadError):
        model.to(target)
    model.requires_grad_(False).eval()
    check_config(model.config, source.name)  # again, for models that come with their own classes
    check_model_class(type(model), model.config, source.name)
    stored = stored_conversion(source, weight_format)
    return LoadedModel(model, tokenizer, source.name, source.path, stored or weight_format.convert, stored)


def load_gguf(options: ModelOptions) -> LoadedGguf:
    """Find a `.gguf` file and load its tokenizer. A known model is fetched first if it is not cached.

    Raises:
        UnknownModelError: there is no such file, or it is not a `.gguf` file.
        BrokenModelError: its tokenizer cannot be read.
        ModelLoadError: the model could not be fetched.
    """
    source = locate(options.model, options.home)
    if source.gguf is None:
        known = ", ".join(KNOWN_MODELS)
        raise UnknownModelError(
            f"--runner llamacpp needs a .gguf file or a known model ({known}), got {options.model!r}."
        )
    return LoadedGguf(source.gguf, _read_tokenizer(source, trust_remote_code=False), source.name, options)


def load_tokenizer(
    spec: str, *, home: Path | None = None, trust_remote_code: bool = False
) -> transformers.PreTrainedTokenizerBase:
    """Load only a model's tokenizer; arguments as in `ModelOptions`, errors as in `load_model`."""
    return _read_tokenizer(locate(spec, home), trust_remote_code)


def _read_tokenizer(source: Source, trust_remote_code: bool) -> transformers.PreTrainedTokenizerBase:
    """The tokenizer alone; that of a GGUF file is kept at its first use."""
    source = find_expanded(source, None)
    with tokenizer_stage(source), parsing_gguf_once(source):
        return read_tokenizer(ensure_expanded(source, None), trust_remote_code)


def fetch(name: str, home: Path | None = None) -> Path:
    """Fetch what a later start of a model needs, unless it is here: a known model is verified and expanded.

    Args:
        name: a name in the catalogue, or a hub id.
        home: the home folder; None: see `superdraft_home`.

    Returns:
        The folder where it is: for a model on the hub, in the hub's own cache.

    Raises:
        ModelLoadError: as in `load_model`.
    """
    dtype = choose_weight_format("auto", _device("auto")).dtype
    source = find_expanded(locate(name, home, deep=True), dtype)
    with parsing_gguf_once(source):
        source = expand(source, _checked_size(source, trust_remote_code=False), dtype)
    read_tokenizer(source, trust_remote_code=False)
    if source.path is None:
        _fetch_weights(source)
    folder = source.cached
    if folder is None:
        raise ModelLoadError(f"model {name!r} was fetched, but has no safetensors weights.")
    return folder


def model_size(spec: str, home: Path | None = None) -> ModelSize | None:
    """The size of a model, from the catalogue or from its config; None if it cannot be determined. Fetches nothing.

    Raises:
        ModelLoadError: it cannot be used.
    """
    source = resolve(spec, home)
    if source.listed is not None:
        return source.listed.size
    return None if source.path is None else _checked_size(source, trust_remote_code=False)


def _checked_size(source: Source, trust_remote_code: bool) -> ModelSize | None:
    """The model's size, after a check of its config and class, which what is pinned does not need."""
    if source.listed is not None and source.is_known:
        return source.listed.size
    with tokenizer_stage(source):
        config = _check_architecture(source, trust_remote_code)
    return None if config is None else _size(config)


def _check_architecture(source: Source, trust_remote_code: bool) -> transformers.PretrainedConfig | None:
    """Check the config and class before any weights are read; the config, None if it comes with its own class."""
    reading = f"cannot read the config of model {source.shown!r}"
    unreadable: type[ModelLoadError] = BrokenModelError
    if source.path is None:
        reading = (
            f"{source.name!r} is not a known model (`superdraft models list`), a folder, a .gguf file or a model on "
            "the hub"
            if source.name == source.location
            else f"{source.name!r} ({source.location}) cannot be read from the hub"
        )
        unreadable = UnknownModelError
    with explained(reading, unreadable, source.hint), quiet_transformers():
        raw, _ = transformers.PretrainedConfig.get_config_dict(source.location, **source.gguf_options)
    model_type = raw.get("model_type")
    if model_type not in CONFIG_MAPPING:
        _check_foreign(source, raw, trust_remote_code)
        return None
    with explained(reading, BrokenModelError, source.hint), quiet_transformers():
        config = transformers.AutoConfig.from_pretrained(source.location, **source.gguf_options)
    check_config(config, source.name)
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if model_class is None:
        raise UnsupportedModelError(f"{source.name!r} ({model_type}) is not a causal language model.")
    check_model_class(model_class, config, source.name)
    return config


def _fetch_weights(source: Source) -> None:
    with explained(f"cannot fetch the weights of model {source.shown!r}", ModelLoadError, source.hint):
        fetch_weights(source.location)


def _size(config: transformers.PretrainedConfig) -> ModelSize | None:
    """The model's size; None if it cannot be determined, which is no reason to refuse the model."""
    try:
        return size_of(config)
    except Exception:  # whatever an unusual config makes transformers raise
        return None


def _check_memory(source: Source, size: ModelSize, weight_format: WeightFormat) -> None:
    """Refuse a model whose weights do not fit in the free memory while they are loaded.

    Raises:
        NotEnoughMemoryError: they do not.
    """
    is_gguf = source.gguf is not None and source.entry is None
    needed = loading_bytes(size, weight_format.name, is_gguf=is_gguf)
    remedies = []
    if source.gguf is not None:
        file = shown(source.gguf.stat().st_size)
        remedies += [f"--runner llamacpp expands nothing: the file's {file} and the KV cache (--kv-memory)."]
    small = loading_bytes(size, "int4", is_gguf=is_gguf)
    if small < needed:
        remedies += [f"--dtype int4 needs about {shown(small)}."]
    remedies += ["`superdraft models list` shows smaller models."]
    require_memory(needed, f"loading {source.name!r} as {weight_format.name}", " ".join(remedies))


def _check_foreign(source: Source, raw: dict[str, Any], trust_remote_code: bool) -> None:
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


def _check_vocabulary(
    model: transformers.PreTrainedModel, tokenizer: transformers.PreTrainedTokenizerBase, source: Source
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
