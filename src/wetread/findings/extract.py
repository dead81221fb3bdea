"""From a label mask to numbered findings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from wetread.findings.model import Finding, LabelInfo, Reading, tracking_uid
from wetread.geometry.components import bounding_box, label_components
from wetread.geometry.measure import Cropped, Measurement, measure_components, slice_axis_of
from wetread.volume import Grid

Extracted = tuple[tuple[Finding, ...], NDArray[np.uint8], NDArray[np.int32]]


@dataclass(frozen=True)
class LesionRules:
    """How findings are made of a mask; the fields are those of the recipe's ``lesions``.

    Attributes:
        connectivity: 6, 18 or 26.
        min_ml: smallest volume of a finding in millilitres, inclusive.
        min_probability: lowest peak probability of a finding, inclusive; needs the probability.
        remove_small: whether the voxels of dropped components leave the mask too.
    """

    connectivity: int = 26
    min_ml: float = 0.0
    min_probability: float = 0.0
    remove_small: bool = True


DEFAULT_RULES = LesionRules()


def extract_findings(
    mask: NDArray[np.uint8],
    probability: Cropped | None,
    intensities: Cropped | None,
    grid: Grid,
    labels: Sequence[LabelInfo],
    *,
    rules: LesionRules = DEFAULT_RULES,
    frame_of_reference: str = "",
) -> Extracted:
    """Finds, measures, filters and numbers the lesions of a label mask.

    Args:
        mask: label values, shape ``grid.shape``; not changed.
        probability: of each voxel's own label, 0 to 1, on the grid, or None.
        intensities: values of the image on the grid (HU for CT), or None.
        grid: of mask, probability and intensities.
        labels: meaning of the mask's values; labels that are no lesions give no findings.
        rules: connectivity, smallest size, lowest probability.
        frame_of_reference: what tracking UIDs are derived from; by default the grid's frame of reference.
            A source without one (NIfTI) needs something that is its own, such as a hash of its voxels.

    Returns:
        Findings in the order of decreasing volume, the mask without dropped components (the same array where
        nothing was dropped), and int32 components on the grid whose values are the findings' numbers.
    """
    lesions = [label.index for label in labels if label.lesion]
    components = np.zeros(mask.shape, np.int32)
    found = bounding_box(mask)
    if found is None or not lesions:
        return (), mask, components
    crop = mask[found]
    present = np.flatnonzero(np.bincount(crop[crop > 0]))
    if not set(present.tolist()) <= set(lesions):
        crop = np.where(np.isin(np.arange(256), lesions)[crop], crop, np.uint8(0))
    numbered = label_components(crop, rules.connectivity)
    voxels = np.flatnonzero(numbered)
    values = numbered.ravel()[voxels]
    counts = np.bincount(values, minlength=1)
    big = counts * grid.voxel_ml >= rules.min_ml * (1.0 - 1e-9)
    numbered.ravel()[voxels] = np.where(big[values], values, 0)
    components[found] = numbered
    measured = [
        (item, int(mask[item.first_voxel]))
        for item in measure_components(components, grid, intensities=intensities, probability=probability)
        if not item.max_probability < rules.min_probability
    ]
    measured.sort(key=lambda pair: (-pair[0].voxels, pair[0].value))
    table = np.zeros(len(counts), np.int32)
    for number, (item, _) in enumerate(measured, start=1):
        table[item.value] = number
    numbered.ravel()[voxels] = table[values]
    components[found] = numbered
    cleaned = mask
    if rules.remove_small and not table[values].all():
        cleaned = mask.copy()
        i, j, k = (part[table[values] == 0] for part in np.unravel_index(voxels, numbered.shape))
        cleaned[found][i, j, k] = 0
    names = {label.index: label.name for label in labels}
    findings = tuple(
        _finding(number, item, (index, names[index]), grid)
        for number, (item, index) in enumerate(measured, 1)
    )
    return with_tracking(findings, frame_of_reference or grid.frame_of_reference), cleaned, components


def with_tracking(findings: Iterable[Finding], frame_of_reference: str) -> tuple[Finding, ...]:
    """Gives every finding a tracking UID of its own.

    Two lesions of one label whose centroids fall into the same cubic millimetre (a shell around a core)
    would get the same UID: the later one, in the order given, then counts on.
    """
    taken: set[str] = set()
    result = []
    for finding in findings:
        uid = tracking_uid(frame_of_reference, finding.label, finding.centroid_lps_mm)
        again = 1
        while uid in taken:
            again += 1
            uid = tracking_uid(frame_of_reference, f"{finding.label}#{again}", finding.centroid_lps_mm)
        taken.add(uid)
        result.append(replace(finding, tracking_uid=uid))
    return tuple(result)


def keep_tracking(previous: Reading, current: Reading) -> Reading:
    """The current reading, with the tracking UIDs of the previous one where lesions overlap.

    For provisional, final and superseding readings of the same study. The grids may differ: voxels are
    compared by their place. Pairs of the same label are joined in the order of decreasing overlap, each
    finding at most once, so that a lesion that falls in two keeps its UID in the part that overlaps most.

    Returns:
        ``current`` itself where the frames of reference differ, one reading has no components, or nothing
        overlaps.
    """
    before, now = previous.components, current.components
    if before is None or now is None or previous.grid.frame_of_reference != current.grid.frame_of_reference:
        return current
    labels = {finding.number: finding.label for finding in previous.findings}
    pairs: list[tuple[int, int, int]] = []
    for finding in current.findings:
        numbers = _seen_before(finding, now, current.grid, before, previous.grid)
        for number, overlap in zip(*np.unique(numbers[numbers > 0], return_counts=True), strict=True):
            if labels.get(int(number)) == finding.label:
                pairs.append((-int(overlap), int(number), finding.number))
    uids = {finding.number: finding.tracking_uid for finding in previous.findings}
    kept: dict[int, str] = {}
    for _, number, mine in sorted(pairs):
        if number in uids and mine not in kept:
            kept[mine] = uids.pop(number)
    if not kept:
        return current
    return replace(current, findings=_rename(current.findings, kept))


def _rename(findings: Iterable[Finding], kept: dict[int, str]) -> tuple[Finding, ...]:
    """Kept UIDs first; a finding whose own UID was given to another one gets a new one."""
    taken = set(kept.values())
    result = []
    for finding in findings:
        uid = kept.get(finding.number, finding.tracking_uid)
        again = 2
        while finding.number not in kept and uid in taken:
            uid = tracking_uid(finding.tracking_uid, f"{finding.label}#{again}", finding.centroid_lps_mm)
            again += 1
        taken.add(uid)
        result.append(replace(finding, tracking_uid=uid))
    return tuple(result)


def _seen_before(
    finding: Finding,
    now: NDArray[np.int32],
    grid: Grid,
    before: NDArray[np.int32],
    before_grid: Grid,
) -> NDArray[np.int32]:
    """Numbers of the previous reading at the places of a finding's voxels; 0 outside the previous grid."""
    box = tuple(slice(low, high + 1) for low, high in finding.bounding_box)
    voxels = np.argwhere(now[box] == finding.number) + [part.start for part in box]
    index = np.floor(before_grid.index(grid.world(voxels)) + 0.5).astype(np.int64)
    inside = np.all((index >= 0) & (index < before_grid.shape), axis=1)
    result = np.zeros(len(voxels), np.int32)
    result[inside] = before[tuple(index[inside].T)]
    return result


def _finding(number: int, item: Measurement, label: tuple[int, str], grid: Grid) -> Finding:
    first, last = item.slice_range
    named = bool(grid.slices) and slice_axis_of(grid) == 0
    uids = (grid.slices[first].sop_instance_uid, grid.slices[last].sop_instance_uid) if named else ("", "")
    return Finding(
        number=number,
        label=label[1],
        label_index=label[0],
        tracking_uid="",
        centroid_lps_mm=item.centroid_lps_mm,
        volume_ml=item.volume_ml,
        long_axis_mm=item.long_axis_mm,
        short_axis_mm=item.short_axis_mm,
        diameter_3d_mm=item.diameter_3d_mm,
        axis_points_lps_mm=item.axis_points_lps_mm,
        slice_range=item.slice_range,
        slice_uids=uids,
        mean=item.mean,
        sd=item.sd,
        max_probability=item.max_probability,
        mean_probability=item.mean_probability,
        voxels=item.voxels,
        bounding_box=item.box,
    )
