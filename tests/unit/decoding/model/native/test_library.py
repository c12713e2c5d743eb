"""Building and finding the compiled kernels."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from support.crashes import crash_at_every_step

from superdraft.decoding.model.native import __main__ as building
from superdraft.decoding.model.native import library
from superdraft.decoding.model.native.library import KernelsUnavailableError, build, library_name, load_kernels


@pytest.fixture(autouse=True)
def _fresh(monkeypatch, tmp_path):
    """Nothing is built, and nothing that is loaded is remembered."""
    monkeypatch.setenv("SUPERDRAFT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(library, "BUNDLED", tmp_path / "bundled")
    monkeypatch.setattr(library, "load_kernels", load_kernels.__wrapped__)
    monkeypatch.setattr(library, "why_unavailable", library.why_unavailable.__wrapped__)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A library for this processor."""
    variant = next(iter(library.supported_variants()), None)
    if variant is None:
        pytest.skip("this processor has no kernels")
    return build(variant, tmp_path_factory.mktemp("whole"))


def compiler(tmp_path, script: str) -> str:
    path = tmp_path / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_a_library_is_built_once_and_then_found(monkeypatch, tmp_path):
    variant = next(iter(library.supported_variants()), None)
    if variant is None:
        pytest.skip("this processor has no kernels")
    library.load_kernels()
    built = list((tmp_path / "home" / "kernels").iterdir())
    assert [path.name for path in built] == [library_name(variant)]
    monkeypatch.setattr(library, "build", None)  # a second build would fail
    assert library.load_kernels().superdraft_forward is not None


def test_a_library_that_comes_with_the_package_is_preferred(monkeypatch, tmp_path, whole):
    (tmp_path / "bundled").mkdir(mode=0o755)
    shutil.copy(whole, tmp_path / "bundled")
    monkeypatch.setattr(library, "build", None)
    assert library.load_kernels() is not None
    assert not (tmp_path / "home").exists()


def test_changed_sources_get_another_name(monkeypatch, tmp_path):
    before = library_name("avx2")
    assert before != library_name("avx512-vnni")
    for source in library._SOURCES.glob("*.[hc]*"):
        if source.is_file():
            (tmp_path / source.name).write_bytes(source.read_bytes() + b"\n")
    monkeypatch.setattr(library, "_SOURCES", tmp_path)
    monkeypatch.setattr(library, "_MAIN", tmp_path / "decoder.cpp")
    assert library_name("avx2") != before


@pytest.mark.parametrize(
    ("script", "message"),
    [("echo 'error: no such option' >&2; exit 1", "failed: error: no such option"), ("sleep 5", "took longer than")],
)
def test_a_build_that_fails_says_why(monkeypatch, tmp_path, script, message):
    monkeypatch.setenv("CXX", compiler(tmp_path, script))
    monkeypatch.setattr(library, "_BUILD_SECONDS", 0.2)
    with pytest.raises(KernelsUnavailableError, match=message):
        build("avx2", tmp_path)
    monkeypatch.setattr(library, "supported_variants", lambda: ["avx2"])
    assert not library.has_kernels()
    assert message in library.why_unavailable()


