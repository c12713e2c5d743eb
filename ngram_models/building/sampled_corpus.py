"""A corpus that a language model writes, on disk in shards, so that a run that was killed goes on where it stopped.

A shard is a token file of a fixed number of rows, as `corpus` reads it. It is complete or absent, and what is in it
depends on the settings and its number alone. So the shards that are there are right, whoever sampled them and when.
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
    """The size of every shard.

    Attributes:
        num_rows: sequences of a shard.
        row_tokens: tokens of a sequence.
        vocabulary_size: all ids are below it; decides between `.u16` and `.u32` files.
    """

    num_rows: int
    row_tokens: int
    vocabulary_size: int

    @property
    def ending(self) -> str:
        """Of the files' names."""
        return ".u16" if self.vocabulary_size <= _LARGEST_16_BIT + 1 else ".u32"

    @property
    def num_bytes(self) -> int:
        """Of a shard."""
        return self.num_rows * self.row_tokens * array(TOKEN_FILES[self.ending]).itemsize

    def num_shards(self, num_rows: int) -> int:
        """How many shards hold this many sequences."""
        return -(-num_rows // self.num_rows)


class SampledCorpus:
    """The shards of one folder; made by `open_sampled_corpus`.

    Attributes:
        num_removed: finished shards that were removed because they were sampled with other settings.
    """

    def __init__(self, folder: Path, shape: ShardShape, num_removed: int) -> None:
        self._folder = folder
        self._shape = shape
        self.num_removed = num_removed

    def missing(self, num_shards: int) -> list[int]:
        """The numbers below `num_shards` of those that are not there yet."""
        return [index for index in range(num_shards) if not self._is_complete(self._path(index))]

    def check_disk_space(self, num_missing: int) -> None:
        """Check that there is room for this many shards more.

        Raises:
            CorpusError: there is not.
        """
        needed, free = num_missing * self._shape.num_bytes, shutil.disk_usage(self._folder).free
        if needed > free:
            raise CorpusError(
                f"The sampled tokens need {needed / 1e6:,.0f} MB of disk, but {self._folder} has {free / 1e6:,.0f} MB "
                "left. Make room, sample fewer (--rows), or name a folder on another disk (--work)."
            )

    def write(self, index: int, token_ids: Iterable[int]) -> None:
        """Put a shard on disk; it has its name only when it is complete.

        Args:
            index: its number.
            token_ids: row after row, of the shape's size.
        """
        ids = array(TOKEN_FILES[self._shape.ending], token_ids)
        if sys.byteorder == "big":
            ids.byteswap()
        partial = self._folder / f"shard-{index:06}.partial"
        partial.write_bytes(ids.tobytes())
        rename_durably(partial, self._path(index))

    def read(self, num_rows: int) -> Iterator[Document]:
        """The first sequences, in order; their shards must be there."""
        paths = [str(self._path(index)) for index in range(self._shape.num_shards(num_rows))]
        return islice(read_documents(paths, row_tokens=self._shape.row_tokens), num_rows)

    def remove(self) -> None:
        """Remove the folder with all shards."""
        shutil.rmtree(self._folder)

    def _path(self, index: int) -> Path:
        return self._folder / f"shard-{index:06}{self._shape.ending}"

    def _is_complete(self, path: Path) -> bool:
        return path.is_file() and path.stat().st_size == self._shape.num_bytes


@contextmanager
def open_sampled_corpus(folder: Path, settings: Mapping[str, Any], shape: ShardShape) -> Iterator[SampledCorpus]:
    """The sampled corpus in a folder, for this process alone.

    Args:
        folder: made if need be.
        settings: all that decides what is in the shards, for JSON. Shards that were sampled with others are removed.
        shape: of the shards; belongs to the settings.

    Raises:
        CorpusError: another process samples into this folder, or it holds something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    foreign = sorted(path.name for path in folder.iterdir() if not _is_own(path))
    if foreign:
        raise CorpusError(f"{folder} holds other files ({foreign[0]}). Name an empty folder for the samples (--work).")
    try:
        with FileLock(folder / _LOCK_FILE, blocking=False):
            yield SampledCorpus(
                folder, shape, _start(folder, {**settings, "shape": [shape.num_rows, shape.row_tokens]})
            )
    except Timeout:
        raise CorpusError(
            f"Another process samples into {folder}. Wait for it, or choose another name for the model."
        ) from None


def _start(folder: Path, settings: Mapping[str, Any]) -> int:
    """Make the folder ready for these settings; returns how many finished shards of others were removed."""
    for partial in folder.glob("*.partial"):
        partial.unlink()
    path = folder / _SETTINGS_FILE
    text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return 0
    shards = _finished(folder)
    # The old settings go last: killed in between, the rest of their shards would still be right.
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
