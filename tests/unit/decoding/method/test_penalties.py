"""Logit biases and repetition penalties."""

import math

import numpy as np
import pytest
import torch

from superdraft.decoding.errors import InvalidRequestError
from superdraft.decoding.method.penalties import apply_logit_bias, check_logit_bias, penalise


def test_a_bias_is_added_to_its_token_alone_in_a_copy():
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


TOKEN_IDS = [7, 3, 5]
LOGITS = np.array([2.0, 1.5, 1.0])


def test_penalties_follow_the_definition_for_each_draft():
    changed = penalise(LOGITS, TOKEN_IDS, [[7, 7, 3, 9], [5]], frequency_penalty=0.25, presence_penalty=0.5)
    # First draft: 7: 2 - 2 * 0.25 - 0.5; 3: 1.5 - 0.25 - 0.5; 5: as it was.
    assert changed.tolist() == [[1.0, 0.75, 1.0], [2.0, 1.5, 0.25]]


def test_a_draft_without_these_tokens_and_penalties_of_0_change_nothing():
    assert penalise(LOGITS, TOKEN_IDS, [[1, 2]], 2.0, 2.0).tolist() == [LOGITS.tolist()]
    assert penalise(LOGITS, TOKEN_IDS, [[7, 3, 5]], 0.0, 0.0).tolist() == [LOGITS.tolist()]


def test_a_negative_penalty_favours_repetition():
    (changed,) = penalise(LOGITS, TOKEN_IDS, [[5]], 0.0, -2.0)
    assert TOKEN_IDS[int(changed.argmax())] == 5
