"""Files in memory that belong to this process alone."""

import mmap
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO


@dataclass(frozen=True, slots=True)
class MemoryCopy:
    """A file without a name in any folder.

    Attributes:
        file: for writing.
        path: opens the file, as long as the context of `copy_in_memory` lasts. Mappings made from it stay.
    """

    file: BinaryIO
    path: Path

    def read(self) -> memoryview:
        """What was written."""
        self.file.flush()
        if self.file.tell() == 0:
            return memoryview(b"")  # which cannot be mapped
        return memoryview(mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_READ))


@contextmanager
def copy_in_memory() -> Iterator[MemoryCopy]:
    """An empty file. Where the system has none in memory, it is a temporary file that is deleted at the end."""
    if sys.platform == "linux":
        with os.fdopen(os.memfd_create("superdraft-ngram"), "w+b") as file:
            yield MemoryCopy(file, Path(f"/proc/self/fd/{file.fileno()}"))
    else:
        with tempfile.NamedTemporaryFile() as temporary:
            yield MemoryCopy(temporary.file, Path(temporary.name))
