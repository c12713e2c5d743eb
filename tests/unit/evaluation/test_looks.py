"""What a shown draft costs and saves."""

import pytest

from superdraft.evaluation.measures.looks import Look, best_of, effect_of, keys_saved


@pytest.mark.parametrize(
    ("draft", "continuation", "saved"),
    [
        (" for your help", " for your mail", 8),  # " for your" with one key
        ("ing to", "ing to you", 5),
        (" to", " for", 0),
        ("", " for", 0),
        ("for", " for", 0),  # two words in one
    ],
)
def test_keys_saved(draft, continuation, saved):
    assert keys_saved(draft, continuation) == saved


def test_the_best_draft_that_is_probable_enough_is_looked_at():
    places = [[Look(0.6, 5), Look(0.3, 0)], [Look(0.2, 0), Look(0.1, 9)], []]
    effect = effect_of(0.0, places, 1.0)
    assert effect.shown.value == pytest.approx(2 / 3)
    assert effect.precision.value == pytest.approx(1 / 2)
    assert effect.saved.value == pytest.approx(5 / 3)
    assert effect.net.value == pytest.approx((5 - 2) / 3)
    silent = effect_of(0.3, places, 1.0)
    assert silent.shown.value == pytest.approx(1 / 3)
    assert silent.net.value == pytest.approx((5 - 1) / 3)
    assert best_of([effect, silent]) == silent


def test_of_equals_the_lowest_minimum_is_best():
    places = [[Look(0.6, 5)]]
    assert best_of([effect_of(minimum, places, 1.0) for minimum in (0.0, 0.5, 0.6)]).probability == 0.0
