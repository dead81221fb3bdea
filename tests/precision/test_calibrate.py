"""Calibrators against obvious implementations, known distributions, and the trap of many zeros."""

import math

import numpy as np
import pytest

from wetread.precision.calibrate import (
    divergences,
    entropy_threshold,
    percentile_threshold,
    threshold,
)
from wetread.precision.ranges import Histogram, TensorRange


def histogram_of(values, bins=4096):
    histogram = Histogram(bins)
    values = np.asarray(values, np.float32)
    histogram.update(values, float(np.abs(values).max()))
    return histogram


def slow_divergence(counts, kept, levels):
    """The definition, bin by bin."""
    p = [float(c) for c in counts[:kept]]
    p[-1] += float(sum(counts[kept:]))
    total = sum(p)
    members = [[] for _ in range(levels)]
    for j in range(kept):
        level = min(levels - 1, math.floor((j + 0.5) * (levels - 1) / kept + 0.5))
        members[level].append(j)
    q = [0.0] * kept
    for bins in members:
        filled = [j for j in bins if p[j] > 0]
        for j in filled:
            q[j] = sum(float(counts[i]) for i in bins) / len(filled)
    weight = sum(q)
    result = 0.0
    for j in range(kept):
        if p[j] > 0:
            if q[j] == 0:
                return math.inf
            result += p[j] / total * math.log(p[j] / total / (q[j] / weight))
    return result


@pytest.mark.parametrize("seed", range(6))
def test_divergence_is_the_slow_one(seed):
    rng = np.random.default_rng(seed)
    levels, bins = 8, 160
    counts = rng.poisson(40 * np.exp(-np.arange(bins) / 20)).astype(np.float64)
    counts[rng.random(bins) < 0.2] = 0  # holes
    counts[0] = 3
    last = int(np.flatnonzero(counts)[-1]) + 1
    candidates = np.arange(levels, last + 1)
    fast = divergences(counts[:last], candidates, levels)
    slow = np.array([slow_divergence(counts[:last], int(kept), levels) for kept in candidates])
    np.testing.assert_array_equal(np.isinf(fast), np.isinf(slow))
    assert np.isfinite(slow[-1])
    finite = np.isfinite(slow)
    np.testing.assert_allclose(fast[finite], slow[finite], rtol=1e-9, atol=1e-12)


def test_entropy_keeps_a_uniform_distribution_whole():
    values = np.random.default_rng(0).uniform(0, 3.7, 400_000)
    assert entropy_threshold(histogram_of(values)) == pytest.approx(3.7, rel=0.02)


@pytest.mark.parametrize("draw", ["normal", "laplace"])
def test_entropy_clips_a_far_outlier(draw):
    rng = np.random.default_rng(1)
    values = getattr(rng, draw)(0, 1, 500_000)
    values[7] = 60.0
    found = entropy_threshold(histogram_of(values))
    spread = np.quantile(np.abs(values), 0.99)
    assert spread < found < 20


def test_entropy_does_better_than_minmax_on_outliers_by_mean_error():
    """What the threshold is for: smaller rounding errors for nearly all values."""
    values = np.random.default_rng(2).normal(0, 1, 500_000).astype(np.float32)
    values[0] = 100.0

    def error(limit):
        scale = limit / 127
        return np.mean((np.clip(np.round(values[1:] / scale), -127, 127) * scale - values[1:]) ** 2)

    assert error(entropy_threshold(histogram_of(values))) < 0.05 * error(100.0)


@pytest.mark.parametrize("zeros", [0, 10, 1000])
def test_a_large_mass_of_zeros_changes_nothing(zeros):
    """After a ReLU on a volume that is mostly background, 99.9 % of values are 0."""
    values = np.maximum(np.random.default_rng(3).normal(0.5, 1, 50_000), 0).astype(np.float32)
    values = values[values > 0]
    alone = entropy_threshold(histogram_of(values))
    histogram = histogram_of(values)
    histogram.update(np.zeros(zeros * len(values), np.float32), 0.0)
    assert entropy_threshold(histogram) == alone
    assert alone > np.quantile(values, 0.99)


@pytest.mark.parametrize("spike", [0.5, 0.9, 0.99])
def test_a_spike_of_small_values_does_not_pull_the_threshold_down(spike):
    """Air after a convolution with a bias is no exact zero, yet as uninformative."""
    rng = np.random.default_rng(4)
    count = 200_000
    values = np.abs(rng.normal(0, 1, count))
    values[: int(spike * count)] = 1e-3
    assert entropy_threshold(histogram_of(values)) > np.quantile(values[int(spike * count) :], 0.9)


def test_half_sided_and_two_sided_agree():
    values = np.random.default_rng(5).normal(0, 2, 300_000).astype(np.float32)
    assert entropy_threshold(histogram_of(values)) == entropy_threshold(histogram_of(np.abs(values)))


@pytest.mark.parametrize("percent", [50.0, 99.0, 99.99])
def test_percentile_is_the_quantile(percent):
    values = np.abs(np.random.default_rng(6).normal(0, 1, 200_000)).astype(np.float32)
    histogram = histogram_of(values)
    exact = np.quantile(values.astype(np.float64), percent / 100)
    assert percentile_threshold(histogram, percent) == pytest.approx(exact, abs=1.5 * histogram.width)


def test_percentile_never_erases_a_sparse_tensor():
    histogram = histogram_of([1.0, 2.0, 3.0])
    histogram.update(np.zeros(1_000_000, np.float32), 0.0)
    assert percentile_threshold(histogram) == pytest.approx(3.0, abs=histogram.width)


def test_constants_and_nothing():
    histogram = histogram_of(np.full(100, 2.5))
    assert entropy_threshold(histogram) == pytest.approx(2.5, abs=histogram.width)
    assert percentile_threshold(histogram) == pytest.approx(2.5, abs=histogram.width)
    empty = Histogram()
    empty.update(np.zeros(10, np.float32), 0.0)
    assert entropy_threshold(empty) == percentile_threshold(empty) == 0.0


def test_threshold_by_name():
    found = TensorRange()
    values = np.random.default_rng(7).normal(0, 1, (1, 4, 20, 20, 20)).astype(np.float32)
    found.update(values)
    assert threshold(found, "minmax") == np.abs(values).max()
    assert threshold(found, "percentile") <= threshold(found, "minmax")
    assert 2 < threshold(found, "entropy") <= threshold(found, "minmax")
    with pytest.raises(ValueError, match="no calibrator"):
        threshold(found, "median")
    with pytest.raises(ValueError, match="histogram"):
        threshold(TensorRange(histogram=False), "entropy")
