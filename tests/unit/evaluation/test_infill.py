"""Cases of gaps in source code, and what drafts for them are worth, worked by hand."""

import json

import pytest

from superdraft.evaluation.cases.infill_cases import (
    KINDS,
    cases_from_source,
    chosen_cases,
    parse_window,
    read_cases,
    with_window,
    write_cases,
)
from superdraft.evaluation.cases.prompts import Prompt
from superdraft.evaluation.decoders.decoders import DecodedDraft
from superdraft.evaluation.measures.infill_metrics import (
    is_exact_line,
    is_first_character_right,
    is_first_word_right,
    keys_saved,
    tokens_right,
)
from superdraft.evaluation.reports.records import PromptRecord
from superdraft.evaluation.runs.infill import infill_figures
from superdraft.server.errors import CommandError

SOURCE = '''"""A module."""

import math

# a comment that is long enough
def area(radius):
    """The area of a circle."""
    square = radius * radius
    return math.pi * square


x = 1
LIMIT = area(12) + area(34) + area(56) + area(78) + area(90) + area(1234) + area(5678)
'''


@pytest.fixture
def folder(tmp_path):
    """Three files of code with the same text, and others that do not count."""
    for name in ("a.py", "b.py", "deep/c.js"):
        file = tmp_path / "src" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(SOURCE)
    for name in ("notes.md", ".hidden/d.py", "node_modules/e.js"):
        file = tmp_path / "src" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(SOURCE)
    (tmp_path / "src" / "f.py").write_bytes(b"\xff\xfe not = text")
    return tmp_path / "src"


@pytest.mark.parametrize("kind", KINDS)
def test_a_case_and_its_line_are_the_file(folder, kind):
    cases = cases_from_source(folder, kind, 100, seed=1)
    assert len(cases) == 6  # two of each file
    assert {case.id.split(":")[1] for case in cases} == {"a.py", "b.py", "deep/c.js"}
    for case in cases:
        assert case.text + case.reference + case.suffix == SOURCE
        assert case.continuation == case.reference
        assert case.domain == kind
        assert case.suffix.startswith("\n")
        assert not case.reference.endswith((" ", "\n"))
        line = case.text[case.text.rfind("\n") + 1 :] + case.reference
        assert 10 <= len(line.strip()) <= 80
        assert not line.strip().startswith(("#", '"""'))


def test_where_the_cursor_stands(folder):
    for case in cases_from_source(folder, "indent", 100, seed=0):
        assert case.text[case.text.rfind("\n") :] == "\n    "
        assert not case.reference[0].isspace()
    for case in cases_from_source(folder, "mid", 100, seed=0):
        line = case.text[case.text.rfind("\n") + 1 :]
        assert line.strip()
        assert not (line[-1].isalnum() and case.reference[0].isalnum())
    for case in cases_from_source(folder, "word", 100, seed=0):
        assert case.text[-2:].isalnum()
        assert case.reference[0].isalnum()


def test_the_seed_and_the_limit_choose_the_cases(folder):
    first = cases_from_source(folder, "word", 3, seed=5)
    assert len(first) == 3
    assert cases_from_source(folder, "word", 3, seed=5) == first
    assert any(cases_from_source(folder, "word", 3, seed=seed) != first for seed in range(5))
    assert cases_from_source(folder, "word", 6, seed=5)[:3] == first


def test_cases_are_read_as_they_were_written(folder, tmp_path):
    cases = cases_from_source(folder, "mid", 4, seed=0)
    write_cases(tmp_path / "cases.jsonl", cases)
    assert read_cases(tmp_path / "cases.jsonl") == cases
    bare = tmp_path / "bare.jsonl"
    bare.write_text(json.dumps({"prefix": "a = ", "suffix": "", "reference": "1"}))
    assert read_cases(bare) == [Prompt("bare-1", "bare", "a = ", "1", is_mid_word=True)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prefix": "a", "suffix": "b"}, "the field reference is missing"),
        ({"prefix": "a", "suffix": "b", "reference": " "}, "line 1: not a JSON line"),
        ({"prefix": 1, "suffix": "b", "reference": "c"}, "line 1: not a JSON line"),
    ],
)
def test_wrong_cases(tmp_path, row, message):
    file = tmp_path / "cases.jsonl"
    file.write_text(json.dumps(row))
    with pytest.raises(CommandError, match=message):
        read_cases(file)


