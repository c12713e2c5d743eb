import tarfile

import pytest
from support.ngram import write_fake_tools, write_tool

from superdraft.ngram_models import tools
from superdraft.ngram_models.errors import BuildToolMissingError
from superdraft.ngram_models.tools import find_tools, install_tools

FAKE_CMAKE = """#!{python}
import pathlib, sys
arguments = sys.argv[1:]
if "-S" in arguments:
    assert (pathlib.Path(arguments[arguments.index("-S") + 1]) / "CMakeLists.txt").is_file()
else:
    build = pathlib.Path(arguments[arguments.index("--build") + 1])
    (build / "bin").mkdir(parents=True)
    for name in arguments[arguments.index("--target") + 1 :]:
        (build / "bin" / name).write_text("#!/bin/sh\\n")
        (build / "bin" / name).chmod(0o755)
"""

FAILING_CMAKE = """#!{python}
import sys
sys.stderr.write("Could NOT find Boost\\n")
sys.exit(1)
"""


@pytest.fixture
def sdist(tmp_path):
    (tmp_path / "kenlm-0").mkdir()
    (tmp_path / "kenlm-0" / "CMakeLists.txt").write_text("")
    with tarfile.open(tmp_path / "kenlm-0.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "kenlm-0", arcname="kenlm-0")
    return tmp_path / "kenlm-0.tar.gz"


@pytest.fixture
def empty_path(tmp_path, monkeypatch):
    folder = tmp_path / "path"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def test_the_error_for_missing_tools_says_how_to_install_them(tmp_path, empty_path):
    with pytest.raises(
        BuildToolMissingError, match=r"were not found on the PATH or in .*home/bin.*make lmplz.*--tools"
    ):
        find_tools(home=tmp_path / "home")


def test_a_given_folder_is_the_only_one_searched(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(write_fake_tools(tmp_path / "bin")))
    with pytest.raises(BuildToolMissingError, match=r"were not found in .*other"):
        find_tools(tmp_path / "other")


def test_the_path_comes_before_the_home_folder(tmp_path, empty_path, monkeypatch):
    (tmp_path / "home").mkdir()
    in_home = write_fake_tools(tmp_path / "home" / "bin")
    assert find_tools(home=tmp_path / "home").lmplz == in_home / "lmplz"
    on_path = write_fake_tools(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(on_path))
    assert find_tools(home=tmp_path / "home").build_binary == on_path / "build_binary"


def test_an_incomplete_installation_does_not_count(tmp_path):
    folder = write_fake_tools(tmp_path / "bin")
    (folder / "build_binary").unlink()
    with pytest.raises(BuildToolMissingError):
        find_tools(folder)


def test_a_missing_cmake_names_the_packages(tmp_path, sdist, empty_path):
    with pytest.raises(BuildToolMissingError, match=r"cmake is not installed.*apt-get install cmake .*libboost"):
        install_tools(tmp_path / "bin", sdist=sdist)


def test_a_failing_configuration_names_the_packages_and_the_cause(tmp_path, sdist, empty_path):
    write_tool(empty_path, "cmake", FAILING_CMAKE)
    with pytest.raises(BuildToolMissingError, match=r"(?s)apt-get install .*libboost.*Could NOT find Boost"):
        install_tools(tmp_path / "bin", sdist=sdist)
    assert not (tmp_path / "bin").exists()


def test_the_programs_are_compiled_and_installed(tmp_path, sdist, empty_path):
    write_tool(empty_path, "cmake", FAKE_CMAKE)
    found = install_tools(tmp_path / "bin", sdist=sdist)
    assert found == find_tools(tmp_path / "bin")
    assert found.version == "KenLM kenlm-0"
    assert sorted(path.name for path in (tmp_path / "bin").iterdir()) == ["build_binary", "kenlm.version", "lmplz"]


def test_pip_fetches_only_kenlm_as_source_and_checks_its_hash(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(tools, "_run", lambda command, failure: commands.append(command))
    assert tools._download_sdist(tmp_path).name == "kenlm-0.3.0.tar.gz"
    (command,) = commands
    assert command[command.index("--no-binary") + 1] == "kenlm"
    assert {"--no-deps", "--require-hashes"} <= set(command)
    requirement = (tmp_path / "requirements.txt").read_text()
    assert requirement == f"kenlm==0.3.0 --hash=sha256:{tools.KENLM_SDIST_SHA256}\n"


def test_the_command_reports_what_is_missing_in_one_line(tmp_path, empty_path, capsys):
    assert tools.main(["--into", str(tmp_path / "bin")]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert "cmake is not installed" in printed.err
