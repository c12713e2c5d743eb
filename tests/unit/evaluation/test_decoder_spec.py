import pytest

from superdraft.evaluation.decoders.decoder_spec import parse_decoder
from superdraft.server.drafting import DraftingDefaults
from superdraft.server.errors import CommandError
from superdraft.server.settings import Settings
from superdraft.server.wires.native.mapping import generation_params
from superdraft.server.wires.native.schemas import DraftsRequest

SHARED = {"num_drafts": 3, "max_tokens": 10}
TUNED = DraftingDefaults(alpha=0.3, tau=0.2, candidates_per_draft=12)


def params(text, shared=SHARED):
    spec = parse_decoder(text, "auto", shared)
    return spec.params(TUNED, Settings())


def test_served_is_the_default_request():
    drafting = DraftingDefaults.of(Settings())
    spec = parse_decoder("served k=5 n=7", "auto", {})
    expected = generation_params(
        DraftsRequest(prompt="x", num_drafts=5, max_tokens=7), drafting, token_healing=Settings().token_healing
    )
    assert spec.params(drafting, Settings()) == expected
    assert (expected.selection, expected.max_branches, expected.token_healing) == ("distinct", 8, True)
    assert not spec.params(drafting, Settings(token_healing=False)).token_healing


def test_healing_is_the_servers_unless_a_decoder_says_otherwise():
    assert [params(text).token_healing for text in ("served", "paper", "nucleus", "greedy")] == [True] * 4
    assert not params("served healing=off").token_healing
    spec = parse_decoder("served healing=on", "auto", SHARED)
    assert spec.params(TUNED, Settings(token_healing=False)).token_healing


def test_a_decoder_that_names_an_ngram_model_is_a_request_that_does():
    drafting = DraftingDefaults.of(Settings())

    def selection(text):
        spec = parse_decoder(text, "auto", SHARED)
        return spec.params(drafting, Settings()).selection

    named = [selection(text) for text in ("served", "served ngram=none", "served ngram=mine", "served alpha=0.1")]
    assert named == ["distinct", "distinct", "distinct", "paper"]
    assert selection("paper") == "paper"
    assert selection("paper selection=distinct max_branches=3") == "distinct"


def test_what_each_kind_means():
    superposed = params("paper")
    assert (superposed.strategy, superposed.num_drafts, superposed.alpha, superposed.candidates_per_draft) == (
        "superposed",
        3,
        0.3,
        12,
    )
    nucleus = params("nucleus")
    assert (nucleus.strategy, nucleus.num_rows, nucleus.temperature, nucleus.top_p) == ("sample", 3, 0.6, 0.9)
    assert params("greedy").num_drafts == 1
    both = params("nucleus+superposed branches=4 k=2")
    assert (both.strategy, both.num_rows, both.drafts_per_branch) == ("sample+superposed", 4, 2)


def test_options_win_over_shared_ones_and_those_over_tuned_ones():
    shared = {**SHARED, "alpha": 0.5}
    assert params("paper", shared).alpha == 0.5
    assert params("paper alpha=0.1 m=5 n=7", shared).alpha == 0.1
    assert params("paper m=5").candidates_per_draft == 5
    assert params("paper n=7").max_tokens == 7


def test_names_and_ngram_models():
    spec = parse_decoder("mine: paper ngram=other", "auto", SHARED)
    assert (spec.name, spec.ngram) == ("mine", "other")
    assert parse_decoder("paper", "auto", SHARED).ngram == "auto"
    # Where no n-gram model has a say, none need be loaded.
    assert [parse_decoder(text, "auto", SHARED).ngram for text in ("greedy", "nucleus")] == ["none"] * 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("magic", "'magic' is not a decoder; choose one of served, paper"),
        ("", "'' is not a decoder"),
        ("paper colour=red", "'colour=red' is not option=value"),
        ("paper alpha", "'alpha' is not option=value"),
        ("paper alpha=much", "decoder 'paper alpha=much': alpha must be a number"),
        ("served healing=maybe", "token_healing should be a valid boolean"),
        ("served prompt=x", "'prompt=x' is not option=value"),
        ("nucleus max_branches=2", "decoder 'nucleus max_branches=2': max_branches must be 1 with"),
        ("paper k=1,3", "num_drafts"),
        ("paper alpha=2", "decoder 'paper alpha=2': alpha .* less than or equal to 1, got 2"),
    ],
)
def test_errors(text, message):
    with pytest.raises(CommandError, match=message):
        params(text)
