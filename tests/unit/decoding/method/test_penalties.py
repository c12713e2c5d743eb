"""Bias on tokens and penalties on a draft's own tokens."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from superdraft.decoding.errors import InvalidRequestError
from superdraft.decoding.method.penalties import apply_logit_bias, check_logit_bias, penalise
from superdraft.decoding.method.scoring import Candidates


def test_a_bias_is_added_to_its_token_alone_and_the_models_logits_stay():
    logits = torch.tensor([1.0, 2.0, 3.0])
    assert apply_logit_bias(logits, ((0, 2.5), (2, -1.0))).tolist() == [3.5, 2.0, 2.0]
    assert logits.tolist() == [1.0, 2.0, 3.0]


def test_every_row_of_a_batch_gets_it():
    assert apply_logit_bias(torch.zeros(2, 3), ((1, 1.0),)).tolist() == [[0, 1, 0], [0, 1, 0]]


def test_minus_100_forbids_a_token_however_likely_it_is():
    biased = apply_logit_bias(torch.tensor([500.0, 0.0, 0.0]), ((0, -100), (1, -99.5)))
    assert biased.tolist() == [-math.inf, -99.5, 0.0]


def test_no_bias_changes_nothing():
    assert apply_logit_bias(torch.tensor([1.0, 2.0]), ()).tolist() == [1.0, 2.0]


def test_a_small_bias_is_not_lost_in_low_precision():
    biased = apply_logit_bias(torch.full((2,), 30.0, dtype=torch.bfloat16), ((1, 0.01),))
    assert biased[1] - biased[0] == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("token_id", [3, -1])
def test_a_token_outside_the_vocabulary_is_refused_by_name_with_the_limit(token_id):
    for refuse in (
        lambda: check_logit_bias(((0, 1.0), (token_id, 1.0)), 3),
        lambda: apply_logit_bias(torch.zeros(1, 3), ((token_id, 1.0),)),
    ):
        with pytest.raises(InvalidRequestError, match=rf"token {token_id}, .* 0 to 2") as caught:
            refuse()
        assert caught.value.param == "logit_bias"
    check_logit_bias(((2, 1.0),), 3)


CANDIDATES = Candidates([7, 3, 5], np.array([2.0, 1.5, 1.0]), np.array([-0.5, -1.0, -1.5]))


def test_penalties_follow_the_definition_and_put_the_likeliest_first():
    changed = penalise(CANDIDATES, [7, 7, 3, 9], frequency_penalty=0.25, presence_penalty=0.5)
    # 7: 2 - 2 * 0.25 - 0.5; 3: 1.5 - 0.25 - 0.5; 5: as it was.
    assert changed.token_ids == [7, 5, 3]
    assert changed.logits.tolist() == [1.0, 1.0, 0.75]
    assert changed.logprobs.tolist() == [-0.5, -1.5, -1.0]


def test_a_draft_without_these_tokens_and_penalties_of_0_change_nothing():
    for changed in (penalise(CANDIDATES, [1, 2], 2.0, 2.0), penalise(CANDIDATES, [7, 3, 5], 0.0, 0.0)):
        assert changed.token_ids == CANDIDATES.token_ids
        assert changed.logits.tolist() == CANDIDATES.logits.tolist()


def test_a_negative_penalty_favours_repetition():
    assert penalise(CANDIDATES, [5], 0.0, -2.0).token_ids == [5, 7, 3]


@given(
    st.lists(st.integers(0, 9), max_size=8),
    st.floats(-2, 2),
    st.floats(-2, 2),
    st.lists(st.tuples(st.integers(0, 9), st.floats(-20, 20)), min_size=1, max_size=6, unique_by=lambda pair: pair[0]),
)
def test_ids_logits_and_logprobs_stay_together(draft, frequency, presence, tokens):
    tokens = sorted(tokens, key=lambda pair: -pair[1])
    logits = np.array([value for _, value in tokens])
    before = Candidates([i for i, _ in tokens], logits, logits - 30)
    after = penalise(before, draft, frequency, presence)
    assert sorted(after.logits, reverse=True) == after.logits.tolist()
    old = dict(tokens)
    for token_id, logit, logprob in zip(after.token_ids, after.logits, after.logprobs, strict=True):
        count = draft.count(token_id)
        assert logit == pytest.approx(old[token_id] - count * frequency - (presence if count else 0))
        assert logprob == old[token_id] - 30
    assert len(after.token_ids) == len(tokens)
