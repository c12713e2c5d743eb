import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = sorted(package.removeprefix("superdraft.") for package in PROJECT["tool"]["setuptools"]["packages"])
FOLDERS = [package for package in PACKAGES if "." not in package]
TYPESCRIPT = ROOT / "client" / "typescript"  # a package of its own, for npm; the server has its built modules
HEAVY = {"torch", "transformers", "kenlm", "fastapi", "numpy", "pydantic", "uvicorn"}


def python_files(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """The wheel of a copy of the tree: building writes into the tree it builds from."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist"]
    result = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return zipfile.ZipFile(next((tree / "dist").glob("superdraft-*.whl")))


def test_every_file_of_the_packages_is_in_the_wheel_and_nothing_else(wheel):
    in_tree = {
        f"superdraft/{path.relative_to(ROOT).as_posix()}"
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.is_file()
        and not path.is_relative_to(TYPESCRIPT)
        and not any(part.startswith((".", "__pycache__")) for part in path.relative_to(ROOT).parts)
    }
    in_wheel = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert in_wheel == in_tree


def test_every_package_is_listed():
    assert sorted(path.parent.name for path in ROOT.glob("*/__init__.py")) == FOLDERS
    with_init = {path.parent.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("__init__.py")}
    assert sorted(path.as_posix().replace("/", ".") for path in with_init) == PACKAGES
    with_modules = {path.parent.relative_to(ROOT) for path in python_files(*FOLDERS)}
    assert with_modules == with_init
    assert PROJECT["tool"]["setuptools"]["package-dir"] == {f"superdraft.{folder}": folder for folder in FOLDERS}


@pytest.mark.parametrize(
    ("file", "pattern"),
    [
        ("Makefile", r"^PACKAGES := (.*)$"),
        (".dockerignore", r"^!([a-z_]+)$"),
        ("Dockerfile", r"^COPY ([a-z_]+) \1$"),
    ],
)
def test_the_other_files_list_the_same_packages(file, pattern):
    found = " ".join(re.findall(pattern, (ROOT / file).read_text(), re.MULTILINE)).split()
    assert sorted(found) == FOLDERS


def test_the_base_and_client_installs_are_light(wheel):
    metadata_name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = Parser().parsestr(wheel.read(metadata_name).decode())
    requirements = [Requirement(line) for line in metadata.get_all("Requires-Dist")]

    def needed(extra: str) -> set[str]:
        return {r.name for r in requirements if r.marker is None or r.marker.evaluate({"extra": extra})}

    extras = {"client", "llamacpp", "lsp", "ngram", "server", "traces", "try"}
    extras |= {"evaluation", "ray", "test", "lint", "dev", "docs"}
    assert set(metadata.get_all("Provides-Extra")) == extras
    assert needed("") == needed("client") == {"httpx", "rich", "typer"}
    assert {"torch", "transformers", "fastapi"} <= needed("server")
    assert "torch" not in needed("ngram")
    # `make serve` and `make test` install no more than they need.
    tools = {"mypy", "ruff", "import-linter", "pre-commit"}
    assert not needed("server") & {*tools, "pytest", "playwright", "matplotlib", "kubernetes-validate"}
    assert not any(name.startswith("opentelemetry") for name in needed("server"))
    assert not needed("test") & tools
    assert needed("lsp") == {"httpx", "pygls", "rich", "typer"}
    assert needed("try") == {"httpx", "prompt-toolkit", "rich", "typer"}


def test_importing_the_client_loads_nothing_heavy():
    code = """
import importlib, pkgutil, sys
import superdraft.client
for module in pkgutil.iter_modules(superdraft.client.__path__, "superdraft.client."):
    importlib.import_module(module.name)
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(result.stdout.split())
    assert "superdraft" in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize("module", ["superdraft.decoding.loading.store", "superdraft.server.cli.models"])
def test_looking_for_a_model_does_not_import_torch(module):
    code = f"import sys, {module}; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"


def test_no_file_imports_a_folder_without_the_superdraft_prefix():
    offenders = []
    for path in python_files(*FOLDERS, "tests"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            if {name.partition(".")[0] for name in names} & set(FOLDERS):
                offenders.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert offenders == []


def test_the_constraints_pin_every_requirement_exactly_and_name_no_index():
    files = (ROOT / "constraints.txt", ROOT / "deploy/ray/constraints.txt")
    lines = [line for file in files for line in file.read_text().splitlines() if not line.startswith("#")]
    assert len(lines) == len(set(lines))
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", line) for line in lines)
    pinned = {re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower() for line in lines}
    wanted = PROJECT["build-system"]["requires"] + PROJECT["project"]["dependencies"]
    for extra in PROJECT["project"]["optional-dependencies"].values():
        wanted += extra
    names = {re.sub(r"[-_.]+", "-", Requirement(line).name).lower() for line in wanted}
    assert names - pinned == {"superdraft", "pip"}
