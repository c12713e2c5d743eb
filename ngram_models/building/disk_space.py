"""Whether the disk and the memory are enough for a build, told before the work instead of after an hour."""

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from superdraft.ngram_models.errors import NgramBuildError

_UNITS = {"b": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_MEMORY = re.compile(r"(\d+(?:\.\d+)?)(%|[bKMGT])")
# English text has about 4.3 bytes a token of the default model's tokenizer, code about 3.
_TEXT_BYTES_A_TOKEN = 5
# Distinct n-grams of each order, and what pruning leaves of them, as shares of the corpus's tokens. For 44 million
# tokens of mixed English they were 0.11, 0.41, 0.67, 0.80, 0.87 and at most 0.11; small corpora repeat themselves less.
_DISTINCT_SHARE = {2: 0.3, 3: 0.6, 4: 0.8, 5: 0.9, 6: 1.0}
_PRUNED_SHARE = 0.2
# lmplz has some records twice while it moves them from one file to another.
_RECORDS_MARGIN = 1.25


def memory_bytes(memory: str) -> int:
    """The bytes that a size of `lmplz -S` stands for: "4G", "80%" of the machine's memory.

    Raises:
        ValueError: it is no such size, or more than the machine has.
    """
    match = _MEMORY.fullmatch(memory)
    if match is None:
        raise ValueError(f"The memory must be a number with b, K, M, G, T or % behind it, got {memory!r}.")
    number, unit = float(match[1]), match[2]
    has = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    wanted = int(number / 100 * has) if unit == "%" else int(number * _UNITS[unit])
    if not 0 < wanted <= has:
        raise ValueError(f"The memory {memory!r} is not between 0 and the {_gigabytes(has)} that this machine has.")
    return wanted


def needed_disk_bytes(num_tokens: int, order: int, prune: Sequence[int]) -> int:
    """About how much disk KenLM's programs and the ARPA file take at most, beside the corpus.

    Args:
        num_tokens: of the corpus.
        order: the longest n-gram, in tokens.
        prune: as in `BuildOptions`.
    """
    records, arpa = 0.0, 0.0
    for n in range(2, order + 1):
        is_pruned = prune[min(n, len(prune)) - 1] > 0
        # lmplz sorts n word ids of 4 bytes and 8 bytes of counts; build_binary sorts what is left in the same way.
        records += (4 * n + 8) * _DISTINCT_SHARE[n]
        # A line of an ARPA file: n ids of up to 5 digits, a probability and a back-off weight.
        arpa += (6 * n + 15) * (_PRUNED_SHARE if is_pruned else _DISTINCT_SHARE[n])
    return int(num_tokens * (_RECORDS_MARGIN * records + arpa))


def check_disk_space(folder: Path, num_tokens: int, order: int, prune: Sequence[int]) -> None:
    """Check that a build has room.

    Args:
        folder: of the work, or where it will be.
        num_tokens: of the corpus.
        order: the longest n-gram, in tokens.
        prune: as in `BuildOptions`.

    Raises:
        NgramBuildError: it has not.
    """
    while not folder.exists():
        folder = folder.parent
    needed, free = needed_disk_bytes(num_tokens, order, prune), shutil.disk_usage(folder).free
    if needed > free:
        raise NgramBuildError(
            f"An n-gram model of order {order} from {num_tokens:,} tokens needs about {_gigabytes(needed)} of disk for "
            f"a while, but {folder} has {_gigabytes(free)} left. Make room, prune more (--prune), lower the --order, "
            "build from a smaller corpus, or set SUPERDRAFT_HOME to a folder on another disk."
        )


def approximate_tokens(text_bytes: int) -> int:
    """How many tokens an unpacked corpus of this size has at least."""
    return text_bytes // _TEXT_BYTES_A_TOKEN


def _gigabytes(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB"
