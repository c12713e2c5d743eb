"""Reading of tokenizers and weights from where a model is, with what is kept of expanded GGUF files."""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
import transformers

from superdraft.decoding.errors import BrokenModelError, UnknownModelError
from superdraft.decoding.loading.converted import ConvertedFiles, load_expanded
from superdraft.decoding.loading.model_size import ModelSize
from superdraft.decoding.loading.quiet import quiet_transformers
from superdraft.decoding.loading.source import Source, explained
from superdraft.decoding.loading.stored_layers import StoredConversion
from superdraft.decoding.memory import resident_bytes
from superdraft.decoding.model.linear import WeightFormat
from superdraft.decoding.progress import Stage, stage

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tokenizer_config.json",
)

_P = ParamSpec("_P")
_Loaded = TypeVar("_Loaded")


def parsing_gguf_once(load: Callable[_P, _Loaded]) -> Callable[_P, _Loaded]:
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


def tokenizer_stage(source: Source) -> contextlib.AbstractContextManager[object]:
    """Show that a tokenizer is read, which takes long for some GGUF files; the hub's client shows its own progress."""
    return contextlib.nullcontext() if source.path is None else stage(f"Reading the tokenizer of {source.name}")


def read_tokenizer(source: Source, trust_remote_code: bool) -> transformers.PreTrainedTokenizerBase:
    """Read a model's tokenizer.

    Raises:
        UnknownModelError: the hub has none.
        BrokenModelError: it cannot be read.
    """
    unreadable = BrokenModelError if source.path is not None else UnknownModelError
    with explained(f"cannot read the tokenizer of model {source.shown!r}", unreadable, source.hint):
        if source.gguf is not None and source.entry is None:
            # Imported late, because it imports gguf, which only GGUF models need.
            from superdraft.decoding.loading.gguf_tokenizer import load_gguf_tokenizer

            return load_gguf_tokenizer(source.gguf)
        folder = source.entry or source.path
        if folder is not None and not any((folder / name).is_file() for name in _TOKENIZER_FILES):
            raise BrokenModelError(f"{folder} contains no tokenizer (tokenizer.json is missing).")
        with quiet_transformers():
            return transformers.AutoTokenizer.from_pretrained(source.location, trust_remote_code=trust_remote_code)


def kept_tokenizer(source: Source) -> transformers.PreTrainedTokenizerBase | None:
    """The tokenizer of a GGUF file from the cache, where it is kept at the first use; None if it cannot be.

    Raises:
        BrokenModelError: the file cannot be read.
    """
    if source.gguf is None:
        return None
    with explained(f"cannot read the tokenizer of model {source.shown!r}", BrokenModelError, source.hint):
        entry = ConvertedFiles(source.home).ensure(source.gguf, None)
    if entry is None:
        return None
    try:
        return read_tokenizer(replace(source, location=str(entry), entry=entry), trust_remote_code=False)
    except BrokenModelError:
        ConvertedFiles(source.home).remove(entry)
        return None


@contextlib.contextmanager
def weights_stage(source: Source, size: ModelSize | None, weight_format: WeightFormat) -> Iterator[Stage]:
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


def read_weights(source: Source, dtype: torch.dtype, trust_remote_code: bool) -> transformers.PreTrainedModel:
    """Read a model's weights into main memory, in this type.

    Raises:
        BrokenModelError: they cannot be read, or some are missing.
    """
    with explained(f"cannot load the weights of model {source.shown!r}", BrokenModelError, source.hint):
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


def _read_gguf_weights(source: Source, gguf: Path, dtype: torch.dtype) -> transformers.PreTrainedModel:
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


def _check_complete(info: dict[str, Any], source: Source) -> None:
    """Refuse a model with missing weights: transformers fills them with random numbers."""
    if absent := sorted(info["missing_keys"]):
        raise BrokenModelError(
            f"{source.shown!r} lacks {len(absent)} of its weights, for example {absent[0]}.{source.hint}"
        )


def stored_conversion(source: Source, weight_format: WeightFormat) -> StoredConversion | None:
    """The weight format's conversion, which keeps what it converts beside the weights; None: there is no such place."""
    if weight_format.convert is None or source.gguf is None:
        return None
    entry = ConvertedFiles(source.home).find(source.gguf, weight_format.dtype)
    return None if entry is None else StoredConversion(weight_format.convert, entry)
