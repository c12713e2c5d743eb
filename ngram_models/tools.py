"""KenLM's programs for building models: finding them, and building them from KenLM's source distribution.

``python -m superdraft.ngram_models.tools`` builds `lmplz` and `build_binary` into Superdraft's home folder. The Python
package of KenLM holds the code that reads models only.
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
    "Run `make lmplz` or `python -m superdraft.ngram_models.tools` to build them, put them on the PATH, "
    "or name their folder with --tools."
)


@dataclass(frozen=True, slots=True)
class Tools:
    """KenLM's programs, found. `version` is for people to read: the programs themselves do not tell theirs."""

    lmplz: Path
    build_binary: Path
    version: str


def find_tools(folder: Path | None = None, home: Path | None = None) -> Tools:
    """Find `lmplz` and `build_binary`: in `folder` alone if given, else on the PATH, else in Superdraft's home folder.

    Raises:
        BuildToolMissingError: one of them is not there; the message tells how to get them.
    """
    places = [folder] if folder is not None else [*map(Path, os.get_exec_path()), tools_folder(home)]
    for place in places:
        lmplz, build_binary = (shutil.which(program, path=str(place)) for program in PROGRAMS)
        if lmplz and build_binary:
            return Tools(Path(lmplz), Path(build_binary), _version_of(place))
    where = f"in {folder}" if folder is not None else f"on the PATH or in {tools_folder(home)}"
    raise BuildToolMissingError(f"KenLM's lmplz and build_binary are not found {where}. {_HOW_TO_GET_THEM}")


def _version_of(folder: Path) -> str:
    try:
        return f"KenLM {(folder / _VERSION_FILE).read_text(encoding='utf-8').strip()}"
    except OSError:
        return "KenLM (version unknown)"


def install_tools(folder: Path, *, sdist: Path | None = None) -> Tools:
    """Build KenLM's programs and put them in `folder`.

    Args:
        folder: made if need be.
        sdist: KenLM's source distribution; None: pip fetches the pinned version and checks its SHA-256.

    Raises:
        BuildToolMissingError: cmake, a compiler or Boost is not installed, or the source cannot be fetched.
    """
    if shutil.which("cmake") is None:
        raise BuildToolMissingError(f"cmake is not installed. On Debian or Ubuntu: apt-get install {_DEBIAN_PACKAGES}")
    with tempfile.TemporaryDirectory(prefix="superdraft-kenlm-") as temporary:
        work = Path(temporary)
        with tarfile.open(sdist if sdist is not None else _download_sdist(work)) as archive:
            # Python has this filter since 3.11.4, and Debian 12 has 3.11.2. What pip fetched was checked in any case.
            safely: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            archive.extractall(work / "source", **safely)  # noqa: S202
        (source,) = (work / "source").iterdir()
        _compile(source, work / "build")
        folder.mkdir(parents=True, exist_ok=True)
        for program in PROGRAMS:
            # Copied beside its place and renamed: a program that runs just now is not written over.
            shutil.copy2(work / "build" / "bin" / program, folder / f".{program}.partial")
            (folder / f".{program}.partial").replace(folder / program)
    (folder / _VERSION_FILE).write_text((KENLM_VERSION if sdist is None else source.name) + "\n", encoding="utf-8")
    return find_tools(folder)


def _download_sdist(work: Path) -> Path:
    requirements = work / "requirements.txt"
    requirements.write_text(f"kenlm=={KENLM_VERSION} --hash=sha256:{KENLM_SDIST_SHA256}\n", encoding="utf-8")
    # Only kenlm comes as source: with ":all:", pip would compile the packages that kenlm's own build needs, cmake
    # among them.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-binary", "kenlm", "--require-hashes", "--requirement", str(requirements), "--dest", str(work)]
    _run(command, f"The source of kenlm {KENLM_VERSION} cannot be fetched with pip")
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
    """Build the programs; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m superdraft.ngram_models.tools", description="Build KenLM's lmplz and build_binary."
    )
    parser.add_argument(
        "--into", type=Path, default=tools_folder(), help="folder of the programs (default: %(default)s)"
    )
    parser.add_argument(
        "--sdist", type=Path, help="KenLM's source distribution, if it is at hand (default: pip fetches it)"
    )
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
