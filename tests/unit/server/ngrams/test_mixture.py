"""Mixtures of n-gram models, against the formula."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from superdraft.server.ngrams.mixture import MixtureScorer

LOGPROBS = st.one_of(st.just(-math.inf), st.floats(min_value=-2000, max_value=0))
WEIGHTS = st.floats(min_value=0.001, max_value=1000)


class TableScorer:
    """Returns fixed log-probabilities. A state is the tuple of the last tokens."""

    def __init__(self, logprobs, order=3):
        self.logprobs = logprobs
        self.order = order
        self.calls = []

    def initial_state(self, token_ids):
        return tuple(token_ids[-(self.order - 1) :])

    def score(self, states, candidates):
        self.calls.append(states)
        rows = {}
        for state, token_ids in zip(states, candidates, strict=True):
            rows.setdefault((state, id(token_ids)), [self.logprobs[token_id] for token_id in token_ids])
        return [rows[state, id(token_ids)] for state, token_ids in zip(states, candidates, strict=True)]

    def advance(self, state, token_id):
        return (*state, token_id)[-(self.order - 1) :]


def exact(weights, logprobs):
    """The formula with the largest term factored out, so that nothing underflows."""
    largest = max(logprobs)
    if largest == -math.inf:
        return -math.inf
    return largest + math.log(
        math.fsum(
            weight / math.fsum(weights) * math.exp(p - largest) for weight, p in zip(weights, logprobs, strict=True)
        )
    )


@given(st.lists(st.tuples(WEIGHTS, st.lists(LOGPROBS, min_size=4, max_size=4)), min_size=1, max_size=4))
@example([(1.0, [-math.inf] * 4), (1.0, [-math.inf, 0.0, -1.0, -2000.0])])
@example([(0.7, [-800.0, -1.0, -1.0, -1.0]), (0.3, [-801.0, -1.0, -1.0, -1.0])])  # a plain sum would be zero
def test_mixture_is_the_weighted_mean_of_probabilities(parts):
    mixture = MixtureScorer([(TableScorer(logprobs), weight) for weight, logprobs in parts])
    (row,) = mixture.score([mixture.initial_state([1, 2])], [range(4)])
    for token_id, logprob in enumerate(row):
        expected = exact([weight for weight, _ in parts], [logprobs[token_id] for _, logprobs in parts])
        assert logprob == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_a_state_is_that_of_every_part():
    mixture = MixtureScorer([(TableScorer([0.0], order=2), 1), (TableScorer([0.0], order=4), 1)])
    assert mixture.order == 4
    state = mixture.initial_state([5, 6, 7, 8])
    assert state == ((8,), (6, 7, 8))
    child = mixture.advance(state, 9)
    assert child == ((9,), (7, 8, 9))
    assert state == ((8,), (6, 7, 8))
    assert hash(mixture.initial_state([1, 6, 7, 8])) == hash(state)


def test_each_part_is_asked_once_and_equal_rows_are_mixed_once():
    first, second = TableScorer([-1.0, -2.0]), TableScorer([-3.0, -0.5])
    mixture = MixtureScorer([(first, 3), (second, 1)])
    state, other, candidates = mixture.initial_state([1, 2]), mixture.initial_state([3, 4]), [0, 1]
    rows = mixture.score([state, other, state], [candidates] * 3)
    assert [len(part.calls) for part in (first, second)] == [1, 1]
    assert rows[0] is rows[2]
    assert rows[0] == rows[1]


def test_drafts_with_other_candidates_are_not_mixed_up():
    mixture = MixtureScorer([(TableScorer([-1.0, -2.0, -3.0]), 1), (TableScorer([-1.0, -2.0, -3.0]), 1)])
    state = mixture.initial_state([1, 2])
    assert mixture.score([state, state], [[0, 2], [1]]) == [
        [pytest.approx(-1.0), pytest.approx(-3.0)],
        [pytest.approx(-2.0)],
    ]


@pytest.mark.parametrize("weights", [[], [0.0], [1.0, -1.0], [math.inf], [math.nan]])
def test_weights_that_make_no_mixture_are_refused(weights):
    with pytest.raises(ValueError, match="positive"):
        MixtureScorer([(TableScorer([0.0]), weight) for weight in weights])
