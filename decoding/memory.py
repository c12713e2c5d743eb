"""Memory of this machine: how much is free, how much this process has, and the refusal of what would not fit."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from superdraft.decoding.errors import NotEnoughMemoryError

MEMORY_TABLE = Path("/proc/meminfo")
CONTROL_GROUPS = Path("/sys/fs/cgroup")
OWN_GROUP = Path("/proc/self/cgroup")
_OWN_TABLE = Path("/proc/self/status")
_NAMES_OF_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")


def free_bytes() -> int | None:
    """Memory that this process can still get: the machine's, or its control group's if that has less; else None.

    Pages of files count as free, because the system drops them for anything that needs their memory. Swap does not.
    """
    found = [_machine_bytes(), *_group_bytes()]
    return min((number for number in found if number is not None), default=None)


def resident_bytes() -> int | None:
    """Memory that this process uses, without the pages of files; None where the system does not say."""
    return _entry(_OWN_TABLE, "RssAnon:")


def require_memory(needed: int, what: str, remedies: str, *, free: int | None = None) -> None:
    """Refuse to begin what the system would later kill this process for.

    Args:
        needed: in bytes, at the same time.
        what: what needs it, as the beginning of a sentence.
        remedies: what to do instead, as whole sentences.
        free: what is free, in bytes; None: ask the system.

    Raises:
        NotEnoughMemoryError: less is free.
    """
    free = free_bytes() if free is None else free
    if free is not None and needed > free:
        raise NotEnoughMemoryError(
            f"{what} needs about {shown(needed)} of memory, and {shown(free)} are free. {remedies} If the estimate is "
            "wrong for this machine: --no-memory-check."
        )


def shown(num_bytes: float) -> str:
    """A size for people: "850 MB", "2.1 GB"."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"


def _machine_bytes() -> int | None:
    found = _entry(MEMORY_TABLE, "MemAvailable:")
    if found is not None:
        return found
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _group_bytes() -> Iterator[int]:
    """What the control groups leave, of versions 1 and 2: this process' own, and those that contain it."""
    try:
        lines = OWN_GROUP.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, own = line.split(":", 2)
        if not controllers:
            root, prefix, names = CONTROL_GROUPS, "", ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            root, prefix, names = CONTROL_GROUPS / "memory", "total_", _NAMES_OF_VERSION_1
        else:
            continue
        folder = root / own.strip("/")  # inside a container it may be missing, and the root is the container's group
        for group in (folder, *folder.parents):
            with contextlib.suppress(OSError, ValueError):  # "max" is no number: no limit
                limit, used = (int((group / name).read_text()) for name in names)
                rows = (row.split() for row in (group / "memory.stat").read_text().splitlines())
                files = (f"{prefix}inactive_file", f"{prefix}active_file")
                yield max(0, limit - used + sum(int(value) for name, value in rows if name in files))
            if group == root:
                break


def _entry(table: Path, name: str) -> int | None:
    """An entry of a table of the system, in bytes."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in table.read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    return None
