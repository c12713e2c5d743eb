import math

import pytest

from superdraft.ngram_models.scoring.frequency_table import PUBLISHED_WEIGHTS, FrequencyTableScorer

# Counted by hand. After 1: 2 three times (one of them in "1 2 4"), 4 once. After (1, 2): 3 twice, 4 once.
CORPUS = [[1, 2, 3, 1, 2, 3], [1, 2, 4], [1, 4]]


def test_the_published_model_has_order_six():
    scorer = FrequencyTableScorer(CORPUS)
    assert PUBLISHED_WEIGHTS == (0.01, 0.04, 0.15, 0.18, 0.12)
    assert scorer.order == 6


@pytest.mark.parametrize(
    ("context", "token_id", "probability"),
    [
        ([1], 2, 0.01 * 3 / 4),
        ([1], 4, 0.01 * 1 / 4),
        ([1, 2], 3, 0.01 * 2 / 3 + 0.04 * 2 / 3),
        ([9, 1, 2], 3, 0.01 * 2 / 3 + 0.04 * 2 / 3),  # an unseen longer context adds nothing
        ([1, 2, 3], 1, 0.01 + 0.04 + 0.15),  # not the next sequence's 1: each context is followed once
        ([3, 1, 2], 3, 0.01 * 2 / 3 + 0.04 * 2 / 3 + 0.15),
        ([1, 2, 3, 1, 2], 3, 0.01 * 2 / 3 + 0.04 * 2 / 3 + 0.15 + 0.18 + 0.12),
        ([7, 1, 2, 3, 1, 2], 3, 0.01 * 2 / 3 + 0.04 * 2 / 3 + 0.15 + 0.18 + 0.12),  # order 6: five tokens of context
    ],
)
def test_probabilities_equal_those_computed_by_hand(context, token_id, probability):
    scorer = FrequencyTableScorer(CORPUS)
    scores = scorer.score([scorer.initial_state(context)], [[token_id]])
    assert scores == [[pytest.approx(math.log(probability))]]


@pytest.mark.parametrize(("context", "token_id"), [([2], 1), ([4], 1), ([], 1), ([9], 1), ([1], 9)])
def test_unseen_ngrams_have_no_support(context, token_id):
    scorer = FrequencyTableScorer(CORPUS)
    assert scorer.score([scorer.initial_state(context)], [[token_id]]) == [[-math.inf]]


def test_ends_of_text_are_counted_and_not_crossed():
    scorer = FrequencyTableScorer([[1, 0, 2, 1, 9, 1, 3]], end_of_text_ids={0, 9})
    after_one = scorer.score([scorer.initial_state([1])], [[0, 9, 3, 2]])[0]
    assert after_one == [pytest.approx(math.log(0.01 * p)) for p in (2 / 3, 2 / 3, 1 / 3)] + [-math.inf]
    assert scorer.initial_state([1, 0]) == scorer.advance((1,), 9) == ()


def test_states_are_the_last_tokens_and_each_draft_has_its_own():
    scorer = FrequencyTableScorer(CORPUS, weights=(0.5, 0.5))
    parent = scorer.initial_state([9, 9, 1, 2])
    assert parent == (1, 2)
    states = [scorer.advance(parent, 3), scorer.advance(parent, 4)]
    assert states == [(2, 3), (2, 4)]
    assert scorer.score(states, [[1], [1]]) == [[pytest.approx(math.log(1.0))], [-math.inf]]
