"""Nucleus sampling, compared with a brute-force nucleus; generators and weighted draws."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from superdraft.decoding.method.sampling import choose_by_weight, make_generator, nucleus_sample

INF = math.inf
HIGHEST = torch.tensor([1 - 2**-53], dtype=torch.float64)


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
    """Tokens of `num` equal rows."""
    rows = torch.tensor(logits, dtype=torch.float32).expand(num, -1)
    uniforms = torch.from_numpy(make_generator(seed, 0).random(num))
    return nucleus_sample(rows, [temperature] * num, [top_p] * num, uniforms).tolist()


def last_of_nucleus(logits, top_p):
    """The least probable token of the nucleus: the one that the highest random number draws."""
    return int(nucleus_sample(torch.as_tensor(logits).unsqueeze(0), [1.0], [top_p], HIGHEST))


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 0.75), (0.5, 0.9), (2.0, 0.5), (1.0, 1.0), (1.0, 1e-6)])
def test_frequencies_are_those_of_the_nucleus(temperature, top_p):
    logits = [0.3, 2.0, -1.0, 1.5, 0.0, 1.0, -INF]
    expected = nucleus_by_hand(logits, temperature, top_p)
    num = 4000
    counts = np.bincount(draw(logits, temperature, top_p, num), minlength=len(logits))
    for token_id, count in enumerate(counts):
        p = expected.get(token_id, 0.0)
        # Five standard deviations: a wrong nucleus or temperature is off by more than ten.
        assert abs(count - num * p) <= 5 * math.sqrt(num * p * (1 - p)), token_id


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 0.75), (0.5, 0.9), (2.0, 0.5), (1.0, 1.0), (1.0, 1e-6)])
@pytest.mark.parametrize("preselected", [(64, 1024), (3,), (2, 5)])
def test_shares_are_right_to_one_draw_however_many_tokens_are_preselected(monkeypatch, temperature, top_p, preselected):
    monkeypatch.setattr("superdraft.decoding.method.sampling._PRESELECTED", preselected)
    num = 2000
    # An even grid instead of random numbers: the shares must then be right to one draw in `num`.
    uniforms = (torch.arange(num, dtype=torch.float64) + 0.5) / num
    for row in ([0.3, 2.0, -1.0, 1.5, 0.0, 1.0, -INF], np.random.default_rng(7).normal(size=7).tolist()):
        chosen = nucleus_sample(torch.tensor(row).expand(num, -1), [temperature] * num, [top_p] * num, uniforms)
        counts = np.bincount(chosen.numpy(), minlength=len(row))
        expected = nucleus_by_hand(row, temperature, top_p)
        for token_id, count in enumerate(counts):
            assert abs(count - num * expected.get(token_id, 0.0)) <= 1.01, token_id


@pytest.mark.parametrize("num_tokens", [5, 3000])
@given(data=st.data())
def test_the_nucleus_is_the_smallest_set_that_reaches_top_p_however_many_tokens_it_takes(num_tokens, data):
    seed = data.draw(st.integers(0, 999))
    # Far from any sum of probabilities, so that rounding cannot decide.
    top_p = data.draw(st.sampled_from([0.1003, 0.5003, 0.9003, 0.9903]))
    logits = torch.from_numpy(np.random.default_rng(seed).normal(size=num_tokens)).float()
    expected = nucleus_by_hand(logits.tolist(), 1.0, top_p)
    assert last_of_nucleus(logits, top_p) == list(expected)[-1]


@pytest.mark.parametrize("num_tokens", [4, 4000])
def test_equal_logits_enter_the_nucleus_by_their_id(num_tokens):
    drawn = draw([0.0] * num_tokens, 1.0, 0.5, 300)
    assert max(drawn) < num_tokens // 2
    assert len(set(drawn)) > num_tokens // 40


def test_a_tie_across_the_end_of_the_preselection_is_seen():
    # 1,000 likely tokens at the end of the vocabulary, and a tie that goes past the preselected ones.
    logits = [0.0] * 2000 + [1.0] * 1000
    total = 2000 + 1000 * math.e
    assert last_of_nucleus(logits, (1000 * math.e + 9.5) / total) == 9


def test_temperature_0_takes_the_most_probable_token_and_the_first_of_equals():
    assert draw([1.0, 3.0, 3.0, 2.0], 0, 1.0, 3) == [1, 1, 1]


def test_a_tiny_temperature_is_near_greedy_and_does_not_overflow():
    assert set(draw([100.0, -90.0, 99.9], 1e-30, 1.0, 20)) == {0}


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (1.0, 0.5), (0, 1.0), (2.0, 0.999)])
def test_a_single_allowed_token_is_taken(temperature, top_p):
    assert set(draw([-INF, -INF, -4.0, -INF], temperature, top_p, 20)) == {2}


def test_each_row_of_a_batch_has_its_own_temperature_and_nucleus():
    rng = np.random.default_rng(1)
    peaked, flat = rng.normal(size=3000) * 5, rng.normal(size=3000) * 0.01
    rows = torch.from_numpy(np.stack([peaked, flat, peaked, flat, peaked])).float()
    temperatures, top_ps = [1.0, 1.0, 0, 2.0, 0.5], [0.9, 0.99, 1.0, 1.0, 0.3]
    uniforms = torch.from_numpy(rng.random(5))
    together = nucleus_sample(rows, temperatures, top_ps, uniforms).tolist()
    alone = [
        int(nucleus_sample(rows[i : i + 1], [temperatures[i]], [top_ps[i]], uniforms[i : i + 1])) for i in range(5)
    ]
    assert together == alone
    assert together[2] == int(peaked.argmax())


def test_a_seed_gives_the_same_tokens_again_and_another_seed_others():
    logits = np.random.default_rng(0).normal(size=50).tolist()
    assert draw(logits, 1.0, 0.9, 20, seed=7) == draw(logits, 1.0, 0.9, 20, seed=7)
    assert draw(logits, 1.0, 0.9, 20, seed=7) != draw(logits, 1.0, 0.9, 20, seed=8)


def test_branches_of_a_request_draw_different_numbers():
    first = {make_generator(seed, branch).random() for seed in (0, 1, -1, 2**63 - 1) for branch in range(4)}
    assert len(first) == 16
    assert make_generator(-5, 2).random() == make_generator(-5, 2).random()
    assert make_generator(None, 0).random() != make_generator(None, 0).random()


def test_a_draft_is_drawn_by_weight_and_never_with_weight_0():
    rng = make_generator(3, 0)
    counts = np.bincount([choose_by_weight([0.0, 3.0, 1.0, 0.0], rng) for _ in range(2000)], minlength=4)
    assert counts[0] == counts[3] == 0
    assert counts[1] == pytest.approx(1500, abs=100)