def test_without_a_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(KernelsUnavailableError, match=r"no C\+\+ compiler was found \(looked for c\+\+, g\+\+, clang"):
        build("avx2", tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(KernelsUnavailableError, match="could not be written to"):
        build("avx2", tmp_path / "file")


@pytest.mark.parametrize(
    ("machine", "needed"), [("riscv64", "AVX2, or NEON with dot products on ARM"), ("x86_64", "AVX2")]
)
def test_a_processor_without_the_instructions(monkeypatch, machine, needed):
    monkeypatch.setattr(library.platform, "machine", lambda: machine)
    monkeypatch.setattr(library.torch.cpu, "_is_avx2_supported", lambda: False)
    assert library.supported_variants() == []
    with pytest.raises(KernelsUnavailableError, match=f"need {needed}, which this {machine} processor lacks"):
        library.load_kernels()


@pytest.mark.parametrize(
    ("system", "features", "variants"),
    [("Darwin", "", ["neon-dotprod"]), ("Linux", "fp asimd asimddp", ["neon-dotprod"]), ("Linux", "fp asimd", [])],
)
def test_arm_processors_need_dot_products(monkeypatch, system, features, variants):
    monkeypatch.setattr(library.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(library.platform, "system", lambda: system)
    monkeypatch.setattr(library.Path, "read_text", lambda self: f"Features\t: {features}\n")
    assert library.supported_variants() == variants


def test_an_image_for_another_processor_is_built_without_kernels(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(building, "BUNDLED", tmp_path / "bundled")
    monkeypatch.setenv("CXX", compiler(tmp_path, "echo 'unrecognized option -mavx2' >&2; exit 1"))
    monkeypatch.setattr(library.platform, "machine", lambda: "riscv64")
    building.main()
    assert "on riscv64, torch's own are used" in capsys.readouterr().err
    assert not (tmp_path / "bundled").exists()
    monkeypatch.setattr(library.platform, "machine", lambda: "x86_64")
    with pytest.raises(SystemExit, match="unrecognized option"):
        building.main()


@pytest.fixture
def cached(whole, tmp_path):
    """The same library in the cache."""
    folder = tmp_path / "home" / "kernels"
    folder.mkdir(parents=True, mode=0o755)
    return shutil.copy(whole, folder)


@pytest.fixture
def builds(monkeypatch, whole):
    """How often a library was built: by a copy."""
    done = []

    def fake(variant, folder):
        done.append(folder)
        return Path(shutil.copy(whole, folder / "built")).replace(folder / library_name(variant))  # never in place

    monkeypatch.setattr(library, "build", fake)
    return done


@pytest.mark.parametrize("content", [b"", b"\0" * 4096, b"\x7fELF no library"])
def test_a_library_that_cannot_be_loaded_is_built_again(cached, builds, content):
    Path(cached).unlink()  # what this process has loaded must stay as it is
    Path(cached).write_bytes(content)
    assert library.load_kernels().superdraft_forward is not None
    assert len(builds) == 1
    assert library.load_kernels().superdraft_forward is not None
    assert len(builds) == 1


def test_another_library_in_its_place_stops_no_start(cached, builds):
    Path(cached).unlink()
    shutil.copy(_libm(), cached)  # the system does not load another file of the same name into the same process
    assert "undefined symbol" in library.why_unavailable()
    assert len(builds) == 1


def _libm() -> str:
    return next(line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libm.so" in line)


def test_a_library_that_was_built_and_cannot_be_loaded_is_no_end_of_the_start(monkeypatch, tmp_path, whole):
    def broken(variant, folder):
        (tmp_path / "broken.so").write_bytes(b"\0" * 100)
        return tmp_path / "broken.so"

    monkeypatch.setattr(library, "build", broken)
    assert "were built, but cannot be loaded" in library.why_unavailable()


@pytest.mark.parametrize("mode", [0o775, 0o757])
@pytest.mark.parametrize("what", ["folder", "file"])
def test_what_others_can_write_is_not_loaded(cached, builds, what, mode):
    path = Path(cached)
    (path if what == "file" else path.parent).chmod(mode)
    assert library.load_kernels() is not None
    assert len(builds) == 1


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("what", ["folder", "file"])
def test_what_others_own_is_not_loaded(cached, builds, what):
    path = Path(cached)
    os.chown(path if what == "file" else path.parent, 12345, -1)
    assert library.load_kernels() is not None
    assert len(builds) == 1


def test_a_folder_that_others_can_write_is_closed_to_them_by_a_build(tmp_path, whole, monkeypatch):
    monkeypatch.setenv(
        "CXX", compiler(tmp_path, f'for last; do :; done; while [ "$1" != -o ]; do shift; done; cp {whole} "$2"')
    )
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    built = build("avx2", folder)
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE(built.stat().st_mode) == 0o755


def test_other_structs_than_pythons_are_noticed(cached, monkeypatch):
    monkeypatch.setattr(library, "expected_layout", lambda: [1] * 11)
    assert "was compiled for other structs" in library.why_unavailable()


@pytest.mark.parametrize("variant", library.VARIANTS)
def test_the_sources_compile_without_warnings(variant):
    compiler = shutil.which("g++" if variant in library.machine_variants() else "aarch64-linux-gnu-g++")
    if compiler is None:
        pytest.skip(f"there is no compiler for {variant}")
    command = [compiler, *library.compile_options(variant), "-Werror", "-fsyntax-only", str(library._MAIN)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("has_power", [True, False])
def test_a_crash_at_any_step_of_a_build_leaves_a_whole_library_or_none(tmp_path, whole, monkeypatch, has_power):
    script = f'while [ "$1" != -o ]; do shift; done; cp {whole} "$2"'
    monkeypatch.setenv("CXX", compiler(tmp_path, script))
    home = tmp_path / "home"
    variant = library.supported_variants()[0]

    def check():
        found = home / "kernels" / library_name(variant)
        if found.exists():
            assert found.read_bytes() == whole.read_bytes()
        assert build(variant, home / "kernels").read_bytes() == whole.read_bytes()
        shutil.rmtree(home / "kernels")

    home.mkdir()
    assert crash_at_every_step(home, lambda: build(variant, home / "kernels"), check, has_power=has_power) >= 5