def test_wrong_folders_and_kinds(tmp_path):
    for folder, kind, message in (
        (tmp_path, "indent", "holds no line of code"),
        (tmp_path / "none", "indent", "is not a folder"),
        (tmp_path, "end", "--kind must be one of indent, mid, word, got 'end'"),
    ):
        with pytest.raises(CommandError, match=message):
            cases_from_source(folder, kind, 1, 0)


@pytest.mark.parametrize(
    ("draft", "exact", "word", "character", "tokens"),
    [
        ("return math.pi", True, True, True, 4),
        ("return math.pi  \n    x", True, True, True, 4),
        ("return math.e", False, True, True, 3),
        ("returned", False, False, True, 0),
        ("raise", False, False, True, 0),
        ("yield", False, False, False, 0),
        (" return math.pi", False, False, False, 0),
        ("", False, False, False, 0),
        ("\nreturn math.pi", False, False, False, 0),
    ],
)
def test_what_of_a_draft_is_right(draft, exact, word, character, tokens):
    reference = "return math.pi"
    assert is_exact_line(draft, reference) is exact
    assert is_first_word_right(draft, reference) is word
    assert is_first_character_right(draft, reference) is character
    assert tokens_right(draft, reference) == tokens


def test_keys_of_one_acceptance():
    reference = "return math.pi"
    assert keys_saved(["return math.pi"], reference) == 13
    assert keys_saved(["return x", "return math.pi"], reference) == 12  # the second costs two keys
    assert keys_saved(["return x", "yield"], reference) == 5
    assert keys_saved(["yield"], reference) == keys_saved([], reference) == 0
    assert keys_saved(["a", "b", "x.y"], "x = 1") == 0  # one character for three keys


def test_figures_of_the_first_draft_and_of_any():
    def record(*texts, rows=None):
        return PromptRecord("p", "", tuple(DecodedDraft(text, 0.0) for text in texts), rows, 0.5)

    cases = [Prompt(name, "indent", "", "return 1") for name in "ab"]
    found = infill_figures([record("raise", "return 1", rows=9), record("return 2", rows=3)], cases, 3)
    values = {name: ratios.sum(axis=0)[0] / ratios.sum(axis=0)[1] for name, ratios in found.items()}
    assert (values["exact_line/first"], values["exact_line/any"]) == (0, 0.5)
    assert (values["first_word/first"], values["first_word/any"]) == (0.5, 1)
    assert (values["first_character/first"], values["first_character/any"]) == (1, 1)
    assert values["keystroke_savings"] == (6 + 5) / 16
    assert (values["forward_rows"], values["request_ms"], values["num_drafts"]) == (2, 500, 1.5)
    unknown = infill_figures([record("return 1")], cases[:1], 3)["forward_rows"]
    assert unknown.tolist() == [[0, 0]]


def test_a_window_keeps_lines_on_both_sides():
    case = Prompt("a", "mid", "one\ntwo\n    thr", "ee", suffix="\nfour\n\nfive\n")
    whole = with_window(case, 9, 9)
    assert whole == case
    narrow = with_window(case, 1, 2)
    assert (narrow.text, narrow.suffix, narrow.reference) == ("two\n    thr", "\nfour\n", "ee")
    none = with_window(case, 0, 0)
    assert (none.text, none.suffix) == ("    thr", "")


def test_windows_are_two_numbers():
    assert parse_window("50,0") == (50, 0)
    for wrong in ("50", "a,b", "1,2,3", "-1,2", "1, 2", ""):
        with pytest.raises(CommandError, match="--context-lines must be BEFORE,AFTER"):
            parse_window(wrong)


def test_cases_of_source_have_the_window_that_was_asked_for(folder):
    whole = chosen_cases(None, folder, "mid", 4, 0, None)
    assert whole == cases_from_source(folder, "mid", 4, 0)
    narrow = chosen_cases(None, folder, "mid", 4, 0, (1, 1))
    assert narrow == [with_window(case, 1, 1) for case in whole]
    assert all(case.text.count("\n") == case.suffix.count("\n") == 1 for case in narrow)
