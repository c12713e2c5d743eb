import pytest

from superdraft.evaluation.decoder_spec import Sweep, parse_decoders
from superdraft.server.errors import CommandError

SHARED = {"num_drafts": [3], "max_tokens": [10], "alpha": []}
TUNED = {"alpha": 0.3, "tau": 0.2, "candidates_per_draft": 12}


def params(text, shared=SHARED):
    (spec,) = parse_decoders(text, "auto", shared)
    return spec.params(TUNED)


def test_what_each_kind_means():
    superposed = params("superposed")
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
    shared = {**SHARED, "alpha": [0.5]}
    assert params("superposed", shared).alpha == 0.5
    assert params("superposed alpha=0.1 m=5 n=7", shared).alpha == 0.1
    assert params("superposed m=5").candidates_per_draft == 5
    assert params("superposed n=7").max_tokens == 7


def test_names_and_ngram_models():
    (spec,) = parse_decoders("mine: superposed ngram=a=0.7,b=0.3", "auto", SHARED)
    assert (spec.name, spec.ngram) == ("mine", "a=0.7,b=0.3")
    assert parse_decoders("superposed", "auto", SHARED)[0].ngram == "auto"
    # Where no n-gram model has a say, none need be loaded.
    assert [parse_decoders(text, "auto", SHARED)[0].ngram for text in ("superposed alpha=0", "nucleus")] == ["none"] * 2


def test_several_values_make_several_decoders():
    one, three = parse_decoders("superposed k=1,3", "auto", SHARED)
    assert [spec.name for spec in (one, three)] == ["superposed num_drafts=1", "superposed num_drafts=3"]
    assert [spec.params(TUNED).num_drafts for spec in (one, three)] == [1, 3]
    assert three.sweep == Sweep("superposed", "num_drafts", 3.0)
    swept = parse_decoders("nucleus", "auto", {**SHARED, "num_drafts": [1, 5]})
    assert [spec.name for spec in swept] == ["nucleus num_drafts=1", "nucleus num_drafts=5"]
    assert len(parse_decoders("greedy", "auto", {**SHARED, "num_drafts": [1, 5]})) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("magic", "'magic' is no decoder; there are superposed"),
        ("", "'' is no decoder"),
        ("superposed colour=red", "'colour=red' is not option=value"),
        ("superposed alpha", "'alpha' is not option=value"),
        ("superposed alpha=much", "'alpha=much' needs a number"),
        ("superposed k=1,3 alpha=0,0.5", "only one option may have several values"),
        ("superposed alpha=2", "alpha must be a number from 0 to 1, got 2.0"),
        ("beam k=1", "beam needs num_drafts of at least 2"),
    ],
)
def test_errors(text, message):
    with pytest.raises(CommandError, match=message):
        params(text)
