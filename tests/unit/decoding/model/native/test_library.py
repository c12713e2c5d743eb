"""Building and finding the compiled kernels."""

import stat

import pytest

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


def test_a_library_that_comes_with_the_package_is_preferred(monkeypatch, tmp_path):
    variant = next(iter(library.supported_variants()), None)
    if variant is None:
        pytest.skip("this processor has no kernels")
    build(variant, tmp_path / "bundled")
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


def test_a_processor_without_the_instructions(monkeypatch):
    monkeypatch.setattr(library.platform, "machine", lambda: "aarch64")
    assert library.supported_variants() == []
    with pytest.raises(KernelsUnavailableError, match="need AVX2, which this aarch64 processor lacks"):
        library.load_kernels()


def test_an_image_for_another_processor_is_built_without_kernels(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(building, "BUNDLED", tmp_path / "bundled")
    monkeypatch.setenv("CXX", compiler(tmp_path, "echo 'unrecognized option -mavx2' >&2; exit 1"))
    monkeypatch.setattr(library.platform, "machine", lambda: "aarch64")
    building.main()
    assert "on aarch64, torch's own are used" in capsys.readouterr().err
    assert not (tmp_path / "bundled").exists()
    monkeypatch.setattr(library.platform, "machine", lambda: "x86_64")
    with pytest.raises(SystemExit, match="unrecognized option"):
        building.main()
