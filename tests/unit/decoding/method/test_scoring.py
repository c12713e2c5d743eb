"""The cut to m candidates, the tempered distribution, checks of parameters."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from superdraft.decoding.errors import InvalidRequestError
from superdraft.decoding.method.scoring import cut, tempered_logprobs
from superdraft.decoding.params import GenerationParams

NONE = torch.tensor([], dtype=torch.long)


def test_each_row_has_its_most_probable_tokens_with_their_logprobs():
    logits = torch.tensor([[1.0, 3.0, 2.0, 0.0], [0.0, 1.0, 2.0, 3.0]])
    expected = torch.log_softmax(logits[1], dim=-1)[[3, 2, 1]].tolist()
    candidates = cut(logits, 3, NONE)
    assert candidates.token_ids.tolist() == [[1, 2, 0], [3, 2, 1]]
    assert candidates.logits.tolist() == [[3, 2, 1], [3, 2, 1]]
    assert candidates.logprobs[1].tolist() == pytest.approx(expected, abs=1e-6)


def test_suppressed_tokens_are_left_out_but_count_in_the_models_distribution():
    candidates = cut(torch.tensor([[5.0, 4.0, 3.0]]), 3, torch.tensor([0]))
    assert candidates.token_ids.tolist() == [[1, 2]]
    assert candidates.logprobs[0, 0] == pytest.approx(float(torch.log_softmax(torch.tensor([5.0, 4.0, 3.0]), 0)[1]))


def test_a_row_that_is_not_numbers_is_detected_and_does_not_change_the_next():
    logits = torch.tensor([[float("nan"), 1.0], [0.0, 1.0], [float("inf"), 0.0], [float("-inf"), 0.0]])
    candidates = cut(logits, 2, NONE)
    assert [candidates.are_numbers(row) for row in range(4)] == [False, True, False, True]
    assert candidates.token_ids[1].tolist() == [1, 0]
    assert candidates.logits[3].tolist() == [0.0, -np.inf]


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("vocab_size", [1000, 1024, 1025])
def test_nan_of_either_sign_is_detected_and_ends_no_other_row(vocab_size, sign):
    """On x86, 0 / 0 is a NaN with the sign bit set."""
    healthy = np.arange(vocab_size, dtype=np.float32)
    all_nan = np.full(vocab_size, np.copysign(np.nan, sign), dtype=np.float32)
    last_nan = np.append(healthy[:-1], all_nan[-1])
    candidates = cut(torch.from_numpy(np.stack([all_nan, last_nan, healthy])), 1, NONE)
    assert [candidates.are_numbers(row) for row in range(3)] == [False, False, True]
    assert candidates.token_ids[2].tolist() == [vocab_size - 1]


@given(st.integers(0, 2**32 - 1), st.sampled_from([256, 384, 1000, 4096]), st.integers(1, 40))
def test_the_cut_equals_a_sort_whatever_the_sizes(seed, vocab_size, num):
    rng = np.random.default_rng(seed)
    row = rng.permutation(vocab_size).astype(np.float32)  # no ties
    candidates = cut(torch.from_numpy(np.stack([row, row[::-1]])), num, torch.tensor([3]))
    for found, values in zip(candidates.token_ids, (row, row[::-1]), strict=True):
        expected = [int(i) for i in np.argsort(-values) if i != 3][:num]
        assert found.tolist() == expected


@given(st.integers(0, 2**32 - 1), st.sampled_from([5, 300, 1000, 4096]), st.integers(1, 40), st.integers(1, 4))
def test_of_equal_logits_the_lower_id_comes_first_on_every_path(seed, vocab_size, num, num_values):
    rows = np.random.default_rng(seed).integers(-num_values, num_values, (2, vocab_size)).astype(np.float32)
    candidates = cut(torch.from_numpy(rows.copy()), num, NONE)
    for found, values in zip(candidates.token_ids, rows, strict=True):
        assert found.tolist() == np.argsort(-values, kind="stable")[:num].tolist()


def test_logits_that_are_all_high_do_not_overflow_the_normaliser():
    candidates = cut(torch.full((1, 50_000), 300.0), 1, NONE)
    assert candidates.logprobs[0, 0] == pytest.approx(-np.log(50_000), abs=1e-3)


def test_cutting_after_the_softmax_is_the_same_as_a_softmax_over_the_cut():
    logits = torch.tensor([2.0, -1.0, 0.5, 3.0, 1.0])
    probs = torch.softmax(logits / 0.3, 0)
    kept = torch.topk(probs, 3)
    expected = (kept.values / kept.values.sum()).log()
    assert tempered_logprobs(logits[kept.indices].double().numpy(), 0.3) == pytest.approx(expected.numpy(), abs=1e-5)


def test_a_tiny_temperature_does_not_underflow_to_nothing():
    assert tempered_logprobs(np.array([10.0, -40.0]), 0.001).tolist() == [0.0, -50_000.0]


def test_m_is_k_squared_by_default():
    assert GenerationParams(num_drafts=4).num_candidates == 16
    assert GenerationParams(num_drafts=4, candidates_per_draft=5).num_candidates == 5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_drafts", 0),
        ("num_drafts", True),
        ("num_drafts", 2.0),
        ("max_tokens", -1),
        ("alpha", 1.01),
        ("alpha", float("nan")),
        ("tau", 0.0),
        ("tau", float("inf")),
        ("candidates_per_draft", 0),
        ("penalty", -1),
        ("selection", "magic"),
        ("stop", ("",)),
        ("verify_top", 21),
    ],
)
def test_bad_parameters_are_refused_by_name(name, value):
    with pytest.raises(InvalidRequestError) as caught:
        GenerationParams(**{name: value})
    assert caught.value.param == {"verify_top": "logprobs"}.get(name, name)
    assert "must be" in str(caught.value)


@pytest.mark.parametrize(
    ("chosen", "told"),
    [({"strategy": "sample"}, "strategy sample"), ({"selection": "paper"}, "selection paper")],
)
def test_a_refusal_names_what_the_request_chose(chosen, told):
    with pytest.raises(InvalidRequestError, match=f"^max_branches must be 1 with {told}, got 2.$"):
        GenerationParams(**chosen, max_branches=2)


def test_a_seed_has_64_bits():
    assert GenerationParams(seed=-(2**63)).seed == -(2**63)
    for seed in (2**63, -(2**63) - 1):
        with pytest.raises(InvalidRequestError, match="64 bits"):
            GenerationParams(seed=seed)
