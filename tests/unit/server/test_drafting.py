"""Decoding defaults: the selection, and the parameters that belong to it."""

from dataclasses import replace

import pytest

from superdraft.ngram_models.store.manifest import Tuning
from superdraft.server.drafting import MAX_SHORT_TOKENS, Asked, DraftingDefaults
from superdraft.server.settings import Settings
from superdraft.server.wires.native.mapping import generation_params
from superdraft.server.wires.native.schemas import DraftsRequest

DISTINCT = DraftingDefaults("distinct", max_branches=3, min_probability=0.02, alpha=0.4, tau=0.1)
ASKED = Asked(strategy="superposed", num_drafts=3, max_tokens=10)


def params_of(**fields):
    return generation_params(DraftsRequest(prompt="", **fields), DISTINCT, token_healing=True)


def test_distinct_drafts_are_the_language_models_alone():
    params = DISTINCT.params(ASKED)
    assert (params.selection, params.alpha, params.tau) == ("distinct", 0.0, 1.0)
    assert (params.max_branches, params.min_probability, params.whole_best) == (3, 0.02, False)
    assert DISTINCT.params(replace(ASKED, max_tokens=MAX_SHORT_TOKENS + 1)).whole_best


@pytest.mark.parametrize(
    "field",
    [
        {"alpha": 0.5},
        {"alpha": 0.0},
        {"tau": 0.2},
        {"candidates_per_draft": 5},
        {"reset_every": 2},
    ],
)
def test_a_request_that_sets_a_parameter_of_the_paper_gets_its_selection(field):
    params = params_of(**field)
    assert (params.selection, params.max_branches) == ("paper", 1)
    assert params.alpha == field.get("alpha", 0.4)


def test_naming_an_ngram_model_changes_no_selection():
    for model in ("mail", {"mail": 0.7, "code": 0.3}):
        params = params_of(ngram_model=model)
        assert (params.selection, params.alpha, params.tau, params.max_branches) == ("distinct", 0.2, 1.0, 3)
        assert params_of(ngram_model=model, selection="paper").alpha == 0.4
        assert params_of(ngram_model=model, alpha=0.5).selection == "paper"
        assert params_of(ngram_model=model, selection="distinct", alpha=0.5).alpha == 0.5
    assert params_of(ngram_model=None).alpha == params_of().alpha == 0.0


def test_what_a_request_sets_wins():
    asked = replace(ASKED, selection="distinct", alpha=0.5, max_branches=1, min_probability=0.0)
    params = DISTINCT.params(asked)
    assert (params.selection, params.alpha, params.max_branches) == ("distinct", 0.5, 1)
    assert params.min_probability == 0.0  # 0 is a value, not absence
    assert DISTINCT.params(replace(ASKED, strategy="sample")).selection == "paper"
    assert params_of(selection="distinct", alpha=0.0).selection == "distinct"
    assert params_of(ngram_model=None).selection == "distinct"
    assert params_of(min_draft_tokens=2).min_draft_tokens == 2


def test_what_was_tuned_for_an_ngram_model_changes_no_selection():
    for selection in ("distinct", "paper"):
        drafting = DraftingDefaults.of(Settings(default_selection=selection)).with_tuning(Tuning(0.2, 0.3, 12))
        assert drafting.selection == selection
        assert (drafting.alpha, drafting.tau, drafting.candidates_per_draft) == (0.2, 0.3, 12)
    assert DraftingDefaults.of(Settings()).selection == "distinct"
