"""Calibrators: from magnitudes that were seen to the largest one that a scale still holds.

Eight-bit activations are symmetric here: a value x becomes round(x / scale) in −127 … 127 with scale =
threshold / 127, so all that matters is how magnitudes are spread. That serves tensors of both signs and those
after a ReLU alike: 128 levels of |x| from 0 to the threshold.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from wetread.precision.ranges import Histogram, TensorRange

Calibrator = Literal["minmax", "entropy", "percentile"]
CALIBRATORS: tuple[Calibrator, ...] = ("minmax", "entropy", "percentile")

LEVELS = 128
PERCENTILE = 99.99


def threshold(found: TensorRange, calibrator: Calibrator) -> float:
    """The magnitude that becomes 127; larger ones are clipped to it.

    Args:
        found: what was seen of the tensor.
        calibrator: ``minmax`` takes the largest magnitude and clips nothing; ``percentile`` the one below which
            99.99 % of all values lie; ``entropy`` the one whose quantised distribution tells most like the
            original (Kullback-Leibler divergence).

    Returns:
        0 where nothing but zeros was seen.

    Raises:
        ValueError: no histogram was kept, or no such calibrator.
    """
    if calibrator == "minmax":
        return found.absmax
    if found.histogram is None:
        raise ValueError(f"calibrator {calibrator!r} needs a histogram")
    if calibrator == "percentile":
        return min(percentile_threshold(found.histogram), found.absmax)
    if calibrator == "entropy":
        return min(entropy_threshold(found.histogram), found.absmax)
    raise ValueError(f"there is no calibrator {calibrator!r}; use one of {', '.join(CALIBRATORS)}")


def percentile_threshold(histogram: Histogram, percent: float = PERCENTILE) -> float:
    """Upper edge of the first bin up to which `percent` of all values lie, zeros included.

    Zeros count because a percentile is a statement on voxels. Where so few values differ from zero that all of
    them lie above it, the percentile is taken of those: a threshold of 0 would erase the tensor.
    """
    values = int(histogram.counts.sum())
    if values == 0:
        return 0.0
    part = 1 - percent / 100
    allowed = part * (values + histogram.zeros)
    if allowed >= values:
        allowed = part * values
    above = np.cumsum(histogram.counts[::-1])[::-1]  # values in this bin and those after it
    return float(np.count_nonzero(above > allowed) * histogram.width)


def entropy_threshold(histogram: Histogram, levels: int = LEVELS) -> float:
    """The threshold that loses the least information, by Kullback-Leibler divergence.

    For each candidate, an upper edge of a bin: P is the histogram up to there with the values beyond added to
    its last bin, as clipping does; Q is what is left of it after rounding to `levels` levels, each level's
    values spread evenly over its bins that were not empty. The candidate with the smallest Σ P log(P / Q) wins;
    of equal ones the largest. A candidate that clips into a level without values of its own has Q = 0 where
    P > 0 and is out; nothing is smoothed. The method is that of S. Migacz, 8-bit inference with TensorRT
    (GTC 2017), with three differences. Levels are those of rounding to whole multiples of threshold / (levels − 1),
    as the quantise node has them: the lowest reaches half as far as the others. And zeros are left out: every
    scale holds them exactly, and after a ReLU they would outweigh all else, so that clipping nearly everything
    looked cheap. And spikes are levelled (`without_spikes`) for the same reason.

    Returns:
        0 where all values were zero.
    """
    counts = without_spikes(histogram.counts.astype(np.float64))
    filled = np.flatnonzero(counts)
    if not len(filled):
        return 0.0
    last = int(filled[-1]) + 1
    candidates = np.arange(min(levels, last), last + 1)
    divergence = divergences(counts[:last], candidates, levels)
    best = len(candidates) - 1 - int(np.argmin(divergence[::-1]))
    return float(candidates[best] * histogram.width)


def without_spikes(counts: NDArray[np.float64], times: float = 2.0) -> NDArray[np.float64]:
    """The histogram with no bin higher than `times` the median of the filled bins near it.

    Air and other even background is one value in each channel after every layer, so its voxels fall into a few
    bins. Spreading such a bin over its level costs much divergence, and less the finer the levels are: a volume
    that is mostly background would pull the threshold down, though a scale holds one value as well as another.
    MeshNet's first layer on T1 and FLAIR: 5.8 with spikes, 13.1 without, where 13.2 has the least squared error.

    Near is within two levels to either side, were the threshold where 99.99 % of the values end; what is wider than
    that is the distribution's own shape. Where these are no two bins the histogram stays as it is.
    """
    bulk = int(np.searchsorted(np.cumsum(counts), 0.9999 * counts.sum())) + 1
    reach = 2 * round(bulk / (2 * LEVELS))
    if reach < 2:
        return counts
    near = sliding_window_view(np.pad(counts, reach), 2 * reach + 1)
    filled = counts > 0
    median = np.full(len(counts), np.inf)
    median[filled] = np.nanmedian(np.where(near[filled] > 0, near[filled], np.nan), axis=1)
    return np.minimum(counts, times * median)


def divergences(
    counts: NDArray[np.float64], candidates: NDArray[np.int64], levels: int = LEVELS
) -> NDArray[np.float64]:
    """Kullback-Leibler divergence for each candidate, see `entropy_threshold`; infinite where Q lacks a value.

    With N values in all, S of them up to the candidate, and in level l the values M and the bins that are not
    empty n: Σ P log(P/Q) = Σ_bins P log P − Σ_levels P_l log(M_l / (n_l S)), where P_l holds, in the last level,
    the clipped values too. Both sums come from running totals, so that a candidate costs one look-up a level.

    Args:
        counts: values in each bin.
        candidates: (n,) how many bins are kept.
        levels: of the quantised magnitudes.
    """
    total = counts.sum()
    mass = np.concatenate([[0.0], np.cumsum(counts)])
    with np.errstate(divide="ignore", invalid="ignore"):
        information = counts / total * np.log(counts / total)
    plain = np.concatenate([[0.0], np.cumsum(np.where(counts > 0, information, 0.0))])
    bins = np.concatenate([[0], np.cumsum(counts > 0)])
    kept = candidates.astype(np.int64)
    # bin j, centre (j + ½) of kept bins, is rounded to level l where (l − ½) ≤ (j + ½)(levels − 1) / kept < (l + ½)
    edges = np.ceil((np.arange(1, levels) - 0.5) * kept[:, None] / (levels - 1) - 0.5).astype(np.int64)
    edges = np.concatenate([np.zeros((len(kept), 1), np.int64), edges, kept[:, None]], axis=1)
    edges = np.minimum(edges, kept[:, None])
    inside = np.diff(mass[edges], axis=1)
    filled = np.diff(bins[edges], axis=1).astype(np.float64)
    outside = total - mass[kept]
    tail = counts[kept - 1]
    clipped = (tail + outside) / total
    filled[:, -1] += (tail == 0) & (outside > 0)  # the last bin now holds what was clipped
    share = inside / total
    share[:, -1] += outside / total
    with np.errstate(divide="ignore", invalid="ignore"):
        log_q = np.log(inside / (filled * mass[kept][:, None]))
        log_p = np.where(clipped > 0, clipped * np.log(clipped), 0.0)
    coded = np.where(share > 0, share * log_q, 0.0).sum(1)
    return np.asarray(plain[kept - 1] + log_p - coded)
