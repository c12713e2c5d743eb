import json

import pytest

from superdraft.evaluation.cases.prompts import read_prompts, read_questions
from superdraft.server.errors import CommandError


def write(path, *rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_fields_and_what_stands_for_them(tmp_path):
    full = {"id": "a-1", "domain": "mail", "prompt": "Dear", "reference": "all of you", "source": "x"}
    bare = {"prompt": "Go ", "reference": "on"}
    one, two = read_prompts([write(tmp_path / "notes.jsonl", full, bare)])
    assert (one.id, one.domain, one.text, one.continuation) == ("a-1", "mail", "Dear", " all of you")
    assert (two.id, two.domain, two.continuation) == ("notes-2", "notes", "on")


def test_mid_word_prompts_go_on_without_a_space(tmp_path):
    row = {"prompt": "It impro", "reference": "ves", "word": "improves", "typed": "impro"}
    (one,) = read_prompts([write(tmp_path / "mid.jsonl", row)])
    assert one.is_mid_word
    assert one.continuation == "ves"


def test_a_limit_takes_from_all_files(tmp_path):
    files = [
        write(tmp_path / f"{name}.jsonl", *({"prompt": f"{name}{i}", "reference": "x"} for i in range(size)))
        for name, size in (("a", 4), ("b", 1), ("c", 4))
    ]
    assert [one.text for one in read_prompts(files, limit=5)] == ["a0", "b0", "c0", "a1", "c1"]
    assert len(read_prompts(files)) == 9


def test_questions(tmp_path):
    path = write(tmp_path / "q.jsonl", {"id": "q1", "question": "Who?", "answers": ["Me", "I"]})
    (one,) = read_questions([path])
    assert (one.prompt, one.answers) == ("Question: Who?\nAnswer:", ("Me", "I"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": "a", "reference": "b"}\n{"prompt": "a"}', "line 2: the field reference is missing"),
        ('{"prompt": "a", "reference": 3}', "line 1: not a JSON line"),
        ('{"prompt": " ", "reference": "b"}', "line 1: not a JSON line"),
        ("nonsense", "line 1: not a JSON line"),
        ('{"id": 1, "prompt": "a", "reference": "b"}\n{"id": 1, "prompt": "a", "reference": "b"}', "the id '1'"),
    ],
)
def test_errors_say_where(tmp_path, content, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    with pytest.raises(CommandError, match=message):
        read_prompts([path])


def test_a_missing_file(tmp_path):
    with pytest.raises(CommandError, match=r"none\.jsonl cannot be read"):
        read_prompts([tmp_path / "none.jsonl"])


def test_files_without_prompts_are_refused(tmp_path):
    for read, what in ((read_prompts, "prompts"), (read_questions, "questions")):
        with pytest.raises(CommandError, match=f"The files hold no {what}"):
            read([write(tmp_path / "empty.jsonl")])
