"""Runner for KenLM's programs."""

import os
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from superdraft.ngram_models.errors import BuildToolMissingError, NgramBuildError

_LOG_CHARACTERS = 600
# PR_SET_PDEATHSIG is 1, SIGKILL is 9. The setting survives exec. subprocess's preexec_fn is not safe with threads.
# If the parent was killed before prctl, no signal comes; getppid then returns another process.
_KILLED_WITH_PARENT = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); "
    "os.getppid() == int(sys.argv[1]) or os._exit(1); os.execv(sys.argv[2], sys.argv[2:])"
)


def run_program(command: list[str], *, stdin: Iterable[bytes] = (), stdout: Path, log: Path) -> None:
    """Run a program and wait until it ends.

    Args:
        command: path of the program, and its arguments.
        stdin: blocks of its standard input, passed on as they are produced.
        stdout: file for its standard output.
        log: file for its standard error. If the program fails, the end of this file is part of the error message.

    Raises:
        BuildToolMissingError: the program cannot be started.
        NgramBuildError: the program failed.
    """
    if not os.access(command[0], os.X_OK):
        raise BuildToolMissingError(f"{command[0]} cannot be started: it does not exist or is not executable.")
    with stdout.open("wb") as output, log.open("wb") as errors:
        try:
            process = subprocess.Popen(_dying_with_us(command), stdin=subprocess.PIPE, stdout=output, stderr=errors)
        except OSError as error:
            raise BuildToolMissingError(f"{command[0]} cannot be started: {error.strerror}.") from None
        # A broken pipe means that the program ended early. Its exit code and its log say why.
        with suppress(BrokenPipeError), process:
            try:
                _feed(process, stdin)
            except BrokenPipeError:
                raise
            except BaseException:
                process.kill()
                raise
    if process.returncode != 0:
        tail = " ".join(log.read_text(encoding="utf-8", errors="replace").split())[-_LOG_CHARACTERS:]
        raise NgramBuildError(f"{Path(command[0]).name} failed with exit code {process.returncode}: {tail}")


def _feed(process: "subprocess.Popen[bytes]", stdin: Iterable[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.writelines(stdin)
    process.stdin.close()
    process.wait()


def _dying_with_us(command: list[str]) -> list[str]:
    """Wrap a command so that the kernel kills it when this process is killed (on Linux).

    Otherwise lmplz would take the end of its input for the end of the corpus and keep working on a part of it.
    """
    if sys.platform != "linux":
        return command
    return [sys.executable, "-I", "-S", "-c", _KILLED_WITH_PARENT, str(os.getpid()), *command]
