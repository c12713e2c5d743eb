"""The benchmark of the n-gram model's cost."""

import itertools
import json

import pytest
from support.ngram import write_tiny_model

from superdraft.benchmarks.in_process import ngram
from superdraft.ngram_models.store.registry import open_scorer
from superdraft.server.errors import CommandError


class NumberTokenizer:
    def __call__(self, texts, *, add_special_tokens, verbose):
        return {"input_ids": [[3 + len(word) % 4 for word in text.split()] for text in texts]}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(ngram, "load_tokenizer", lambda _name: NumberTokenizer())
    write_tiny_model(tmp_path / "tiny")
    return tmp_path / "tiny"


def measure(folder, **options):
    settings = {"models": [str(folder)], "text": None, "steps": 5, "as_json": True}
    ngram.main(**settings | options)


def test_every_shape_is_measured(folder, capsys):
    measure(folder)
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["k"], row["m"]) for row in rows] == [(3, 9), (8, 64)]
    for row in rows:
        assert 0 < row["step_us"] <= row["step_us_p95"]
        # Both are rounded.
        assert row["step_us_per_candidate"] == pytest.approx(row["step_us"] / (row["k"] * row["m"]), rel=0.05)


def test_the_table_has_every_shape(folder, capsys):
    measure(folder, as_json=False)
    assert "candidate" in capsys.readouterr().out


def test_steps_score_the_next_token_after_its_own_context():
    tokens = list(range(100))
    for contexts, candidates, chosen in itertools.islice(ngram._steps(tokens, 4, 3, 9), 50):
        assert [len(row) for row in candidates] == [9, 9, 9]
        assert [row[0] for row in candidates] == chosen
        assert contexts == [[token - 3, token - 2, token - 1] for token in chosen]


def test_a_step_looks_up_every_candidate_and_moves_every_draft(tmp_path):
    scorer = open_scorer(tmp_path / "tiny", write_tiny_model(tmp_path / "tiny"))
    scored, moved = [], []
    original_advance = scorer.advance
    scorer.score = lambda states, candidates: scored.append((len(states), candidates))
    scorer.advance = lambda state, token_id: moved.append(token_id) or original_advance(state, token_id)
    states = [scorer.initial_state([3]), scorer.initial_state([4])]
    moved.clear()
    ngram.run_step(scorer, states, ([[], []], [[3, 4], [5, 6]], [4, 5]))
    assert (scored, moved) == ([(2, [[3, 4], [5, 6]])], [4, 5])


def test_a_text_that_is_too_short_is_told(folder, tmp_path):
    (tmp_path / "text.txt").write_text("two words")
    with pytest.raises(CommandError, match="has 2 tokens, too few"):
        measure(folder, text=tmp_path / "text.txt")
