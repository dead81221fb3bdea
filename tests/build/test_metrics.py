"""The gate's metrics against sums done by hand and scikit-learn's definitions written out."""

from __future__ import annotations

import numpy as np
import pytest

from wetread.build.metrics import (
    Lesions,
    agreement,
    auc,
    dice,
    match,
    sensitivities,
    size_class,
)
from wetread.findings import LabelInfo
from wetread.findings.extract import extract_findings
from wetread.volume import Grid

GRID = Grid((20, 40, 40), np.diag([2.0, 1.0, 1.0, 1.0]))
LABELS = tuple(LabelInfo(i, name, (1, 2, 3), *[("1", "SCT", "x")] * 2) for i, name in ((1, "a"), (2, "b")))


def lesions(*boxes: tuple[slice, ...], label: int = 1) -> Lesions:
    mask = np.zeros(GRID.shape, np.uint8)
    for box in boxes:
        mask[box] = label
    findings, _, components = extract_findings(mask, None, None, GRID, LABELS)
    return Lesions(findings, components, GRID)


def box(z: int, y: int, x: int, size: int = 4) -> tuple[slice, ...]:
    return slice(z, z + 2), slice(y, y + size), slice(x, x + size)


def test_dice_of_empty_masks_is_one_and_of_one_empty_mask_zero() -> None:
    nothing, something = np.zeros(8, bool), np.arange(8) < 4
    assert dice(nothing, nothing) == 1.0
    assert dice(nothing, something) == 0.0
    assert dice(something, np.arange(8) < 2) == pytest.approx(2 * 2 / 6)


def test_agreement_counts_labels_and_not_only_foreground() -> None:
    assert agreement(np.array([0, 1, 2, 2], np.uint8), np.array([0, 1, 1, 2], np.uint8)) == 0.75


@pytest.mark.parametrize(
    ("mm", "name"), [(5.99, "< 6 mm"), (6.0, "6-10 mm"), (10.0, "6-10 mm"), (10.1, "> 10 mm")]
)
def test_size_classes(mm: float, name: str) -> None:
    assert size_class(mm) == name


def test_a_lesion_is_found_where_a_finding_overlaps_it_well() -> None:
    truth = lesions(box(2, 2, 2), box(10, 20, 20))
    found = lesions(box(2, 3, 2), box(15, 30, 30))
    hits = match(truth, found)
    assert len(hits.found) == 1
    assert len(hits.false) == 1
    assert sensitivities(truth.findings, hits.found)["< 6 mm"].value == 0.5


def test_a_corner_in_common_is_no_hit() -> None:
    """One voxel column of 4×4 shared: IoU 2/62, centres 5.2 mm apart, half the long axis 2.8 mm."""
    hits = match(lesions(box(2, 2, 2)), lesions(box(2, 5, 5)))
    assert not hits.found
    assert len(hits.false) == 1


def test_one_finding_over_two_lesions_finds_both() -> None:
    truth = lesions(box(2, 2, 2), box(2, 2, 8))
    run_together = lesions((slice(2, 4), slice(2, 6), slice(2, 12)))
    hits = match(truth, run_together)
    assert len(hits.found) == 2
    assert not hits.false


def test_another_label_at_the_same_place_is_no_hit() -> None:
    hits = match(lesions(box(2, 2, 2)), lesions(box(2, 2, 2), label=2))
    assert not hits.found
    assert len(hits.false) == 1


def test_nothing_against_nothing() -> None:
    hits = match(lesions(), lesions())
    assert not hits.found
    assert not hits.false
    assert sensitivities((), frozenset())["> 10 mm"].value is None


def test_auc_is_the_share_of_pairs_in_the_right_order_ties_half() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 6, 60) / 5  # many ties
    positive = rng.random(60) < 0.4
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in scores[positive] for b in scores[~positive]]
    assert auc(scores, positive) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert auc([0.1, 0.9], [False, True]) == 1.0
    assert auc([0.5, 0.5], [False, True]) == 0.5
    assert auc([0.5, 0.7], [True, True]) is None
