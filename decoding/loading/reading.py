"""Reading of tokenizers and weights from where a model is, with what is kept of expanded GGUF files."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
import transformers

from superdraft.decoding.errors import BrokenModelError, UnknownModelError
from superdraft.decoding.loading.catalogue import ModelSize
from superdraft.decoding.loading.converted import ConvertedFiles, load_expanded
from superdraft.decoding.loading.quiet import quiet_transformers
from superdraft.decoding.loading.source import Source, explained
from superdraft.decoding.loading.stored_layers import StoredConversion
from superdraft.decoding.memory import resident_bytes
from superdraft.decoding.model.linear import WeightFormat
from superdraft.decoding.progress import say, stage

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tokenizer_config.json",
)


def parsing_gguf_once(source: Source) -> contextlib.AbstractContextManager[None]:
    """Inside the context, the metadata of the source's GGUF file, if it must be read, is parsed once."""
    if source.gguf is None or source.entry is not None:
        return contextlib.nullcontext()
    # Imported late, because it imports gguf, which only GGUF models need.
    from superdraft.decoding.loading.gguf_conversion import parsed_once

    return parsed_once()


def find_expanded(source: Source, dtype: torch.dtype | None) -> Source:
    """The source with its entry in the cache, if it is a GGUF file that was expanded before.

    Args:
        source: any.
        dtype: of the weights; None: the tokenizer is enough.
    """
    if source.gguf is None:
        return source
    entry = ConvertedFiles(source.expansions).find(source.gguf, dtype)
    return source if entry is None else replace(source, location=str(entry), entry=entry)


def ensure_expanded(source: Source, dtype: torch.dtype | None) -> Source:
    """The source with its entry in the cache, which is made first if it is missing. Without, if it cannot be kept.

    Raises:
        BrokenModelError: the GGUF file cannot be read.
    """
    if source.gguf is None or source.entry is not None:
        return source
    what = "tokenizer" if dtype is None else "weights"
    with explained(f"cannot read the {what} of model {source.shown!r}", BrokenModelError, source.hint):
        ConvertedFiles(source.expansions).ensure(source.gguf, dtype)
    return find_expanded(source, dtype)


def expand(source: Source, size: ModelSize | None, dtype: torch.dtype) -> Source:
    """`ensure_expanded`, which may take long and reports its progress."""
    if source.gguf is None or source.entry is not None:
        return source
    megabytes = source.gguf.stat().st_size // 10**6
    say(f"Reading {source.gguf.name} ({megabytes} MB); expanding its weights may take minutes.")
    with weights_stage(f"Expanding {source.gguf.name}", size, dtype):
        return ensure_expanded(source, dtype)


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


@contextlib.contextmanager
def weights_stage(what: str, size: ModelSize | None, dtype: torch.dtype) -> Iterator[None]:
    """Show how much of the weights is in memory."""
    before = resident_bytes()

    def growth() -> int | None:
        now = resident_bytes()
        return None if now is None or before is None else max(0, now - before)

    with stage(what, total=None if size is None else size.num_weights * dtype.itemsize, measured=growth):
        yield


def read_weights(source: Source, dtype: torch.dtype, trust_remote_code: bool) -> transformers.PreTrainedModel:
    """Read a model's weights into main memory, in this type; those of an expanded GGUF file are mapped.

    Raises:
        BrokenModelError: they cannot be read, or some are missing.
    """
    with explained(f"cannot load the weights of model {source.shown!r}", BrokenModelError, source.hint):
        if source.entry is not None:
            return load_expanded(source.entry, dtype)
        if source.gguf is not None:
            # Imported late, because it imports gguf, which only GGUF models need.
            from superdraft.decoding.loading.gguf_conversion import load_gguf_model

            model, info = load_gguf_model(source.gguf, dtype=dtype)
        else:
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


def _check_complete(info: dict[str, Any], source: Source) -> None:
    """Refuse a model with missing weights: transformers fills them with random numbers."""
    if absent := sorted(info["missing_keys"]):
        raise BrokenModelError(
            f"{source.shown!r} lacks {len(absent)} of its weights, for example {absent[0]}.{source.hint}"
        )


def stored_conversion(source: Source, weight_format: WeightFormat) -> StoredConversion | None:
    """The weight format's conversion, which keeps its result next to the weights; None: there is no such place."""
    if weight_format.convert is None or source.entry is None:
        return None
    return StoredConversion(weight_format.convert, source.entry)
