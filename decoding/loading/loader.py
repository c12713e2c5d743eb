"""Loader for language models and their tokenizers; every failure is explained in one line.

A model is given as a name in the catalogue (`smollm2-135m`), a local folder with safetensors weights, a `.gguf` file,
or a model id on the Hugging Face hub. Pickled weights are never read. Code that comes with a model runs only if the
caller allows it.

transformers, and what imports it, is imported by the functions that need it: that takes seconds, and GGUF files are
read without it.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from superdraft.decoding.errors import BrokenModelError, ModelLoadError, UnknownModelError
from superdraft.decoding.families import gguf_family, is_family, spec_of_config, spec_of_gguf
from superdraft.decoding.gguf.file import GgufFile
from superdraft.decoding.loading.catalogue import DEFAULT_MODEL, KNOWN_MODELS, ModelSize
from superdraft.decoding.loading.hub import cached_folder, fetch_weights
from superdraft.decoding.loading.model_size import loading_bytes, size_of_spec
from superdraft.decoding.loading.reading import (
    read_gguf,
    read_tokenizer,
    tokenizer_stage,
    weights_stage,
)
from superdraft.decoding.loading.source import Source, check_weight_files, explained, locate, resolve
from superdraft.decoding.memory import require_memory, shown
from superdraft.decoding.model.decoder_spec import DecoderSpec
from superdraft.decoding.model.linear import Conversion, WeightFormat
from superdraft.decoding.model.native.decoder import problem_of
from superdraft.decoding.model.native.library import has_kernels
from superdraft.decoding.model.weight_formats import choose_weight_format

if TYPE_CHECKING:
    import transformers

_logger = logging.getLogger(__name__)


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
        tokenizer: its tokenizer, transformers' or a `GgufTokenizer`.
        name: the known name, the folder's or file's name, or the hub id.
        path: the folder or `.gguf` file it came from; None for a hub id.
        convert: converts its linear layers to the requested weight format; None: they stay as they are. An engine that
            converts them frees the dense ones, so the model can serve that engine alone.
    """

    model: "transformers.PreTrainedModel"
    tokenizer: Any
    name: str
    path: Path | None
    convert: Conversion | None = None


@dataclass(frozen=True)
class LoadedDecoder:
    """A decoder for the kernels, whose weights are still in their files.

    Attributes:
        spec: the decoder.
        tokenizer: its tokenizer, transformers' or a `GgufTokenizer`.
        name: the known name, the folder's or file's name, or the hub id.
        size: numbers of weights.
        eos_token_ids: tokens that end a text, besides the tokenizer's own.
        file: the GGUF file; None: the weights are safetensors.
    """

    spec: DecoderSpec
    tokenizer: Any
    name: str
    size: ModelSize
    eos_token_ids: tuple[int, ...] = ()
    file: GgufFile | None = None


@dataclass(frozen=True)
class LoadedGguf:
    """A `.gguf` file for llama.cpp, which maps it when an engine is built.

    Attributes:
        path: the file.
        tokenizer: its tokenizer, transformers' or a `GgufTokenizer`.
        name: the known name, or the file's name.
        options: how llama.cpp is to run it.
    """

    path: Path
    tokenizer: Any
    name: str
    options: ModelOptions


def load_decoder(options: ModelOptions, num_positions: int) -> LoadedDecoder | None:
    """Find a model's weights for the kernels, and load its tokenizer. A known model is fetched first if needed.

    Args:
        options: the model and how it runs.
        num_positions: of the longest text that will be run.

    Returns:
        None: the options, the processor or the model's family are not for the kernels; see `load_model`.

    Raises:
        UnsupportedModelError: a GGUF file of one of the families has something that the kernels do not know.
        ModelLoadError: as in `load_model`.
    """
    target = _device(options.device)
    weight_format = choose_weight_format(options.dtype, target)
    if target.type != "cpu" or weight_format.name != "int4" or not has_kernels():
        return None
    source = locate(options.model, options.home)
    file: GgufFile | None = None
    spec: DecoderSpec | None
    eos_token_ids: tuple[int, ...] = ()
    if source.gguf is not None:
        file = read_gguf(source)
        if gguf_family(file) is None:
            return None
        spec = spec_of_gguf(file, num_positions)
    else:
        from superdraft.decoding.loading import hugging_face

        config = hugging_face.checked_config(source, options.trust_remote_code)
        if config is None or not is_family(config):
            return None
        spec = _spec_of_safetensors(source, config, num_positions)
        eos_token_ids = hugging_face.eos_token_ids(source)
    problem = "it has something else than its family" if spec is None else problem_of(spec)
    if spec is None or problem is not None:
        _logger.info("torch's own forward runs %s: %s", source.name, problem)
        return None
    size = size_of_spec(spec)
    if options.checks_memory:
        _check_memory(source, size, weight_format)
    with tokenizer_stage(source):
        tokenizer = read_tokenizer(source, options.trust_remote_code, file)
    _check_vocabulary(spec.embedding.shape[0], tokenizer, source)
    return LoadedDecoder(spec, tokenizer, source.name, size, eos_token_ids, file)


