"""The compiled kernels: built with the system's C++ compiler when they are first needed, and kept.

There is one library per instruction set (`VARIANTS`), not per machine, so an image can contain them all: `build` them
into `BUNDLED`. Elsewhere they go into the user's cache. A library runs in this process, so it is loaded only from a
folder that no other user can write to; one that cannot be loaded is built again. Parallel regions run on torch's OpenMP
threads, because the libraries take OpenMP's functions from the process.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from superdraft.decoding.durable import new_file
from superdraft.decoding.home import superdraft_home
from superdraft.decoding.model.native.structs import expected_layout
from superdraft.decoding.progress import stage

_SOURCES = Path(__file__).parent
_MAIN = _SOURCES / "decoder.cpp"
BUNDLED = _SOURCES / "built"
"""Folder of libraries that come with the package."""

_X86 = ("-mavx2", "-mfma", "-mf16c")
VARIANTS: Mapping[str, tuple[str, ...]] = {
    "avx512-vnni": (*_X86, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni"),
    "avx2": _X86,
    "neon-dotprod": ("-march=armv8.2-a+dotprod",),
}
"""The compiler's options for each instruction set, the best of an architecture first."""

# Without -ffast-math: a row's sums must be taken in the same order in every batch.
_OPTIONS = ("-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math", "-fopenmp")
# GCC 12 finds fault with its own AVX-512 header, and notes that vectors are passed otherwise than before GCC 4.6.
WARNINGS = ("-Wall", "-Wextra", "-Wno-psabi", "-Wno-maybe-uninitialized")
_COMPILERS = ("c++", "g++", "clang++")
_BUILD_SECONDS = 300
_DAMAGED = (OSError, AttributeError)


class KernelsUnavailableError(Exception):
    """There are no kernels for this machine; the message says why."""


def machine_variants() -> list[str]:
    """The variants that there are for this machine's architecture."""
    if platform.machine() in ("x86_64", "AMD64"):
        return ["avx512-vnni", "avx2"]
    return ["neon-dotprod"] if platform.machine() in ("aarch64", "arm64") else []


def supported_variants() -> list[str]:
    """The variants that this processor can run, the best first."""
    return [variant for variant in machine_variants() if _CHECKS[variant]()]


def _has_vnni() -> bool:
    return torch.cpu._is_avx2_supported() and torch.cpu._is_avx512_supported() and torch.cpu._is_vnni_supported()


def _has_dot_products() -> bool:
    if platform.system() == "Darwin":
        return True  # all of Apple's
    with contextlib.suppress(OSError):
        return "asimddp" in Path("/proc/cpuinfo").read_text().split()
    return False


_CHECKS: Mapping[str, Callable[[], bool]] = {
    "avx512-vnni": _has_vnni,
    "avx2": lambda: torch.cpu._is_avx2_supported(),
    "neon-dotprod": _has_dot_products,
}


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
            needed = "AVX2" if "avx2" in machine_variants() else "AVX2, or NEON with dot products on ARM"
            raise KernelsUnavailableError(f"the kernels need {needed}, which this {platform.machine()} processor lacks")
        variant = variants[0]
    for folder in (BUNDLED, _cache_folder()):
        library = folder / library_name(variant)
        if library.is_file() and _is_safe(library) and _is_safe(folder):
            with contextlib.suppress(*_DAMAGED):
                return _opened(library)
    built = build(variant, _cache_folder())
    try:
        return _opened(built)
    except _DAMAGED as error:
        raise KernelsUnavailableError(f"the kernels were built, but cannot be loaded: {error}") from error


def _opened(library: Path) -> ctypes.CDLL:
    """Load a library and compare what it was compiled with.

    Raises:
        OSError, AttributeError: it is damaged, or something else.
        KernelsUnavailableError: it passes other structs than Python does.
    """
    kernels, expected = ctypes.CDLL(str(library)), expected_layout()
    found = (ctypes.c_int32 * len(expected))()
    kernels.superdraft_layout(found)
    if list(found) != expected:
        raise KernelsUnavailableError(f"{library} was compiled for other structs: {list(found)}, expected {expected}")
    return kernels


def _is_safe(path: Path) -> bool:
    """Whether only this user and root can write to a file or folder. On Windows: yes."""
    if os.name == "nt":
        return True
    facts = path.stat()
    return facts.st_uid in (os.getuid(), 0) and not facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


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
        folder: it is created if it does not exist. What is in its place there is replaced.

    Returns:
        The library.

    Raises:
        KernelsUnavailableError: there is no compiler, it failed, or the folder cannot be written or is another user's.
    """
    compiler = next(filter(None, map(shutil.which, [*filter(None, [os.environ.get("CXX")]), *_COMPILERS])), None)
    if compiler is None:
        raise KernelsUnavailableError(f"no C++ compiler was found (looked for {', '.join(_COMPILERS)})")
    library = folder / library_name(variant)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o755)
        if not _is_safe(folder):  # what others have put there is not loaded: it has another owner
            folder.chmod(0o755)
        with tempfile.TemporaryDirectory() as scratch, new_file(library) as partial:
            objects = Path(scratch, "decoder.o")
            with stage("Compiling the kernels for this processor, once"):
                _run([compiler, *compile_options(variant), "-c", "-o", str(objects), str(_MAIN)])
            # Linking with -fopenmp would load a second OpenMP, with threads of its own.
            openmp = [] if hasattr(ctypes.CDLL(None), "GOMP_parallel") else ["-fopenmp"]
            undefined = ["-undefined", "dynamic_lookup"] if platform.system() == "Darwin" else []
            _run([compiler, "-shared", *openmp, *undefined, "-o", str(partial), str(objects)])
            partial.chmod(0o755)
    except OSError as error:
        raise KernelsUnavailableError(f"the kernels could not be written to {folder}: {error}") from error
    return library


def compile_options(variant: str) -> list[str]:
    """The compiler's options for a variant, with its warnings on."""
    return [*_OPTIONS, *VARIANTS[variant], *WARNINGS]


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_BUILD_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise KernelsUnavailableError(f"{command[0]} took longer than {_BUILD_SECONDS} s") from error
    if done.returncode:
        raise KernelsUnavailableError(f"{command[0]} failed: {' '.join(done.stderr.split())[:500]}")


def _cache_folder() -> Path:
    return superdraft_home() / "kernels"
