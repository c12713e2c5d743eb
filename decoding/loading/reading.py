"""Reading of tokenizers and weights from where a model is."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from superdraft.decoding.errors import BrokenModelError, UnknownModelError
from superdraft.decoding.gguf.file import GgufFile
from superdraft.decoding.gguf.tokenizer import load_gguf_tokenizer
from superdraft.decoding.loading.catalogue import ModelSize
from superdraft.decoding.loading.source import Source, explained
from superdraft.decoding.memory import resident_bytes
from superdraft.decoding.progress import stage

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tokenizer_config.json",
)


def tokenizer_stage(source: Source) -> contextlib.AbstractContextManager[object]:
    """Show that a tokenizer is read; the hub's client shows its own progress."""
    return contextlib.nullcontext() if source.path is None else stage(f"Reading the tokenizer of {source.name}")


def read_gguf(source: Source) -> GgufFile:
    """Map the source's GGUF file.

    Raises:
        BrokenModelError: it is damaged.
        UnsupportedModelError: it cannot be read by this version.
    """
    assert source.gguf is not None
    with explained(f"cannot read model {source.shown!r}", BrokenModelError, source.hint):
        return GgufFile(source.gguf)


def read_tokenizer(source: Source, trust_remote_code: bool, file: GgufFile | None = None) -> Any:
    """Read a model's tokenizer.

    Args:
        source: where the model is.
        trust_remote_code: run Python code that comes with the model.
        file: the source's GGUF file, if it is read already.

    Returns:
        transformers' tokenizer, or a `GgufTokenizer`.

    Raises:
        UnknownModelError: the hub has none.
        BrokenModelError: it cannot be read.
        UnsupportedModelError: a GGUF file has one of an unknown kind.
    """
    unreadable = BrokenModelError if source.path is not None else UnknownModelError
    with explained(f"cannot read the tokenizer of model {source.shown!r}", unreadable, source.hint):
        if source.gguf is not None:
            return load_gguf_tokenizer(file or read_gguf(source))
        if source.path is not None and not any((source.path / name).is_file() for name in _TOKENIZER_FILES):
            raise BrokenModelError(f"{source.path} contains no tokenizer (tokenizer.json is missing).")
        from superdraft.decoding.loading import hugging_face

        return hugging_face.read_hub_tokenizer(source.location, trust_remote_code)


@contextlib.contextmanager
def weights_stage(what: str, size: ModelSize | None, dtype: torch.dtype) -> Iterator[None]:
    """Show how much of the weights is in memory."""
    before = resident_bytes()

    def growth() -> int | None:
        now = resident_bytes()
        return None if now is None or before is None else max(0, now - before)

    with stage(what, total=None if size is None else size.num_weights * dtype.itemsize, measured=growth):
        yield
