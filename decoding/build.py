"""Engines from a model's name, or from a loaded model."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from superdraft.decoding.config import EngineConfig
from superdraft.decoding.engine.engine import Engine
from superdraft.decoding.errors import BrokenModelError, UnsupportedModelError
from superdraft.decoding.loading.catalogue import DEFAULT_MODEL
from superdraft.decoding.loading.loader import LoadedDecoder, LoadedGguf, LoadedModel, ModelOptions, load_model
from superdraft.decoding.memory import free_bytes, shown
from superdraft.decoding.model.kv_cache import cells_per_slot
from superdraft.decoding.model.linear import Conversion, DenseLinear, Linear
from superdraft.decoding.model.native.decoder import num_weight_bytes
from superdraft.decoding.model.native.library import why_unavailable
from superdraft.decoding.model.native.runner import NativeRunner
from superdraft.decoding.model.threads import choose_num_threads, num_cores, threads_file
from superdraft.decoding.progress import Stage, stage
from superdraft.decoding.runner_choice import load
from superdraft.decoding.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import transformers

    from superdraft.decoding.model.torch_runner import TorchRunner

_logger = logging.getLogger(__name__)


def load_engine(
    model: str = DEFAULT_MODEL,
    config: EngineConfig | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    runner: str = "auto",
    num_threads: int | None = None,
) -> Engine:
    """Load a model and build an engine for it: the one that `superdraft serve` would have.

    Args:
        model: see `ModelOptions`, also for the other arguments.
        config: the engine's settings; None: the defaults.
        device: "auto", "cpu", "cuda" or "cuda:N".
        dtype: the weight format: "auto", "float32", "bfloat16", "float16", "int4".
        runner: "auto", "torch" or "llamacpp".
        num_threads: on the CPU; None: the fastest number, measured once.

    Raises:
        ModelLoadError: the model is unknown or broken, or Superposed Decoding cannot run on it.
    """
    options = ModelOptions(model=model, device=device, dtype=dtype, runner=runner, num_threads=num_threads)
    _, engine = open_engine(options, config or EngineConfig())
    return engine


def open_engine(options: ModelOptions, config: EngineConfig) -> tuple[str, Engine]:
    """Load a model and build an engine for it.

    With the runner `auto`, torch runs a GGUF file that llama.cpp cannot run this way.

    Returns:
        The model's own name, and the engine.

    Raises:
        ModelLoadError: the model cannot be used.
    """
    loaded = load(options, config.max_model_len)
    try:
        return loaded.name, _open(loaded, options, config)
    except UnsupportedModelError as error:
        if options.runner != "auto" or not isinstance(loaded, LoadedGguf):
            raise
        _logger.warning("torch runs %s, because llama.cpp cannot: %s", options.model, error)
    return loaded.name, _open(load_model(options), options, config)


def _open(loaded: LoadedDecoder | LoadedModel | LoadedGguf, options: ModelOptions, config: EngineConfig) -> Engine:
    is_on_cpu = isinstance(loaded, LoadedDecoder) or (
        isinstance(loaded, LoadedModel) and loaded.model.device.type == "cpu"
    )
    if is_on_cpu and options.dtype in ("auto", "int4") and (problem := why_unavailable()):
        _logger.warning("torch's own kernels are used, which are slower: %s", problem)
    engine = build_engine(loaded, config, threads_file(options.home) if options.num_threads is None else None)
    if is_on_cpu and options.checks_memory:
        _warn_of_cache(engine)
    return engine


def _warn_of_cache(engine: Engine) -> None:
    """Log it if the KV cache, whose memory is used only as it fills, will not fit when it is full."""
    free = free_bytes()
    full = engine.num_slots * cells_per_slot(engine.max_model_len) * engine.kv_bytes_per_position
    if free is not None and full > free:
        _logger.warning(
            "the KV cache does not fit in the free memory when it is full: it takes %s, and %s are free. Lower "
            "--kv-memory or --num-slots",
            shown(full),
            shown(free),
        )


def build_engine(
    loaded: LoadedDecoder | LoadedModel | LoadedGguf, config: EngineConfig, remembered: Path | None = None
) -> Engine:
    """Build an engine for a loaded model, with the runner that it is for.

    Args:
        loaded: the model. A conversion to another weight format frees its dense weights.
        config: the engine's settings.
        remembered: on a CPU, unless llama.cpp runs the model: measure how many threads it runs fastest with, set torch
            to that number, and remember it in this file. None: torch's number stays.

    Raises:
        UnsupportedModelError: Superposed Decoding cannot run on this model.
        NotEnoughMemoryError: a GGUF file and its KV cache do not fit in the free memory.
        ModelLoadError: the KV cache does not fit in `EngineConfig.kv_memory_bytes`, or llama.cpp cannot be used.
    """
    if isinstance(loaded, LoadedGguf):
        return _gguf_engine(loaded, config)
    runner: NativeRunner | TorchRunner
    if isinstance(loaded, LoadedDecoder):
        tokenizer, runner = _native(loaded, config)
    else:
        tokenizer, runner = _torch(loaded, config)
    if remembered is not None and runner.device.type == "cpu":
        with stage(f"Measuring how many threads are fastest for {loaded.name}"):
            choose_num_threads(runner, remembered)
    return Engine(runner, tokenizer, config)


def _native(loaded: LoadedDecoder, config: EngineConfig) -> tuple[Tokenizer, NativeRunner]:
    spec = loaded.spec
    with stage(f"Reading {loaded.name}", total=num_weight_bytes(spec)) as current:
        runner = NativeRunner(
            spec,
            min(config.max_model_len, spec.max_positions),
            config.kv_memory_bytes,
            config.num_slots,
            current=current,
        )
    if loaded.file is not None:
        loaded.file.forget_pages()
    return Tokenizer(loaded.tokenizer, runner.vocab_size, loaded.eos_token_ids), runner


def _torch(loaded: LoadedModel, config: EngineConfig) -> "tuple[Tokenizer, TorchRunner]":
    # Imported late: it imports transformers, which takes seconds and which the kernels do without.
    from superdraft.decoding.model.torch_runner import TorchRunner

    context = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
    tokenizer = tokenizer_of(loaded)  # first: it looks at the output head's weights
    with stage(f"Checking {loaded.name}") as current:
        runner = TorchRunner(
            loaded.model,
            min(config.max_model_len, context or config.max_model_len),
            config.kv_memory_bytes,
            config.num_slots,
            convert=None if loaded.convert is None else _counted(loaded.convert, loaded.name, loaded.model, current),
        )
    return tokenizer, runner


def _counted(convert: Conversion, name: str, model: "transformers.PreTrainedModel", current: Stage) -> Conversion:
    """The conversion, which tells a stage how much it has done."""
    total = sum(module.weight.nbytes for module in model.modules() if isinstance(module, nn.Linear))

    def counted(linear: DenseLinear, *, is_head: bool = False) -> Linear:
        current.what, current.total = f"Converting {name}", total
        converted = convert(linear, is_head=is_head)
        current.advance(linear.weight.nbytes)
        return converted

    return counted


def _gguf_engine(loaded: LoadedGguf, config: EngineConfig) -> Engine:
    # Imported late, because it imports gguf, which only GGUF models need.
    from superdraft.decoding.model.llamacpp.runner import LlamaRunner

    options = loaded.options
    with stage(f"Loading {loaded.path.name} with llama.cpp"):
        runner = LlamaRunner(
            loaded.path,
            config.max_model_len,
            config.kv_memory_bytes,
            config.num_slots,
            num_threads=options.num_threads or num_cores(),
            gpu_layers=options.gpu_layers,
            checks_memory=options.checks_memory,
        )
    if len(loaded.tokenizer) > runner.vocab_size:
        raise BrokenModelError(
            f"the tokenizer of {loaded.path} has {len(loaded.tokenizer)} tokens and the model {runner.vocab_size}: "
            "they do not belong together."
        )
    return Engine(runner, Tokenizer(loaded.tokenizer, runner.vocab_size), config)


def tokenizer_of(loaded: LoadedModel) -> Tokenizer:
    """The tokenizer of a loaded model, with the ends of text that the model's generation settings name."""
    generation = loaded.model.generation_config
    ends = generation.eos_token_id if generation is not None else None
    eos_token_ids = [ends] if isinstance(ends, int) else (ends or [])
    vocab_size = int(loaded.model.get_output_embeddings().weight.shape[0])
    return Tokenizer(loaded.tokenizer, vocab_size, eos_token_ids)
