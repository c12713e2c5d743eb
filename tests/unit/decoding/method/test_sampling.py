"""Nucleus sampling against a brute-force nucleus; generators and weighted draws."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from superdraft.decoding.errors import SequenceFailedError
from superdraft.decoding.method.sampling import choose_by_weight, make_generator, nucleus_sample

INF = math.inf


def nucleus_by_hand(logits, temperature, top_p):
    """id -> probability, by the definition."""
    weights = [math.exp(x / temperature) for x in logits]
    total = math.fsum(weights)
    nucleus, mass = {}, 0.0
    for i in sorted(range(len(logits)), key=lambda i: (-logits[i], i)):
        nucleus[i] = weights[i] / total
        mass += nucleus[i]
        if mass >= top_p:
            break
    return {i: p / mass for i, p in nucleus.items()}


def draw(logits, temperature, top_p, num, seed=0):
    rng = make_generator(seed, 0)
    row = torch.tensor(logits, dtype=torch.float32)
    normaliser = float(row.logsumexp(0))
    return [nucleus_sample(row, normaliser, temperature, top_p, rng)[0] for _ in range(num)]


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 0.75), (0.5, 0.9), (2.0, 0.5), (1.0, 1.0), (1.0, 1e-6)])
def test_frequencies_are_those_of_the_nucleus(temperature, top_p):
    logits = [0.3, 2.0, -1.0, 1.5, 0.0, 1.0, -INF]
    expected = nucleus_by_hand(logits, temperature, top_p)
    num = 4000
    counts = np.bincount(draw(logits, temperature, top_p, num), minlength=len(logits))
    for token_id, count in enumerate(counts):
        p = expected.get(token_id, 0.0)
        # Five standard deviations: a wrong nucleus or temperature is off by tens of them.
        assert abs(count - num * p) <= 5 * math.sqrt(num * p * (1 - p)), token_id


class HighestNumber:
    """A generator that always draws the last index: the least probable token of the nucleus."""

    def choice(self, size, p):
        self.size = size
        return size - 1


@pytest.mark.parametrize("num_tokens", [5, 3000])
@given(data=st.data())
def test_the_nucleus_is_the_smallest_set_that_reaches_top_p_however_many_tokens_it_takes(num_tokens, data):
    seed = data.draw(st.integers(0, 999))
    # Far apart from any tie of the sums, so that rounding cannot decide.
    top_p = data.draw(st.sampled_from([0.1003, 0.5003, 0.9003, 0.9903]))
    logits = torch.from_numpy(np.random.default_rng(seed).normal(size=num_tokens)).float()
    expected = nucleus_by_hand(logits.tolist(), 1.0, top_p)
    rng = HighestNumber()
    token_id, _ = nucleus_sample(logits, 0.0, 1.0, top_p, rng)
    assert rng.size == len(expected)
    assert token_id == list(expected)[-1]


@pytest.mark.parametrize("num_tokens", [4, 4000])
def test_equal_logits_enter_the_nucleus_by_their_id(num_tokens):
    drawn = draw([0.0] * num_tokens, 1.0, 0.5, 300)
    assert max(drawn) < num_tokens // 2
    assert len(set(drawn)) > num_tokens // 40


def test_a_tie_across_the_end_of_the_preselection_is_seen():
    # 1,000 likely tokens at the end of the vocabulary, and a tie that goes past the preselected ones.
    logits = [0.0] * 2000 + [1.0] * 1000
    total = 2000 + 1000 * math.e
    rng = HighestNumber()
    token_id, _ = nucleus_sample(torch.tensor(logits), 0.0, 1.0, (1000 * math.e + 9.5) / total, rng)
    assert (rng.size, token_id) == (1010, 9)


def test_temperature_0_takes_the_most_probable_token_and_the_first_of_equals():
    assert draw([1.0, 3.0, 3.0, 2.0], 0, 1.0, 3) == [1, 1, 1]


def test_a_tiny_temperature_is_near_greedy_and_does_not_overflow():
    assert set(draw([100.0, -90.0, 99.9], 1e-30, 1.0, 20)) == {0}


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (1.0, 0.5), (0, 1.0), (2.0, 0.999)])
def test_a_single_allowed_token_is_taken(temperature, top_p):
    assert set(draw([-INF, -INF, -4.0, -INF], temperature, top_p, 20)) == {2}


def test_the_logprob_is_the_models_own_whatever_temperature_and_nucleus_are():
    row = torch.tensor([1.0, 2.0, 0.5])
    model = torch.log_softmax(row, 0)
    masked = row.index_fill(0, torch.tensor([1]), -INF)
    normaliser = float(row.logsumexp(0))
    for temperature in (0, 0.3, 1.0):
        token_id, logprob = nucleus_sample(masked, normaliser, temperature, 0.4, make_generator(0, 0))
        assert token_id == 0
        assert logprob == pytest.approx(float(model[0]))


def test_a_seed_gives_the_same_tokens_again_and_another_seed_others():
    logits = np.random.default_rng(0).normal(size=50).tolist()
    assert draw(logits, 1.0, 0.9, 20, seed=7) == draw(logits, 1.0, 0.9, 20, seed=7)
    assert draw(logits, 1.0, 0.9, 20, seed=7) != draw(logits, 1.0, 0.9, 20, seed=8)


@pytest.mark.parametrize("logits", [[math.nan, 1.0], [INF, 1.0], [-INF, -INF]])
@pytest.mark.parametrize("temperature", [0, 1.0])
def test_a_row_that_is_no_numbers_fails_its_request(logits, temperature):
    with pytest.raises(SequenceFailedError):
        draw(logits, temperature, 0.9, 1)


def test_branches_of_a_request_draw_different_numbers():
    first = {make_generator(seed, branch).random() for seed in (0, 1, -1, 2**63 - 1) for branch in range(4)}
    assert len(first) == 16
    assert make_generator(-5, 2).random() == make_generator(-5, 2).random()
    assert make_generator(None, 0).random() != make_generator(None, 0).random()


def test_a_draft_is_drawn_by_its_weight_and_never_one_of_weight_0():
    rng = make_generator(3, 0)
    counts = np.bincount([choose_by_weight([0.0, 3.0, 1.0, 0.0], rng) for _ in range(2000)], minlength=4)
    assert counts[0] == counts[3] == 0
    assert counts[1] == pytest.approx(1500, abs=100)
