"""`superdraft lab eval typos` of a running server with a tiny model."""

import json
import random
import sys

import pytest
from support.models import tiny_model_folder
from support.serving import serving

from superdraft.decoding.engine.engine import Engine
from superdraft.evaluation.runs import typos
from superdraft.evaluation.runs.typos import EDITS
from superdraft.server.cli import main as cli
from superdraft.server.serving import load_app
from superdraft.server.settings import Settings


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_model_folder(tmp_path_factory.mktemp("models"), "llama"))


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run the command: (exit code, results, standard error)."""

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["superdraft", "lab", "eval", "typos", *args, "-o", str(tmp_path / "out")])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        path = tmp_path / "out" / "results.json"
        results = json.loads(path.read_text()) if path.exists() else None
        return caught.value.code or 0, results, capsys.readouterr().err

    return call


@pytest.fixture
def seen(monkeypatch):
    """What the engine was asked for: (prompt, parameters)."""
    asked = []
    add_request = Engine.add_request

    def note(self, request):
        asked.append((request.prompt, request.params))
        add_request(self, request)

    monkeypatch.setattr(Engine, "add_request", note)
    return asked


def test_typos_of_each_kind_are_put_into_the_word_at_the_end(run, tmp_path, model, seen):
    prompts, misspellings = tmp_path / "mail.jsonl", tmp_path / "dictionary.txt"
    rows = [
        {"id": "in", "prompt": "See you tomor", "reference": "row at noon", "typed": "tomor"},
        {"id": "end", "prompt": "I am very happy", "reference": "to help"},
        {"id": "digits", "prompt": "See you at 10", "reference": "again"},
    ]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    misspellings.write_text("hapy->happy\nharpyy->happy\nacn->can\nquick->fast, quick,\n")
    settings = Settings(model=model, dtype="float32", device="cpu", num_threads=1, max_model_len=128, kv_memory="64MiB")
    with serving(load_app(settings)) as url:
        command = ("--prompts", str(prompts), "-n", "4", "--misspellings", str(misspellings))
        code, results, err = run(*command, "--peer", f"superdraft={url}")
    assert (code, err) == (0, "")
    current = {f"current word: {edit}" for edit in EDITS}
    before = {f"word before: {edit}" for edit in (*EDITS, "misspelt")}
    assert set(results["groups"]) == {"clean"} | (current | before) & set(results["groups"])
    assert len(results["groups"]) > 8
    assert results["groups"]["clean"]["on"]["n"] == 3
    for found in results["groups"].values():
        assert list(found) == ["off", "on"]
        assert set(found["on"]["figures"]) == {"right_first", "right_any", "corrected_first", "forward_rows"}
        assert found["off"]["figures"]["corrected_first"][0] == 0
    texts = {str(prompt) for prompt, _ in seen}
    assert {"See you tomor", "I am very happy ", "See you at 10 ", "I am very hapy "} <= texts
    assert {params.corrections for _, params in seen} == {True, False}


def test_a_typo_is_one_edit_and_what_was_meant_is_right():
    rng = random.Random(1)
    for word in ("tomorrow", "the", "happy", "book"):
        for edit in EDITS:
            for _ in range(20):
                wrong = typos.mistyped(word, edit, rng, is_finished=True)
                assert wrong is None or (wrong != word and wrong[0] == word[0]) or (edit, word) == ("left out", "book")
    assert typos.written("See you tomorow", "\b" * 7 + "tomorrow at") == "See you tomorrow at"
    assert typos.written("See you", " at") == "See you at"


@pytest.mark.parametrize(("text", "message"), [("", "no line such as"), (None, "cannot be read")])
def test_a_dictionary_without_misspellings_is_refused(run, tmp_path, text, message):
    prompts, file = tmp_path / "mail.jsonl", tmp_path / "dictionary.txt"
    prompts.write_text(json.dumps({"prompt": "one two", "reference": "three"}))
    if text is not None:
        file.write_text(text)
    command = ("--prompts", str(prompts), "--peer", "superdraft=http://127.0.0.1:9", "--misspellings", str(file))
    code, _, err = run(*command)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
