"""Corpus sampled from a language model, stored in shards so that a killed run can be continued.

A shard is a token file with a fixed number of rows, in a format that `corpus` reads. Its content depends only on the
settings and its number, and only complete shards get their final name. Existing shards are therefore always valid.
"""

import json
import shutil
import sys
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout

from superdraft.ngram_models.building.corpus import TOKEN_FILES, Document, read_documents
from superdraft.ngram_models.building.shards import rename_durably
from superdraft.ngram_models.errors import CorpusError

_SETTINGS_FILE: Final = "settings.json"
_LOCK_FILE: Final = "lock"
_LARGEST_16_BIT = (1 << 16) - 1


@dataclass(frozen=True, slots=True)
class ShardShape:
    """Size of every shard.

    Attributes:
        num_rows: sequences per shard.
        row_tokens: tokens per sequence.
        vocabulary_size: number of token ids; determines whether files are `.u16` or `.u32`.
    """

    num_rows: int
    row_tokens: int
    vocabulary_size: int

    @property
    def ending(self) -> str:
        """Ending of the file names."""
        return ".u16" if self.vocabulary_size <= _LARGEST_16_BIT + 1 else ".u32"

    @property
    def num_bytes(self) -> int:
        """Size of a shard in bytes."""
        return self.num_rows * self.row_tokens * array(TOKEN_FILES[self.ending]).itemsize

    def num_shards(self, num_rows: int) -> int:
        """Number of shards for this many sequences."""
        return -(-num_rows // self.num_rows)


class SampledCorpus:
    """The shards in one folder. Use `open_sampled_corpus` to create an instance.

    Attributes:
        num_removed: number of finished shards that were removed because they were sampled with other settings.
    """

    def __init__(self, folder: Path, shape: ShardShape, num_removed: int) -> None:
        self._folder = folder
        self._shape = shape
        self.num_removed = num_removed

    def missing(self, num_shards: int) -> list[int]:
        """Numbers of the shards that are still missing, out of the first `num_shards`."""
        return [index for index in range(num_shards) if not self._is_complete(self._path(index))]

    def check_disk_space(self, num_missing: int) -> None:
        """Check that there is enough disk space for this many more shards.

        Raises:
            CorpusError: there is not.
        """
        needed, free = num_missing * self._shape.num_bytes, shutil.disk_usage(self._folder).free
        if needed > free:
            raise CorpusError(
                f"The sampled tokens need {needed / 1e6:,.0f} MB of disk space, but {self._folder} has "
                f"{free / 1e6:,.0f} MB left. Free some space, sample fewer rows (--rows), or use a folder on another "
                "disk (--work)."
            )

    def write(self, index: int, token_ids: Iterable[int]) -> None:
        """Write a shard. It gets its final name only when it is complete.

        Args:
            index: number of the shard.
            token_ids: all rows of the shard, one after another.
        """
        ids = array(TOKEN_FILES[self._shape.ending], token_ids)
        if sys.byteorder == "big":
            ids.byteswap()
        partial = self._folder / f"shard-{index:06}.partial"
        partial.write_bytes(ids.tobytes())
        rename_durably(partial, self._path(index))

    def read(self, num_rows: int) -> Iterator[Document]:
        """Read the first `num_rows` sequences, in order. Their shards must exist."""
        paths = [str(self._path(index)) for index in range(self._shape.num_shards(num_rows))]
        return islice(read_documents(paths, row_tokens=self._shape.row_tokens), num_rows)

    def remove(self) -> None:
        """Remove the folder with all its shards."""
        shutil.rmtree(self._folder)

    def _path(self, index: int) -> Path:
        return self._folder / f"shard-{index:06}{self._shape.ending}"

    def _is_complete(self, path: Path) -> bool:
        return path.is_file() and path.stat().st_size == self._shape.num_bytes


@contextmanager
def open_sampled_corpus(folder: Path, settings: Mapping[str, Any], shape: ShardShape) -> Iterator[SampledCorpus]:
    """Open the sampled corpus in a folder, and lock it for this process.

    Args:
        folder: created if it does not exist.
        settings: everything else that determines the content of the shards, as JSON values. Shards that were sampled
            with other settings are removed.
        shape: size of the shards. A different shape counts as different settings.

    Raises:
        CorpusError: another process is sampling into this folder, or the folder contains other files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    foreign = sorted(path.name for path in folder.iterdir() if not _is_own(path))
    if foreign:
        raise CorpusError(
            f"{folder} contains other files ({foreign[0]}). Use an empty folder for the samples (--work)."
        )
    try:
        with FileLock(folder / _LOCK_FILE, blocking=False):
            yield SampledCorpus(
                folder, shape, _start(folder, {**settings, "shape": [shape.num_rows, shape.row_tokens]})
            )
    except Timeout:
        raise CorpusError(
            f"Another process is sampling into {folder}. Wait for it, or choose another name for the model."
        ) from None


def _start(folder: Path, settings: Mapping[str, Any]) -> int:
    """Prepare the folder for these settings; returns how many finished shards of other settings were removed."""
    for partial in folder.glob("*.partial"):
        partial.unlink()
    path = folder / _SETTINGS_FILE
    text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return 0
    shards = _finished(folder)
    # Replace the old settings last: if this process is killed before, the remaining shards still match them.
    for shard in shards:
        shard.unlink()
    partial = folder / f"{_SETTINGS_FILE}.partial"
    partial.write_text(text, encoding="utf-8")
    rename_durably(partial, path)
    return len(shards)


def _finished(folder: Path) -> Sequence[Path]:
    return [path for path in folder.glob("shard-*") if path.suffix in TOKEN_FILES]


def _is_own(path: Path) -> bool:
    return path.name in (_LOCK_FILE, _SETTINGS_FILE) or path.suffix == ".partial" or path in _finished(path.parent)
