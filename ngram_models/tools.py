"""KenLM's programs for building models: finding and installing `lmplz` and `build_binary`.

``python -m superdraft.ngram_models.tools`` compiles them from source and installs them in Superdraft's home folder.
KenLM's Python package does not include them; it can only read models.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from superdraft.ngram_models.errors import BuildToolMissingError
from superdraft.ngram_models.home import tools_folder

KENLM_VERSION: Final = "0.3.0"
KENLM_SDIST_SHA256: Final = "c4628bb9fb63c8a6f9240035b8b037385cfc404cb72e933cf48878291edac1e8"
PROGRAMS: Final = ("lmplz", "build_binary")
_VERSION_FILE = "kenlm.version"
_DEBIAN_PACKAGES = (
    "cmake g++ libboost-program-options-dev libboost-system-dev libboost-thread-dev libboost-test-dev zlib1g-dev"
)
_HOW_TO_GET_THEM = (
    "Run `make lmplz` or `python -m superdraft.ngram_models.tools` to compile them, put them on the PATH, "
    "or give their folder with --tools."
)


@dataclass(frozen=True, slots=True)
class Tools:
    """Paths of KenLM's programs. `version` is text for the manifest; the programs cannot report their own version."""

    lmplz: Path
    build_binary: Path
    version: str


def find_tools(folder: Path | None = None, home: Path | None = None) -> Tools:
    """Find `lmplz` and `build_binary`: only in `folder` if given, else on the PATH or in Superdraft's home folder.

    Raises:
        BuildToolMissingError: one of them is missing; the message says how to install them.
    """
    places = [folder] if folder is not None else [*map(Path, os.get_exec_path()), tools_folder(home)]
    for place in places:
        lmplz, build_binary = (shutil.which(program, path=str(place)) for program in PROGRAMS)
        if lmplz and build_binary:
            return Tools(Path(lmplz), Path(build_binary), _version_of(place))
    where = f"in {folder}" if folder is not None else f"on the PATH or in {tools_folder(home)}"
    raise BuildToolMissingError(f"KenLM's lmplz and build_binary were not found {where}. {_HOW_TO_GET_THEM}")


def _version_of(folder: Path) -> str:
    try:
        return f"KenLM {(folder / _VERSION_FILE).read_text(encoding='utf-8').strip()}"
    except OSError:
        return "KenLM (version unknown)"


def install_tools(folder: Path, *, sdist: Path | None = None) -> Tools:
    """Compile KenLM's programs and put them in `folder`.

    Args:
        folder: created if it does not exist.
        sdist: KenLM's source distribution; None: pip downloads the pinned version and checks its SHA-256.

    Raises:
        BuildToolMissingError: cmake, a compiler or Boost is not installed, or the source cannot be downloaded.
    """
    if shutil.which("cmake") is None:
        raise BuildToolMissingError(f"cmake is not installed. On Debian or Ubuntu: apt-get install {_DEBIAN_PACKAGES}")
    with tempfile.TemporaryDirectory(prefix="superdraft-kenlm-") as temporary:
        work = Path(temporary)
        with tarfile.open(sdist if sdist is not None else _download_sdist(work)) as archive:
            # Python 3.11.2 (Debian 12) does not have this filter yet. pip has checked its own download in any case.
            safely: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            archive.extractall(work / "source", **safely)  # noqa: S202
        (source,) = (work / "source").iterdir()
        _compile(source, work / "build")
        folder.mkdir(parents=True, exist_ok=True)
        for program in PROGRAMS:
            # Copy, then rename: a program that is running cannot be overwritten.
            shutil.copy2(work / "build" / "bin" / program, folder / f".{program}.partial")
            (folder / f".{program}.partial").replace(folder / program)
    (folder / _VERSION_FILE).write_text((KENLM_VERSION if sdist is None else source.name) + "\n", encoding="utf-8")
    return find_tools(folder)


def _download_sdist(work: Path) -> Path:
    requirements = work / "requirements.txt"
    requirements.write_text(f"kenlm=={KENLM_VERSION} --hash=sha256:{KENLM_SDIST_SHA256}\n", encoding="utf-8")
    # Not ":all:", which would make pip compile the packages that kenlm's own build needs, such as cmake.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-binary", "kenlm", "--require-hashes", "--requirement", str(requirements), "--dest", str(work)]
    _run(command, f"pip cannot download the source of kenlm {KENLM_VERSION}")
    return work / f"kenlm-{KENLM_VERSION}.tar.gz"


def _compile(source: Path, build: Path) -> None:
    configure = ["cmake", "-S", str(source), "-B", str(build), "-DCMAKE_BUILD_TYPE=Release"]
    _run(configure, "KenLM cannot be configured", remedy=f"On Debian or Ubuntu: apt-get install {_DEBIAN_PACKAGES}")
    jobs = str(os.cpu_count() or 1)
    _run(
        ["cmake", "--build", str(build), "--parallel", jobs, "--target", *PROGRAMS],
        "KenLM cannot be compiled",
        remedy=f"On Debian or Ubuntu: apt-get install {_DEBIAN_PACKAGES}",
    )


def _run(command: Sequence[str], failure: str, remedy: str = "") -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        last_lines = "\n".join(done.stdout.strip().splitlines()[-15:])
        raise BuildToolMissingError(f"{failure}. {remedy}\n{last_lines}".strip())


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile and install the programs; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m superdraft.ngram_models.tools", description="Build KenLM's lmplz and build_binary."
    )
    parser.add_argument(
        "--into", type=Path, default=tools_folder(), help="folder for the programs (default: %(default)s)"
    )
    parser.add_argument("--sdist", type=Path, help="KenLM's source distribution (default: downloaded with pip)")
    options = parser.parse_args(arguments)
    try:
        tools = install_tools(options.into, sdist=options.sdist)
    except (BuildToolMissingError, OSError, tarfile.TarError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(f"{tools.lmplz}\n{tools.build_binary}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
