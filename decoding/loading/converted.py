"""Cache of expanded GGUF files: the second start of a model maps its weights instead of expanding them again.

Layout of one cache, one entry per GGUF file and weight type; a known model has its own cache, beside its file::

    qwen2.5-coder-0.5b-instruct-q4_k_m-tokenizer-0f3a92c1d4b87e65/   the tokenizer alone, for llama.cpp
    qwen2.5-coder-0.5b-instruct-q4_k_m-bfloat16-0f3a92c1d4b87e65/
        model-00001-of-00016.safetensors ...   the expanded weights, in the type in which the model is loaded
        config.json, tokenizer.json ...
        layers-c41e07aa/                       layers in the weight format int4, see `stored_layers`
        superdraft.json                        the marker, touched at every use: facts about every file

The name of an entry ends in a hash of the GGUF file's size, modification time and a sample of its content, and of the
code that expands it, transformers' version included. So a changed file has another entry. The entries used last are
kept, `MAX_ENTRIES` of them; removing entries by hand, also all of them, is safe.
"""

import contextlib
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError

from superdraft.decoding.durable import facts, locked, new_folder, sample
from superdraft.decoding.loading.quiet import quiet_transformers
from superdraft.decoding.progress import say

MAX_ENTRIES = 4
"""Entries that are kept when another one is prepared, that one included."""

SHARD_BYTES = 64_000_000
"""Size of the weight files. A file stays mapped while any of its tensors is in use, so few tensors share one."""

_MARKER = "superdraft.json"
_FORMAT = 2
_STEM_LENGTH = 80
_SPARE_BYTES = 200_000_000


class ConvertedFiles:
    """The entries in one folder. Several processes may use it at once.

    Args:
        root: the folder; it is made when it is needed.
        convert: `(gguf, folder, dtype)`: writes what transformers loads to the folder.
    """

    def __init__(self, root: Path, *, convert: Callable[[Path, Path, torch.dtype | None], None] | None = None) -> None:
        self._root = root
        self._convert = convert or _convert

    def find(self, gguf: Path, dtype: torch.dtype | None) -> Path | None:
        """The entry of a GGUF file if it is complete and undamaged, marked as used; else None. Never raises.

        Args:
            gguf: the file.
            dtype: of the weights; None: the entry with the tokenizer alone.
        """
        try:
            entry = self._entry(gguf, dtype)
            if not _is_intact(entry):
                return None
            with contextlib.suppress(OSError):  # the folder may be read-only
                os.utime(entry / _MARKER)
        except OSError:
            return None
        return entry

    def ensure(self, gguf: Path, dtype: torch.dtype | None) -> Path | None:
        """The entry of a GGUF file, which is prepared first if it is missing or damaged; arguments as in `find`.

        Returns:
            None if it cannot be kept: the folder is read-only or full, as stderr then says; or the file was replaced
            meanwhile.
        """
        if (found := self.find(gguf, dtype)) is not None:
            return found
        try:
            entry = self._entry(gguf, dtype)
            self._root.mkdir(parents=True, exist_ok=True)
            with locked(entry, lambda: say("Another process is expanding this model; waiting for it.")):
                if not _is_intact(entry):  # another process may have prepared it in the meantime
                    self._prepare(gguf, dtype, entry)
        except (OSError, SafetensorError) as error:
            say(f"The expanded weights of {gguf.name} are not kept in {self._root}: {error}.")
            return None
        return entry

    def _entry(self, gguf: Path, dtype: torch.dtype | None) -> Path:
        kind = "tokenizer" if dtype is None else str(dtype).removeprefix("torch.")
        stem = gguf.stem.lstrip(".")[:_STEM_LENGTH] or "model"
        return self._root / f"{stem}-{kind}-{_identity(gguf)}"

    def _prepare(self, gguf: Path, dtype: torch.dtype | None, entry: Path) -> None:
        needed = (0 if dtype is None else _expanded_bytes(gguf, dtype)) + _SPARE_BYTES
        if (free := shutil.disk_usage(self._root).free) < needed:
            raise OSError(f"{needed // 10**6} MB are needed and {free // 10**6} MB free")
        with new_folder(entry) as folder:
            self._convert(gguf, folder, dtype)
            files = {file.name: facts(file) for file in sorted(folder.iterdir())}
            (folder / _MARKER).write_text(json.dumps(files, indent=2) + "\n", encoding="utf-8")
            if self._entry(gguf, dtype) != entry:
                raise OSError("the file was replaced while it was read")
        self._forget_oldest()

    def _forget_oldest(self) -> None:
        """Remove the entries that were not used for the longest time. A process that uses one keeps what it mapped."""
        used = {}
        for marker in self._root.glob(f"[!.]*/{_MARKER}"):
            with contextlib.suppress(OSError):
                used[marker.parent] = marker.stat().st_mtime_ns
        for entry in sorted(used, key=used.__getitem__, reverse=True)[MAX_ENTRIES:]:
            shutil.rmtree(entry, ignore_errors=True)


def load_expanded(entry: Path, dtype: torch.dtype) -> transformers.PreTrainedModel:
    """The model of an entry. Its matrices are mapped, so they take memory only where they are read.

    Args:
        entry: of `ConvertedFiles`.
        dtype: the type of the entry's weights.

    Raises:
        Exception: whatever transformers and safetensors raise about a damaged file.
    """
    with quiet_transformers():
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            entry, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    if info["missing_keys"]:
        raise ValueError(f"{min(info['missing_keys'])} is missing")
    # A file stays mapped as a whole while one of its tensors is used; the norms are used for good.
    for parameter in model.parameters():
        if parameter.dim() < 2:
            parameter.data = parameter.data.clone()
    return model


def _convert(gguf: Path, folder: Path, dtype: torch.dtype | None) -> None:
    # Imported late, because they import gguf, which only GGUF models need.
    from superdraft.decoding.loading.gguf_conversion import convert_gguf
    from superdraft.decoding.loading.gguf_tokenizer import load_gguf_tokenizer

    if dtype is None:
        load_gguf_tokenizer(gguf).save_pretrained(folder)
        return
    convert_gguf(gguf, folder, dtype, max_shard_size=SHARD_BYTES)


def _expanded_bytes(path: Path, dtype: torch.dtype) -> int:
    import gguf

    return sum(int(tensor.n_elements) for tensor in gguf.GGUFReader(path).tensors) * dtype.itemsize


def _identity(gguf: Path) -> str:
    """Tells versions of a file apart, 16 hex digits. The content alone would not notice a change between samples."""
    about = gguf.stat()
    parts = (_FORMAT, _code(), transformers.__version__, about.st_size, about.st_mtime_ns, sample(gguf))
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


@functools.cache
def _code() -> str:
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("gguf_*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _is_intact(entry: Path) -> bool:
    """Whether the marker is there and what it says of every file is true."""
    try:
        files = json.loads((entry / _MARKER).read_text(encoding="utf-8"))
        return bool(files) and all(facts(entry / name) == known for name, known in files.items())
    except (OSError, ValueError, RecursionError, TypeError, AttributeError):
        return False
