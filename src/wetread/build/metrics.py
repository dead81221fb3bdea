"""What the gate measures: overlap, lesions found, false positives, classes. Pure functions on arrays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wetread.findings import Finding
from wetread.volume import Grid

SIZE_CLASSES = ("< 6 mm", "6-10 mm", "> 10 mm")
_IOU = 0.1
"""From this overlap on, a finding is of a lesion wherever its centre lies."""


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """2 |a ∩ b| / (|a| + |b|) (Dice 1945); 1 where both are empty, because they agree."""
    total = int(np.count_nonzero(a)) + int(np.count_nonzero(b))
    return 2.0 * int(np.count_nonzero(a & b)) / total if total else 1.0


def agreement(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Share of voxels that have the same label in both masks."""
    return float(np.count_nonzero(a == b)) / a.size if a.size else 1.0


def size_class(long_axis_mm: float) -> str:
    """The class of a lesion by its long axis (the limits of the Fleischner Society's nodule guidelines)."""
    if long_axis_mm < 6.0:
        return SIZE_CLASSES[0]
    return SIZE_CLASSES[1] if long_axis_mm <= 10.0 else SIZE_CLASSES[2]


@dataclass(frozen=True, eq=False)
class Lesions:
    """The lesions of one mask.

    Attributes:
        findings: with their numbers, sizes and places.
        components: findings' numbers on the grid.
        grid: where the voxels lie.
    """

    findings: tuple[Finding, ...]
    components: NDArray[np.int32]
    grid: Grid


@dataclass(frozen=True)
class Hits:
    """Which lesions were found.

    Attributes:
        found: numbers of the lesions that a finding hits.
        false: numbers of the findings that hit no lesion.
    """

    found: frozenset[int]
    false: frozenset[int]


def match(lesions: Lesions, findings: Lesions) -> Hits:
    """Which lesions are hit by which findings of the same label.

    A finding hits the lesions that it shares voxels with, where its centroid is no farther from the lesion's
    than half the lesion's long axis (as LUNA16 counts, Setio et al. 2017), or their intersection over union is
    at least 0.1. One finding may hit two lesions that it runs together.
    """
    a, b = lesions.components, findings.components
    shared = np.flatnonzero((a > 0) & (b > 0))
    pairs, counts = np.unique(np.stack([a.ravel()[shared], b.ravel()[shared]]), axis=1, return_counts=True)
    by_lesion = {finding.number: finding for finding in lesions.findings}
    by_finding = {finding.number: finding for finding in findings.findings}
    found: set[int] = set()
    hitting: set[int] = set()
    for (i, j), count in zip(pairs.T.tolist(), counts.tolist(), strict=True):
        lesion, finding = by_lesion.get(i), by_finding.get(j)
        if lesion is None or finding is None or lesion.label_index != finding.label_index:
            continue
        far = float(np.linalg.norm(np.subtract(lesion.centroid_lps_mm, finding.centroid_lps_mm)))
        union = lesion.voxels + finding.voxels - count
        if far <= lesion.long_axis_mm / 2 or count / union >= _IOU:
            found.add(i)
            hitting.add(j)
    return Hits(frozenset(found), frozenset(set(by_finding) - hitting))


@dataclass(frozen=True)
class Sensitivity:
    """Lesions of one size class: how many there are, and how many were found."""

    lesions: int = 0
    found: int = 0

    @property
    def value(self) -> float | None:
        """Share that was found; None where there are none."""
        return self.found / self.lesions if self.lesions else None

    def __add__(self, other: Sensitivity) -> Sensitivity:
        return Sensitivity(self.lesions + other.lesions, self.found + other.found)


def sensitivities(findings: Iterable[Finding], found: frozenset[int]) -> dict[str, Sensitivity]:
    """Sensitivity by size class."""
    result = dict.fromkeys(SIZE_CLASSES, Sensitivity())
    for lesion in findings:
        result[size_class(lesion.long_axis_mm)] += Sensitivity(1, int(lesion.number in found))
    return result


def auc(scores: ArrayLike, positive: ArrayLike) -> float | None:
    """Area under the receiver operating characteristic, exact with ties (Mann and Whitney 1947).

    Args:
        scores: one for each case; higher means more likely positive.
        positive: whether each case is.

    Returns:
        The probability that a positive case scores higher than a negative one, ties counting half; None where
        either kind is missing.
    """
    s, p = np.asarray(scores, np.float64), np.asarray(positive, bool)
    up, down = np.sort(s[p]), np.sort(s[~p])
    if not up.size or not down.size:
        return None
    below = np.searchsorted(down, up, "left")
    not_above = np.searchsorted(down, up, "right")
    return float((below + not_above).sum() / 2 / (up.size * down.size))


def mean(values: Sequence[float]) -> float | None:
    """Arithmetic mean; None of nothing."""
    return float(np.mean(values)) if values else None
