"""Cache of expanded GGUF files: the second start of a model maps its weights instead of expanding them again.

Layout under the home folder, one entry per GGUF file and weight type::

    converted/qwen2.5-coder-0.5b-instruct-q4_k_m-tokenizer-0f3a92c1d4b87e65/   the tokenizer alone, for llama.cpp
    converted/qwen2.5-coder-0.5b-instruct-q4_k_m-bfloat16-0f3a92c1d4b87e65/
        model-00001-of-00016.safetensors ...   the expanded weights, in the type in which the model is loaded
        config.json, tokenizer.json ...
        layers-c41e07aa/                       layers in the weight format int4, see `stored_layers`
        superdraft.json                        the marker, touched at every use: facts about every file
    converted/.qwen2.5-...lock                 locked while a process prepares the entry
    converted/.qwen2.5-...partial/             work in progress: never read, removed by the next preparation

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
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock, Timeout
from safetensors import SafetensorError

from superdraft.decoding.home import superdraft_home
from superdraft.decoding.loading.quiet import quiet_transformers

MAX_ENTRIES = 3
"""Entries that are kept when another one is prepared, that one included."""

SHARD_BYTES = 64_000_000
"""Size of the weight files. A file stays mapped while any of its tensors is in use, so few tensors share one."""

_MARKER = "superdraft.json"
_FORMAT = 1
_HEAD_BYTES = 8 << 20
"""The beginning of a file, all of which is hashed: in a GGUF file, its metadata."""
_BLOCK_BYTES, _NUM_BLOCKS, _NUM_SHARD_BLOCKS = 64 << 10, 256, 16
_SHARD_HEAD_BYTES = 128 << 10
_SMALL_BYTES = 16 << 20
"""Files up to this size are hashed as a whole."""
_STEM_LENGTH = 80
_SPARE_BYTES = 200_000_000

Facts = dict[str, dict[str, Any]]


class ConvertedFiles:
    """The entries in one home folder. Several processes may use it at once.

    Args:
        home: the home folder; None: see `superdraft_home`.
        convert: `(gguf, folder, dtype)`: writes what transformers loads to the folder.
    """

    def __init__(
        self, home: Path | None = None, *, convert: Callable[[Path, Path, torch.dtype | None], None] | None = None
    ) -> None:
        self._root = superdraft_home(home) / "converted"
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
            None if it cannot be kept: the home folder is read-only or full, which stderr is told; or the file was
            replaced meanwhile.
        """
        try:
            entry = self._entry(gguf, dtype)
            self._root.mkdir(parents=True, exist_ok=True)
            with _locked(self._root / f".{entry.name}.lock"):
                if not _is_intact(entry):  # another process may have prepared it in the meantime
                    self._prepare(gguf, dtype, entry)
        except (OSError, SafetensorError) as error:
            _say(f"The expanded weights of {gguf.name} are not kept in {self._root}: {error}.")
            return None
        return entry

    def remove(self, entry: Path) -> None:
        """Remove an entry that turned out to be damaged."""
        shutil.rmtree(entry, ignore_errors=True)

    def _entry(self, gguf: Path, dtype: torch.dtype | None) -> Path:
        kind = "tokenizer" if dtype is None else str(dtype).removeprefix("torch.")
        stem = gguf.stem.lstrip(".")[:_STEM_LENGTH] or "model"
        return self._root / f"{stem}-{kind}-{_identity(gguf)}"

    def _prepare(self, gguf: Path, dtype: torch.dtype | None, entry: Path) -> None:
        partial = self._root / f".{entry.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            needed = (0 if dtype is None else _expanded_bytes(gguf, dtype)) + _SPARE_BYTES
            if (free := shutil.disk_usage(self._root).free) < needed:
                raise OSError(f"{needed // 10**6} MB are needed and {free // 10**6} MB free")
            self._convert(gguf, partial, dtype)
            _write_marker(partial)
            if self._entry(gguf, dtype) != entry:
                raise OSError("the file was replaced while it was read")
            shutil.rmtree(entry, ignore_errors=True)
            partial.rename(entry)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
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
    facts = gguf.stat()
    parts = (
        _FORMAT,
        _code(),
        transformers.__version__,
        facts.st_size,
        facts.st_mtime_ns,
        _sample(gguf, _HEAD_BYTES, _NUM_BLOCKS),
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


@functools.cache
def _code() -> str:
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("gguf_*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _sample(path: Path, head: int, num_blocks: int) -> str:
    """Hash of a small file; of a large one's beginning, end, and blocks at even distances. Hex digits."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= _SMALL_BYTES:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256(file.read(head))
        for block in range(num_blocks):
            file.seek((size - _BLOCK_BYTES) * (block + 1) // num_blocks)
            digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()


def _facts(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sample": _sample(path, _SHARD_HEAD_BYTES, _NUM_SHARD_BLOCKS)}


def _is_intact(entry: Path) -> bool:
    """Whether the marker is there and what it says of every file is true."""
    try:
        files: Facts = json.loads((entry / _MARKER).read_text(encoding="utf-8"))["files"]
        return bool(files) and all(_facts(entry / name) == facts for name, facts in files.items())
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return False


def _write_marker(folder: Path) -> None:
    files = [file for file in sorted(folder.iterdir()) if file.is_file()]
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())  # else a crash may leave zeros where a file has its size already
    marker = {"format": _FORMAT, "files": {file.name: _facts(file) for file in files}}
    (folder / _MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _say("Another process is expanding this model; waiting for it.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _say(message: str) -> None:
    sys.stderr.write(f"{message}\n")
