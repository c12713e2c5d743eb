"""The compiled kernels: built with the system's C++ compiler when they are first needed, and kept.

There is one library per instruction set (`VARIANTS`), not per machine, so an image can contain them all: `build` them
into `BUNDLED`. Elsewhere they go into the user's cache. Parallel regions run on torch's OpenMP threads, because the
libraries take OpenMP's functions from the process.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from superdraft.decoding.home import superdraft_home
from superdraft.decoding.progress import stage

_SOURCES = Path(__file__).parent
_MAIN = _SOURCES / "decoder.cpp"
BUNDLED = _SOURCES / "built"
"""Folder of libraries that come with the package."""

_X86 = ("-mavx2", "-mfma", "-mf16c")
VARIANTS: Mapping[str, tuple[str, ...]] = {
    "avx512-vnni": (*_X86, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni"),
    "avx2": _X86,
}
"""The compiler's options for each instruction set, the best first."""

# Without -ffast-math: a row's sums must be taken in the same order in every batch.
_OPTIONS = ("-O3", "-std=c++17", "-fPIC", "-shared", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math")
_COMPILERS = ("c++", "g++", "clang++")
_BUILD_SECONDS = 300


class KernelsUnavailableError(Exception):
    """There are no kernels for this machine; the message says why."""


def is_x86_64() -> bool:
    """Whether this machine is of the only architecture that there are kernels for."""
    return platform.machine() in ("x86_64", "AMD64")


def supported_variants() -> list[str]:
    """The variants that this processor can run, the best first."""
    if not is_x86_64() or not torch.cpu._is_avx2_supported():
        return []
    has_vnni = torch.cpu._is_avx512_supported() and torch.cpu._is_vnni_supported()
    return ["avx512-vnni", "avx2"] if has_vnni else ["avx2"]


@functools.cache
def load_kernels(variant: str | None = None) -> ctypes.CDLL:
    """Load a variant, and build it if there is none yet.

    Args:
        variant: a name in `VARIANTS`; None: the best that this processor can run.

    Raises:
        KernelsUnavailableError: the processor lacks the instructions, there is no compiler, or the build failed.
    """
    if variant is None:
        variants = supported_variants()
        if not variants:
            raise KernelsUnavailableError(f"the kernels need AVX2, which this {platform.machine()} processor lacks")
        variant = variants[0]
    name = library_name(variant)
    for folder in (BUNDLED, _cache_folder()):
        if (folder / name).is_file():
            return ctypes.CDLL(str(folder / name))
    return ctypes.CDLL(str(build(variant, _cache_folder())))


@functools.cache
def why_unavailable() -> str | None:
    """Why there are no kernels for this machine; None: there are. Builds them if there is no library yet."""
    try:
        load_kernels()
    except KernelsUnavailableError as error:
        return str(error)
    return None


def has_kernels() -> bool:
    """Whether there are kernels for this machine; builds them if there is no library yet."""
    return why_unavailable() is None


def library_name(variant: str) -> str:
    """The file name of a variant's library, which changes with its sources and the compiler's options."""
    digest = hashlib.sha256(repr((_OPTIONS, VARIANTS[variant])).encode())
    for source in sorted([*_SOURCES.glob("*.h"), _MAIN]):
        digest.update(source.read_bytes())
    return f"superdraft-{variant}-{digest.hexdigest()[:16]}.so"


def build(variant: str, folder: Path) -> Path:
    """Compile a variant into a folder; takes about ten seconds.

    Args:
        variant: a name in `VARIANTS`.
        folder: it is created if it does not exist.

    Returns:
        The library.

    Raises:
        KernelsUnavailableError: there is no compiler, it failed, or the folder cannot be written.
    """
    compiler = next(filter(None, map(shutil.which, [*filter(None, [os.environ.get("CXX")]), *_COMPILERS])), None)
    if compiler is None:
        raise KernelsUnavailableError(f"no C++ compiler was found (looked for {', '.join(_COMPILERS)})")
    library = folder / library_name(variant)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Built beside its place and renamed, so that no process loads half a library.
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            objects, built = Path(scratch, "decoder.o"), Path(scratch, library.name)
            options = [option for option in _OPTIONS if option != "-shared"]
            with stage("Compiling the kernels for this processor, once"):
                _run([compiler, *options, *VARIANTS[variant], "-fopenmp", "-w", "-c", "-o", str(objects), str(_MAIN)])
            # Linking with -fopenmp would load a second OpenMP, with threads of its own.
            openmp = [] if hasattr(ctypes.CDLL(None), "GOMP_parallel") else ["-fopenmp"]
            _run([compiler, "-shared", *openmp, "-o", str(built), str(objects)])
            built.replace(library)
    except OSError as error:
        raise KernelsUnavailableError(f"the kernels could not be written to {folder}: {error}") from error
    return library


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_BUILD_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise KernelsUnavailableError(f"{command[0]} took longer than {_BUILD_SECONDS} s") from error
    if done.returncode:
        raise KernelsUnavailableError(f"{command[0]} failed: {' '.join(done.stderr.split())[:500]}")


def _cache_folder() -> Path:
    return superdraft_home() / "kernels"
