"""The kernels for ARM, run by an emulator: they compute what those for this machine compute, to the last bit.

Needs a cross compiler and QEMU: `apt install g++-aarch64-linux-gnu qemu-user`.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

from superdraft.decoding.model.native import library

DRIVER = Path(__file__).parents[4] / "support" / "kernel_driver.cpp"


def printed(tmp_path: Path, variant: str, compiler: str, *emulator: str) -> list[str]:
    program = tmp_path / variant
    options = [*library.compile_options(variant), f"-I{library._SOURCES}", "-static"]
    subprocess.run([compiler, *options, "-o", program, DRIVER], check=True)
    done = subprocess.run([*emulator, program], check=True, capture_output=True, text=True)
    return done.stdout.splitlines()


def test_other_processors_compute_the_same(tmp_path):
    cross, emulator = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
    if cross is None or emulator is None or "avx2" not in library.supported_variants():
        pytest.skip("there is no cross compiler, no QEMU, or no AVX2")
    own = printed(tmp_path, "avx2", "g++")
    assert len(own) == 15048
    assert {line.split()[0] for line in own} == {"number", "product", "logit"}
    assert not any("nan" in line for line in own)
    assert printed(tmp_path, "neon-dotprod", cross, emulator, "-cpu", "max") == own


def test_both_variants_for_x86_compute_the_same(tmp_path):
    if library.supported_variants() != ["avx512-vnni", "avx2"] or shutil.which("g++") is None:
        pytest.skip("this processor has one variant, or there is no g++")
    assert printed(tmp_path, "avx512-vnni", "g++") == printed(tmp_path, "avx2", "g++")
