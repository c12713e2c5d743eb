"""Tests and time: none asserts how long something took, which another machine would deny."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parents[2]
CLOCK = re.compile(r"\b(perf_counter|process_time|thread_time|monotonic|time\.time)(_ns)?\(")


def durations(source: str) -> Iterator[str]:
    """The assertions in which a clock, or a name that was set from one, is compared for size."""
    tree = ast.parse(source)
    for scope in ast.walk(tree):
        if not isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        nodes = list(ast.walk(scope))
        begun = {
            target.id
            for node in nodes
            if isinstance(node, ast.Assign) and CLOCK.search(ast.unparse(node.value))
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in nodes:
            if not isinstance(node, ast.Assert):
                continue
            compared = [side for side in ast.walk(node) if isinstance(side, ast.Compare)]
            names = {name.id for side in compared for name in ast.walk(side) if isinstance(name, ast.Name)}
            text = " ".join(map(ast.unparse, compared))
            has_amount = re.search(r"[<>]", text) and re.search(r" - |\b\d", text)
            if has_amount and (CLOCK.search(text) or names & begun):
                yield ast.unparse(node)


def test_no_test_asserts_how_long_something_took():
    found = {
        f"{path.relative_to(TESTS)}: {assertion}"
        for path in TESTS.rglob("test_*.py")
        for assertion in durations(path.read_text())
        if "deadline" not in assertion  # how long to wait for what hangs
    }
    assert not found, "count what is meant (support/counting.py), or measure it in a benchmark"


def test_such_assertions_are_found():
    begun = "def test():\n    begun_s = time.perf_counter()\n"
    assert list(durations(begun + "    assert time.perf_counter() - begun_s < 0.5"))
    assert list(durations(begun + "    took_s = 1\n    assert 2 > begun_s"))
    assert not list(durations(begun + "    assert took == 3"))
    assert not list(durations(begun + "    assert begun_s <= span.start"))
