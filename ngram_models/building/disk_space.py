"""Estimates of the disk space and memory that a build needs, checked before the build starts."""

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from superdraft.ngram_models.errors import NgramBuildError

_UNITS = {"b": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_MEMORY = re.compile(r"(\d+(?:\.\d+)?)(%|[bKMGT])")
# With the default model's tokenizer, English text has about 4.3 bytes per token and code about 3.
_TEXT_BYTES_PER_TOKEN = 5
# Distinct n-grams per order, and those left after pruning, as shares of the number of tokens. For 44 million tokens of
# mixed English they were 0.11, 0.41, 0.67, 0.80, 0.87 and at most 0.11. Small corpora are less repetitive.
_DISTINCT_SHARE = {2: 0.3, 3: 0.6, 4: 0.8, 5: 0.9, 6: 1.0}
_PRUNED_SHARE = 0.2
# lmplz stores some records twice while it moves them between files.
_RECORDS_MARGIN = 1.25


def memory_bytes(memory: str) -> int:
    """Convert a size as in `lmplz -S`, such as "4G" or "80%" of the machine's memory, to bytes.

    Raises:
        ValueError: the size is malformed, or larger than the machine's memory.
    """
    match = _MEMORY.fullmatch(memory)
    if match is None:
        raise ValueError(f"The memory must be a number followed by b, K, M, G, T or %, got {memory!r}.")
    number, unit = float(match[1]), match[2]
    has = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    wanted = int(number / 100 * has) if unit == "%" else int(number * _UNITS[unit])
    if not 0 < wanted <= has:
        raise ValueError(f"The memory must be between 0 and the {_gigabytes(has)} of this machine, got {memory!r}.")
    return wanted


def needed_disk_bytes(num_tokens: int, order: int, prune: Sequence[int]) -> int:
    """Upper estimate of the disk space for KenLM's temporary files and the ARPA file, without the corpus.

    Args:
        num_tokens: tokens of the corpus.
        order: length of the longest n-gram, in tokens.
        prune: as in `BuildOptions`.
    """
    records, arpa = 0.0, 0.0
    for n in range(2, order + 1):
        is_pruned = prune[min(n, len(prune)) - 1] > 0
        # A record of lmplz: n word ids of 4 bytes, and 8 bytes of counts. build_binary sorts similar ones afterwards.
        records += (4 * n + 8) * _DISTINCT_SHARE[n]
        # A line of an ARPA file: n ids of up to 5 digits, a probability and a back-off weight.
        arpa += (6 * n + 15) * (_PRUNED_SHARE if is_pruned else _DISTINCT_SHARE[n])
    return int(num_tokens * (_RECORDS_MARGIN * records + arpa))


def check_disk_space(folder: Path, num_tokens: int, order: int, prune: Sequence[int]) -> None:
    """Check that there is enough disk space for a build.

    Args:
        folder: folder of the build; it need not exist yet.
        num_tokens: tokens of the corpus.
        order: length of the longest n-gram, in tokens.
        prune: as in `BuildOptions`.

    Raises:
        NgramBuildError: there is not.
    """
    while not folder.exists():
        folder = folder.parent
    needed, free = needed_disk_bytes(num_tokens, order, prune), shutil.disk_usage(folder).free
    if needed > free:
        raise NgramBuildError(
            f"Building an n-gram model of order {order} from {num_tokens:,} tokens needs about {_gigabytes(needed)} of "
            f"temporary disk space, but {folder} has {_gigabytes(free)} left. Free some space, prune more (--prune), "
            "lower the --order, use a smaller corpus, or set SUPERDRAFT_HOME to a folder on another disk."
        )


def approximate_tokens(text_bytes: int) -> int:
    """Lower estimate of the number of tokens in an uncompressed corpus of this size."""
    return text_bytes // _TEXT_BYTES_PER_TOKEN


def _gigabytes(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB"
