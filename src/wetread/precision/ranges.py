"""Statistics of tensors, gathered window by window in memory that does not grow."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

BINS = 4096
"""Bins of a histogram of magnitudes: 32 for each of int8's 128 levels where the range is filled."""

_CHUNK = 1 << 18
_HALF_TINY = 2.0**-25
"""Magnitudes up to this become zero in float16 (half of its smallest number, ties to even)."""


class Histogram:
    """Counts of magnitudes in equal bins from 0 to a limit that grows by doubling.

    Doubling joins bins two by two, so that counts stay exact whatever came first: the histogram of all values
    is the same in any order of windows, up to values that lie on an edge to within rounding. Exact zeros are
    counted apart, because every scale holds them exactly.

    Attributes:
        counts: (bins,) int64, values other than zero.
        zeros: how many values were exactly 0.
        limit: end of the last bin, a power of two; 0 while only zeros were seen.
    """

    def __init__(self, bins: int = BINS) -> None:
        self.counts = np.zeros(bins, np.int64)
        self.zeros = 0
        self.limit = 0.0

    @property
    def width(self) -> float:
        """Width of a bin."""
        return self.limit / len(self.counts)

    def update(self, values: NDArray[np.float32], absmax: float) -> None:
        """Adds finite values of any shape, whose largest magnitude is `absmax`."""
        if absmax == 0.0:
            self.zeros += values.size
            return
        self._reach(absmax)
        flat, scale = values.reshape(-1), np.float32(len(self.counts) / self.limit)
        for start in range(0, flat.size, _CHUNK):
            part = np.abs(flat[start : start + _CHUNK])
            nonzero = int(np.count_nonzero(part))
            part *= scale  # a power of two: exact
            found = np.bincount(part.astype(np.intp), minlength=len(self.counts))
            zeros = part.size - nonzero
            self.counts += found
            self.counts[0] -= zeros
            self.zeros += zeros

    def _reach(self, absmax: float) -> None:
        """Doubles the limit until `absmax` lies below it."""
        if self.limit == 0.0:
            self.limit = 2.0 ** (math.frexp(absmax)[1])
        while absmax >= self.limit:
            half = len(self.counts) // 2
            joined = self.counts.reshape(half, 2).sum(1)
            self.counts = np.concatenate([joined, np.zeros_like(joined)])
            self.limit *= 2


class TensorRange:
    """What was seen of one tensor.

    Args:
        channels_last: the last axis holds the channels (matrix products), not axis 1 (volumes).
        histogram: whether magnitudes are counted too.

    Attributes:
        count: values seen.
        minimum, maximum: smallest and largest value.
        channel_absmax: (channels,) largest magnitude of each channel.
        square_sum: largest sum of squares that a norm would add up: over one channel of one window, or over the
            last axis with `channels_last`; summands: how many values that are.
        zeros: values that were exactly 0; tiny: others that float16 would turn into 0.
        histogram: of magnitudes, or None.
    """

    def __init__(self, channels_last: bool = False, histogram: bool = True) -> None:
        self.channels_last = channels_last
        self.count = 0
        self.minimum = math.inf
        self.maximum = -math.inf
        self.channel_absmax: NDArray[np.float64] = np.zeros(0)
        self.square_sum = 0.0
        self.summands = 0
        self.zeros = 0
        self.tiny = 0
        self.histogram = Histogram() if histogram else None
        self._sums: NDArray[np.float64] = np.zeros(0)
        self._squares: NDArray[np.float64] = np.zeros(0)

    @property
    def absmax(self) -> float:
        """Largest magnitude."""
        return max(abs(self.minimum), abs(self.maximum)) if self.count else 0.0

    @property
    def mean(self) -> float:
        """Mean of all values."""
        return float(self._sums.sum() / self.count)

    @property
    def mean_square(self) -> float:
        """Mean of the squares of all values."""
        return float(self._squares.sum() / self.count)

    @property
    def channel_mean(self) -> NDArray[np.float64]:
        """(channels,) mean of each channel."""
        return self._sums * (len(self._sums) / self.count)

    @property
    def channel_mean_square(self) -> NDArray[np.float64]:
        """(channels,) mean of the squares of each channel."""
        return self._squares * (len(self._squares) / self.count)

    def update(self, values: NDArray[np.float32]) -> None:
        """Adds a tensor of one window; its values are finite.

        Args:
            values: (1, channels, …), or (…, channels) with `channels_last`.
        """
        channels = values.shape[-1] if self.channels_last else values.shape[1] if values.ndim > 1 else 1
        if not self.count:
            self.channel_absmax = np.zeros(channels)
            self._sums, self._squares = np.zeros(channels), np.zeros(channels)
        table = values.reshape(-1, channels) if self.channels_last else values.reshape(channels, -1)
        along = 0 if self.channels_last else 1
        low, high = table.min(along), table.max(along)
        self.count += values.size
        self.minimum = min(self.minimum, float(low.min()))
        self.maximum = max(self.maximum, float(high.max()))
        absmax = np.maximum(np.abs(low), np.abs(high)).astype(np.float64)
        self.channel_absmax = np.maximum(self.channel_absmax, absmax)
        sums, squares, rows = _moments(table, along)
        self._sums += sums
        self._squares += squares
        self.square_sum = max(self.square_sum, rows if self.channels_last else float(squares.max()))
        self.summands = max(self.summands, table.shape[1])
        self._count_small(values)
        if self.histogram is not None:
            self.histogram.update(values, float(absmax.max()))

    def _count_small(self, values: NDArray[np.float32]) -> None:
        flat = values.reshape(-1)
        for start in range(0, flat.size, _CHUNK):
            part = np.abs(flat[start : start + _CHUNK])
            zeros = part.size - int(np.count_nonzero(part))
            self.zeros += zeros
            self.tiny += int(np.count_nonzero(part <= _HALF_TINY)) - zeros

    def as_dict(self) -> dict[str, float]:
        """The figures as plain data."""
        return {
            "count": self.count,
            "minimum": self.minimum,
            "maximum": self.maximum,
            "mean": self.mean,
            "mean_square": self.mean_square,
        }


def _moments(
    table: NDArray[np.float32], along: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Sums and sums of squares along an axis in float64, and the largest sum of squares of a row."""
    size, others = table.shape[along], table.shape[1 - along]
    sums, squares, largest = np.zeros(others), np.zeros(others), 0.0
    step = max(1, _CHUNK // max(1, others))
    for start in range(0, size, step):
        part = table[start : start + step] if along == 0 else table[:, start : start + step]
        wide = part.astype(np.float64)
        sums += wide.sum(along)
        squares += np.einsum("ij,ij->j" if along == 0 else "ij,ij->i", wide, wide)
        if along == 0:
            largest = max(largest, float(np.einsum("ij,ij->i", wide, wide).max()))
    return sums, squares, largest


class Ranges(Mapping[str, TensorRange]):
    """Ranges of a network's tensors by name.

    Attributes:
        windows: how many windows were seen.
        cases: the cases that they came from, in order.
    """

    def __init__(self, found: dict[str, TensorRange], windows: int = 0, cases: tuple[str, ...] = ()) -> None:
        self._found = found
        self.windows = windows
        self.cases = cases

    def __getitem__(self, name: str) -> TensorRange:
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)
