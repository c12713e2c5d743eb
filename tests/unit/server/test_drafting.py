"""Decoding defaults: the selection, and the parameters that belong to it."""

import pytest

from superdraft.server.drafting import MAX_SHORT_TOKENS, DraftingDefaults
from superdraft.server.settings import Settings
from superdraft.server.wires.native.mapping import generation_params
from superdraft.server.wires.native.schemas import DraftsRequest

DISTINCT = DraftingDefaults("distinct", max_branches=3, min_probability=0.02, alpha=0.4, tau=0.1)
ASKED = {"strategy": "superposed", "num_drafts": 3, "max_tokens": 10}


def params_of(**fields):
    return generation_params(DraftsRequest(prompt="", **fields), DISTINCT, token_healing=True)


def test_distinct_drafts_are_the_language_models_alone():
    params = DISTINCT.params(ASKED)
    assert (params.selection, params.alpha, params.tau) == ("distinct", 0.0, 1.0)
    assert (params.max_branches, params.min_probability, params.whole_best) == (3, 0.02, False)
    assert DISTINCT.params(ASKED | {"max_tokens": MAX_SHORT_TOKENS + 1}).whole_best


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
def test_a_request_for_what_only_the_paper_has_gets_its_selection(field):
    params = params_of(**field)
    assert (params.selection, params.max_branches) == ("paper", 1)
    assert params.alpha == field.get("alpha", 0.4)


def test_what_a_request_sets_wins():
    params = DISTINCT.params(ASKED | {"selection": "distinct", "alpha": 0.5, "max_branches": 1, "min_probability": 0.0})
    assert (params.selection, params.alpha, params.max_branches) == ("distinct", 0.5, 1)
    assert params.min_probability == 0.0  # 0 is a value, not absence
    assert DISTINCT.params(ASKED | {"strategy": "sample"}).selection == "paper"
    assert params_of(selection="distinct", alpha=0.0).selection == "distinct"
    assert params_of(ngram_model=None).selection == "distinct"
    assert params_of(min_draft_tokens=2).min_draft_tokens == 2


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
    drafting = DraftingDefaults.of(Settings(**settings), 0.54, 0.06, tuned)
    assert (drafting.selection, drafting.max_branches) == (selection, 8)
