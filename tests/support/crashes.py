"""Processes that are killed, and machines that lose power, at every step of what they write.

A step is a call that changes names or forces something to the disk. Before a power cut, names are as the process left
them, which is what journalling file systems keep, and files whose content was not forced to the disk hold zeros.
"""

import os
import signal
import warnings
from collections.abc import Callable
from pathlib import Path

_STEPS = ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir")


def _crash_at(number: int, has_power: bool, root: Path) -> Callable[[], None]:
    """Let this process crash before the step with this number; returns what counts a step by hand."""
    # What was there before is on the disk.
    forced = {facts.st_ino: (facts.st_size, facts.st_mtime_ns) for facts in map(Path.stat, root.rglob("*"))}
    count = 0

    def step() -> None:
        nonlocal count
        count += 1
        if count == number:
            if not has_power:
                for path in root.rglob("*"):
                    facts = path.stat()
                    if path.is_file() and forced.get(facts.st_ino) != (facts.st_size, facts.st_mtime_ns):
                        path.write_bytes(bytes(facts.st_size))
            os.kill(os.getpid(), signal.SIGKILL)

    def wrapped(name: str) -> None:
        original = getattr(os, name)

        def call(*args, **options):
            step()
            result = original(*args, **options)
            if name == "fsync":
                facts = os.fstat(args[0])
                forced[facts.st_ino] = facts.st_size, facts.st_mtime_ns
            return result

        setattr(os, name, call)

    for name in _STEPS:
        wrapped(name)
    return step


def crash_at_every_step(root: Path, work: Callable[[], object], check: Callable[[], object], *, has_power: bool) -> int:
    """Run `work` in processes that crash at step 1, 2, 3, ..., and `check` what is left after each; until one ends.

    Args:
        root: the folder that is written to. It holds at the beginning of each run what the last check left.
        work: what writes.
        check: raises if the next start would go wrong.
        has_power: the process alone is killed; False: the machine loses power.

    Returns:
        How many steps `work` has.
    """
    number = 1
    while True:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a fork beside other threads: the child starts no other program
            child = os.fork()
        if child == 0:
            code = 1
            try:
                _crash_at(number, has_power, root)
                work()
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        check()
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0, "the work itself failed"
            return number - 1
        number += 1
