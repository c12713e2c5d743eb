"""How requests are decoded that don't say: which selection, and what goes with it."""

import pytest

from superdraft.server.drafting import MAX_SHORT_TOKENS, DraftingDefaults
from superdraft.server.settings import Settings

DISTINCT = DraftingDefaults("distinct", max_branches=3, min_probability=0.02, alpha=0.4, tau=0.1)
ASK = {"strategy": "superposed", "num_drafts": 3, "max_tokens": 10}


def test_distinct_drafts_are_the_language_models_alone():
    filled = DISTINCT.fill(**ASK)
    assert (filled["selection"], filled["alpha"], filled["tau"]) == ("distinct", 0.0, 1.0)
    assert (filled["max_branches"], filled["min_probability"], filled["whole_best"]) == (3, 0.02, False)
    assert DISTINCT.fill(**(ASK | {"max_tokens": MAX_SHORT_TOKENS + 1}))["whole_best"]


@pytest.mark.parametrize(
    "field",
    [
        {"alpha": 0.5},
        {"alpha": 0.0},
        {"tau": 0.2},
        {"candidates_per_draft": 5},
        {"reset_every": 2},
        {"ngram_model": "mail"},
    ],
)
def test_who_asks_for_what_only_the_paper_has_gets_its_selection(field):
    filled = DISTINCT.fill(**ASK, **field)
    assert filled["selection"] == "paper"
    assert filled["alpha"] == field.get("alpha", 0.4)
    assert "max_branches" not in filled


def test_what_a_request_says_wins():
    filled = DISTINCT.fill(**ASK, selection="distinct", alpha=0.5, max_branches=1, min_probability=0.0)
    assert (filled["selection"], filled["alpha"], filled["max_branches"]) == ("distinct", 0.5, 1)
    assert filled["min_probability"] == 0.0  # 0 is said, not absent
    assert DISTINCT.fill(**(ASK | {"strategy": "sample"}))["selection"] == "paper"
    assert DISTINCT.fill(**ASK, selection="distinct", alpha=0.0)["selection"] == "distinct"
    assert DISTINCT.fill(**ASK, ngram_model=None)["selection"] == "distinct"


@pytest.mark.parametrize(
    ("settings", "tuned", "selection"),
    [
        ({}, None, "distinct"),
        ({"default_alpha": 0.3}, None, "paper"),
        ({}, 9, "paper"),
        ({"default_selection": "distinct", "default_alpha": 0.3}, 9, "distinct"),
        ({"default_selection": "paper"}, None, "paper"),
    ],
)
def test_operators_who_set_an_ngram_weight_want_it_to_have_a_say(settings, tuned, selection):
    drafting = DraftingDefaults.of(Settings(**settings), 2, 0.54, 0.06, tuned)
    assert (drafting.selection, drafting.max_branches) == (selection, 2)  # no more rows than slots
