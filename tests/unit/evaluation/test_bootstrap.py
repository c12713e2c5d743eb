import math

import numpy as np
import pytest

from superdraft.evaluation.measures import bootstrap
from superdraft.evaluation.measures.bootstrap import Interval, as_ratios, interval, paired_difference


def test_a_mean_and_its_bounds():
    values = np.random.default_rng(1).normal(5, 2, size=400)
    found = interval(as_ratios(values))
    assert found.value == pytest.approx(values.mean())
    # Of a mean the bootstrap's bounds are those of the normal distribution.
    half = 1.96 * values.std() / math.sqrt(400)
    assert found.low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_missing_values_do_not_count():
    assert interval(as_ratios(np.array([1.0, math.nan, 3.0]))).value == 2
    nothing = interval(as_ratios(np.array([math.nan, math.nan])))
    assert math.isnan(nothing.value)
    assert math.isnan(nothing.low)
    assert math.isnan(interval(np.empty((0, 2))).value)


def test_a_ratio_is_of_sums_not_a_mean_of_ratios():
    assert interval(np.array([[1.0, 10.0], [9.0, 10.0], [0.0, 80.0]])).value == pytest.approx(0.1)


def test_no_spread_no_width():
    assert interval(as_ratios(np.full(20, 0.25))) == Interval(0.25, 0.25, 0.25)


def test_pairing_removes_what_both_have_in_common():
    rng = np.random.default_rng(2)
    hard = rng.normal(0, 10, size=300)  # prompts differ much more than decoders
    ours, theirs = as_ratios(hard + 0.5 + rng.normal(0, 0.1, size=300)), as_ratios(hard)
    difference = paired_difference(ours, theirs)
    assert 0.45 < difference.low < difference.value < difference.high < 0.55
    assert interval(ours).low < interval(theirs).high  # which their own bounds cannot show


def test_bounds_are_repeatable():
    ratios = as_ratios(np.arange(50.0))
    first = interval(ratios)
    bootstrap._resamples.cache_clear()
    assert interval(ratios) == first
