"""Confidence bounds by the percentile bootstrap (Efron, 1979) over prompts.

Every figure is a ratio of sums over the prompts. For a mean the denominators are 1; a prompt without the figure has
0 / 0.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 2000
LEVEL = 0.95

Ratios = NDArray[np.float64]
"""Numerator and denominator of each prompt, shape [n, 2]."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure and its confidence bounds; NaN if no prompt has the figure."""

    value: float
    low: float
    high: float


def as_ratios(values: NDArray[np.float64]) -> Ratios:
    """Ratios whose figure is the mean of `values`, shape [n]; a NaN counts as a prompt without the figure."""
    known = ~np.isnan(values)
    return np.stack([np.where(known, values, 0.0), known.astype(np.float64)], axis=1)


def interval(ratios: Ratios) -> Interval:
    """The ratio of the sums, with its bounds."""
    return _interval(ratios[:, :, np.newaxis], np.array([1.0]))


def paired_difference(ours: Ratios, theirs: Ratios) -> Interval:
    """Our figure minus theirs, with bounds. Both are resampled with the same prompts and must have the same order."""
    return _interval(np.stack([ours, theirs], axis=2), np.array([1.0, -1.0]))


@lru_cache(maxsize=8)
def _resamples(num_prompts: int) -> NDArray[np.float64]:
    """The number of times each prompt is drawn in each resample, shape [resamples, n]."""
    rng = np.random.default_rng(0)
    counts = rng.multinomial(num_prompts, np.full(num_prompts, 1 / num_prompts), size=NUM_RESAMPLES)
    return counts.astype(np.float64)


def _interval(ratios: NDArray[np.float64], signs: NDArray[np.float64]) -> Interval:
    """The signed sum of the figures of ratios of shape [n, 2, figures], with bounds."""
    num_prompts, _, num_figures = ratios.shape
    totals = ratios.sum(axis=0)
    if not totals[1].all():
        return Interval(np.nan, np.nan, np.nan)
    sums = (_resamples(num_prompts) @ ratios.reshape(num_prompts, -1)).reshape(-1, 2, num_figures)
    with np.errstate(invalid="ignore", divide="ignore"):
        samples = (sums[:, 0] / sums[:, 1]) @ signs
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.nanpercentile(samples, [tail, 100 - tail])
    return Interval(float((totals[0] / totals[1]) @ signs), float(low), float(high))
