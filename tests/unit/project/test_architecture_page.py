"""docs/architecture.md against the tree: its list of packages, and the limits that keep the tree readable."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/architecture.md").read_text()
PACKAGES = [
    name.removeprefix("superdraft.").replace(".", "/")
    for name in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
]
MAX_MODULES = 15


def modules(package: str) -> list[Path]:
    return [path for path in (ROOT / package).glob("*.py") if path.name != "__init__.py"]


def test_the_page_lists_every_package_and_no_other():
    rows = [line.partition("|")[2].partition("|")[0] for line in PAGE.splitlines() if line.startswith("| ")]
    listed = re.findall(r"`([a-z_/]+)`", " ".join(rows))
    assert sorted(listed) == sorted(PACKAGES)


QUESTIONS = ("What", "Which", "How", "Where", "Who", "When", "Why")


@pytest.mark.parametrize("package", PACKAGES)
def test_a_folder_has_few_modules_and_each_has_a_title(package):
    assert len(modules(package)) <= MAX_MODULES
    for path in modules(package):
        title = ast.get_docstring(ast.parse(path.read_text()))
        assert title, path
        assert len(title.splitlines()[0]) <= 120, path
        assert title.split()[0] not in QUESTIONS, f"{path}: a title begins with a noun phrase"


def test_paths_named_on_the_page_exist():
    named = re.findall(r"`((?:tests|decoding|server|ngram_models|client|evaluation|benchmarks)/[\w/.]+)`", PAGE)
    assert len(named) > 20
    assert [name for name in named if not (ROOT / name).exists()] == []
