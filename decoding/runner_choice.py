"""The runner that a model gets: torch, with our kernels where there are some, or llama.cpp for a GGUF file."""

import logging
from dataclasses import replace
from pathlib import Path

import torch

from superdraft.decoding.errors import ModelLoadError, NotEnoughMemoryError, UnsupportedModelError
from superdraft.decoding.loading.loader import (
    LoadedDecoder,
    LoadedGguf,
    LoadedModel,
    ModelOptions,
    load_decoder,
    load_gguf,
    load_model,
)
from superdraft.decoding.loading.source import resolve
from superdraft.decoding.model.llamacpp.library import library
from superdraft.decoding.model.native.library import has_kernels

_logger = logging.getLogger(__name__)


def load(options: ModelOptions, num_positions: int) -> LoadedDecoder | LoadedModel | LoadedGguf:
    """Load the model for the runner that it gets. Sets torch's number of threads if the options have one.

    Args:
        options: the model and how it runs.
        num_positions: of the longest text that will be run.

    Raises:
        ModelLoadError: the model cannot be used, or not with these options.
    """
    if options.num_threads is not None:
        torch.set_num_threads(options.num_threads)
    if gguf_for_llama_cpp(options) is not None or options.runner == "llamacpp":
        return _load_gguf(options)
    if options.gpu_layers is not None:
        raise ModelLoadError("gpu_layers is for --runner llamacpp; with torch, --device says where the model runs.")
    try:
        return load_decoder(options, num_positions) or load_model(options)
    except (NotEnoughMemoryError, UnsupportedModelError) as error:
        if gguf_for_llama_cpp(options, torch_cannot=True) is None:
            raise
        _logger.warning("llama.cpp runs %s, because torch cannot: %s", options.model, error)
    return _load_gguf(options)


def gguf_for_llama_cpp(options: ModelOptions, *, torch_cannot: bool = False) -> Path | None:
    """The `.gguf` file that llama.cpp is to run; None: something else runs, or another model.

    The runner `auto` takes torch for what has a name, where the options are torch's own, where llama.cpp would leave a
    GPU idle that torch can use, and on processors for which there are kernels: steps are two to six times as fast with
    them (`superdraft lab bench runners`). The choice for a file is logged.

    Args:
        options: the model and how it runs.
        torch_cannot: torch has too little memory, or its kernels do not know something that the file says.

    Raises:
        ModelLoadError: there is no such model.
    """
    source = resolve(options.model, options.home)
    if options.runner == "llamacpp":
        return source.gguf
    if options.runner == "torch" or source.gguf is None or source.is_known:
        return None
    reason = _reason_for_torch(options, torch_cannot)
    if reason is None:
        _logger.info("llama.cpp runs %s", options.model)
        return source.gguf
    _logger.info("torch runs %s: %s", options.model, reason)
    return None


def _reason_for_torch(options: ModelOptions, torch_cannot: bool) -> str | None:
    """Why torch is to run a `.gguf` file; None: llama.cpp is."""
    if options.dtype != "auto" or options.device not in ("auto", "cpu"):
        return "dtype and device are options for torch"
    torch_has_gpu = options.device == "auto" and torch.cuda.is_available()
    if has_kernels() and not (options.gpu_layers or torch_has_gpu or torch_cannot):
        return "there are faster kernels for this processor"
    try:
        llama_cpp = library()
    except ModelLoadError as error:
        return f"{error} (pip install '.[llamacpp]' in the folder of Superdraft's sources)"
    if torch_has_gpu and not llama_cpp.llama_supports_gpu_offload():
        return "llama-cpp-python was built without a GPU"
    return None


def _load_gguf(options: ModelOptions) -> LoadedGguf:
    if options.dtype != "auto":
        raise ModelLoadError(
            f"with --runner llamacpp the weights are those of the file, so dtype must be auto, got {options.dtype!r}."
        )
    if options.device not in ("auto", "cpu"):
        raise ModelLoadError(
            f"with --runner llamacpp, --gpu-layers says what a GPU runs; device must be auto or cpu, got "
            f"{options.device!r}."
        )
    return load_gguf(replace(options, gpu_layers=0) if options.device == "cpu" else options)
