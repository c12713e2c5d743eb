"""Corpus sampled from a language model, stored in shards so that a killed run can be continued.

A shard is a token file, in a format that `corpus` reads. Its content depends only on the settings, whose digest begins
its name, and on its number. Only complete shards get their final name. Existing shards are therefore always valid.
"""

import hashlib
import json
import re
import shutil
import sys
from array import array
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from superdraft.ngram_models.building.corpus import TOKEN_FILES, Document, read_documents
from superdraft.ngram_models.durable import LOCK_FILE, locked, rename_durably
from superdraft.ngram_models.errors import CorpusError

_ENDING: Final = ".u32"
_TYPE_CODE = TOKEN_FILES[_ENDING]
_SHARD: Final = re.compile(r"shard-[0-9a-f]{16}-\d{6,}\.(u32|partial)")


class SampledCorpus:
    """The shards in one folder. Use `open_sampled_corpus` to create an instance.

    Attributes:
        num_removed: number of finished shards that were removed because they were sampled with other settings.
    """

    def __init__(self, folder: Path, beginning: str, num_removed: int) -> None:
        self._folder = folder
        self._beginning = beginning
        self.num_removed = num_removed

    def missing(self, num_shards: int) -> list[int]:
        """Numbers of the shards that are still missing, out of the first `num_shards`."""
        return [index for index in range(num_shards) if not self._path(index).exists()]

    def check_disk_space(self, num_tokens: int) -> None:
        """Check that there is enough disk space for this many more tokens.

        Raises:
            CorpusError: there is not.
        """
        needed, free = num_tokens * array(_TYPE_CODE).itemsize, shutil.disk_usage(self._folder).free
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
        ids = array(_TYPE_CODE, token_ids)
        if sys.byteorder == "big":
            ids.byteswap()
        partial = self._path(index).with_suffix(".partial")
        partial.write_bytes(ids.tobytes())
        rename_durably(partial, self._path(index))

    def read(self, num_shards: int, row_tokens: int) -> Iterator[Document]:
        """Read the sequences of the first shards, in order."""
        return read_documents([str(self._path(index)) for index in range(num_shards)], row_tokens=row_tokens)

    def remove(self) -> None:
        """Remove the folder with all its shards."""
        shutil.rmtree(self._folder)

    def _path(self, index: int) -> Path:
        return self._folder / f"{self._beginning}{index:06}{_ENDING}"


@contextmanager
def open_sampled_corpus(folder: Path, settings: Mapping[str, Any]) -> Iterator[SampledCorpus]:
    """Open the sampled corpus in a folder, and lock it for this process.

    Args:
        folder: created if it does not exist.
        settings: everything that determines the content of the shards, as JSON values. Shards that were sampled with
            other settings are removed.

    Raises:
        CorpusError: another process is sampling into this folder, or the folder contains other files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    foreign = sorted(
        path.name for path in folder.iterdir() if path.name != LOCK_FILE and not _SHARD.fullmatch(path.name)
    )
    if foreign:
        raise CorpusError(
            f"{folder} contains other files ({foreign[0]}). Use an empty folder for the samples (--work)."
        )
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    beginning = f"shard-{digest[:16]}-"
    message = f"Another process is sampling into {folder}. Wait for it, or choose another name for the model."
    with locked(folder, CorpusError(message)):
        for partial in folder.glob("*.partial"):
            partial.unlink()
        others = [path for path in folder.glob("shard-*") if not path.name.startswith(beginning)]
        for shard in others:
            shard.unlink()
        yield SampledCorpus(folder, beginning, len(others))