def _spec_of_safetensors(source: Source, config: Any, num_positions: int) -> DecoderSpec | None:
    from superdraft.decoding.loading.hugging_face import map_safetensors

    if source.path is None:
        _fetch_weights(source)
    else:
        check_weight_files(source.path)
    folder = source.path or cached_folder(source.location)
    if folder is None:
        return None
    with explained(f"cannot load the weights of model {source.shown!r}", BrokenModelError, source.hint):
        return spec_of_config(config, map_safetensors(folder), num_positions, source.shown)


def load_model(options: ModelOptions) -> LoadedModel:
    """Load a model and its tokenizer for torch. A known model is fetched first if it is not cached.

    Raises:
        UnknownModelError: there is no such model.
        BrokenModelError: it is damaged, incomplete, or has only pickled weights.
        UnsupportedModelError: Superposed Decoding cannot run on its architecture.
        NotEnoughMemoryError: it does not fit in the free memory.
        ModelLoadError: the device or dtype is not available, or the model could not be fetched.
    """
    from superdraft.decoding.loading import hugging_face

    target = _device(options.device)
    weight_format = choose_weight_format(options.dtype, target)
    source = locate(options.model, options.home)
    if source.path is not None and source.gguf is None:
        check_weight_files(source.path)
    size = _checked_size(source, options.trust_remote_code)
    if options.checks_memory and size is not None:
        _check_memory(source, size, weight_format)
    with tokenizer_stage(source):
        tokenizer = read_tokenizer(source, options.trust_remote_code)
    if source.path is None:
        _fetch_weights(source)
    with weights_stage(f"Reading {source.name}", size, weight_format.dtype):
        model = hugging_face.read_weights(source, weight_format.dtype, options.trust_remote_code)
    _check_vocabulary(model.get_input_embeddings().weight.shape[0], tokenizer, source)
    with explained(f"cannot place model {source.name!r} on {target}", ModelLoadError):
        model.to(target)
    model.requires_grad_(False).eval()
    hugging_face.check_model(model, source.name)
    return LoadedModel(model, tokenizer, source.name, source.path, weight_format.convert)


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


def load_tokenizer(spec: str, *, home: Path | None = None, trust_remote_code: bool = False) -> Any:
    """Load only a model's tokenizer, transformers' or a `GgufTokenizer`.

    Arguments are those of `ModelOptions`, errors those of `load_model`.
    """
    return _read_tokenizer(locate(spec, home), trust_remote_code)


def _read_tokenizer(source: Source, trust_remote_code: bool) -> Any:
    with tokenizer_stage(source):
        return read_tokenizer(source, trust_remote_code)


def fetch(name: str, home: Path | None = None) -> Path:
    """Fetch what a later start of a model needs, unless it is here: a known model is verified.

    Args:
        name: a name in the catalogue, or a hub id.
        home: the home folder; None: see `superdraft_home`.

    Returns:
        The folder where it is: for a model on the hub, in the hub's own cache.

    Raises:
        ModelLoadError: as in `load_model`.
    """
    source = locate(name, home, deep=True)
    _checked_size(source, trust_remote_code=False)
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
    if source.gguf is not None:
        file = read_gguf(source)
        return None if gguf_family(file) is None else size_of_spec(spec_of_gguf(file, 1))
    from superdraft.decoding.loading import hugging_face

    config = hugging_face.checked_config(source, trust_remote_code)
    return None if config is None else hugging_face.size_or_none(config)


def _fetch_weights(source: Source) -> None:
    with explained(f"cannot fetch the weights of model {source.shown!r}", ModelLoadError, source.hint):
        fetch_weights(source.location)


def _check_memory(source: Source, size: ModelSize, weight_format: WeightFormat) -> None:
    """Refuse a model whose weights do not fit in the free memory while they are loaded.

    Raises:
        NotEnoughMemoryError: they do not.
    """
    is_gguf = source.gguf is not None
    needed = loading_bytes(size, weight_format.name, is_gguf=is_gguf)
    remedies = []
    small = loading_bytes(size, "int4", is_gguf=is_gguf)
    if small < needed:
        remedies += [f"--dtype int4 needs about {shown(small)}."]
    remedies += ["`superdraft models list` shows smaller models."]
    require_memory(needed, f"loading {source.name!r} as {weight_format.name}", " ".join(remedies))


def _check_vocabulary(rows: int, tokenizer: Any, source: Source) -> None:
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
