import json
import math
from dataclasses import replace

import numpy as np
import pytest

from wetread.findings import (
    LabelInfo,
    LesionRules,
    Provenance,
    Reading,
    extract_findings,
    keep_tracking,
    tracking_uid,
)
from wetread.volume import Grid, SliceRef

SCT = ("52988006", "SCT", "Lesion")
LESION = LabelInfo(1, "nodule", (255, 0, 0), SCT, SCT)
OTHER = LabelInfo(2, "mass", (0, 255, 0), SCT, SCT)
ORGAN = LabelInfo(3, "lung", (0, 0, 255), SCT, SCT, lesion=False)
LABELS = (LESION, OTHER, ORGAN)


def grid_of(shape, first=0, frame="1.2.3"):
    affine = np.array([[0, 0, 0.5, 10], [0, 0.5, 0, -3], [2.0, 0, 0, 100 + 2.0 * first], [0, 0, 0, 1]])
    refs = tuple(SliceRef(f"1.9.{first + i}") for i in range(shape[0]))
    return Grid(shape, affine, frame, refs)


def reading_of(mask, grid, **kw):
    findings, cleaned, components = extract_findings(mask, None, None, grid, LABELS, **kw)
    made = Provenance("p", "1.0.0", "h", "null", "fp32", "cpu", "0", "now", "research")
    return Reading(cleaned, grid, findings, LABELS, made, components=components)


def sample():
    mask = np.zeros((10, 20, 30), np.uint8)
    mask[1:3, 2:6, 2:6] = 1  # 32 voxels
    mask[5:9, 10:14, 10:14] = 1  # 64 voxels
    mask[5, 2, 20] = 1  # 1 voxel
    mask[8, 2:4, 20:24] = 2  # 8 voxels
    mask[0, 15:, 20:] = 3
    return mask


def test_findings_are_numbered_by_volume_and_measured():
    mask = sample()
    grid = grid_of(mask.shape)
    rng = np.random.default_rng(0)
    image = rng.normal(-100, 30, mask.shape).astype(np.float32)
    probability = rng.random(mask.shape).astype(np.float32)
    findings, cleaned, components = extract_findings(mask, probability, image, grid, LABELS)
    assert [f.voxels for f in findings] == [64, 32, 8, 1]
    assert [f.number for f in findings] == [1, 2, 3, 4]
    assert [f.label for f in findings] == ["nodule", "nodule", "mass", "nodule"]
    assert cleaned is mask
    for finding in findings:
        inside = components == finding.number
        assert inside.sum() == finding.voxels
        assert set(mask[inside]) == {finding.label_index}
        assert finding.volume_ml == pytest.approx(finding.voxels * 0.5 / 1000)
        np.testing.assert_allclose(
            finding.centroid_lps_mm, grid.world(np.argwhere(inside).mean(0)), atol=1e-9
        )
        assert finding.mean == pytest.approx(image[inside].mean(dtype=float))
        assert finding.max_probability == pytest.approx(probability[inside].max())
        assert finding.tracking_uid == tracking_uid("1.2.3", finding.label, finding.centroid_lps_mm)
    assert (components[mask == 3] == 0).all()
    first = findings[0]
    assert first.slice_range == (5, 8)
    assert first.slice_uids == ("1.9.5", "1.9.8")
    assert first.bounding_box == ((5, 8), (10, 13), (10, 13))
    assert len({f.tracking_uid for f in findings}) == 4


@pytest.mark.parametrize(("min_ml", "left"), [(0.0, 4), (0.004, 3), (0.0041, 2), (0.033, 0)])
def test_smallest_size(min_ml, left):
    mask = sample()
    grid = grid_of(mask.shape)
    findings, cleaned, components = extract_findings(
        mask, None, None, grid, LABELS, rules=LesionRules(min_ml=min_ml)
    )
    assert len(findings) == left == components.max()
    assert (cleaned == 3).sum() == (mask == 3).sum()
    assert ((cleaned > 0) & (cleaned < 3)).sum() == sum(f.voxels for f in findings)
    assert (mask == sample()).all()
    kept = extract_findings(
        mask, None, None, grid, LABELS, rules=LesionRules(min_ml=min_ml, remove_small=False)
    )
    assert kept[1] is mask
    assert (kept[2] == components).all()


def test_lowest_peak_probability():
    mask = sample()
    probability = np.full(mask.shape, 0.6, np.float32)
    probability[6, 11, 11] = 0.9
    findings, cleaned, _ = extract_findings(
        mask, probability, None, grid_of(mask.shape), LABELS, rules=LesionRules(min_probability=0.8)
    )
    assert [f.voxels for f in findings] == [64]
    assert (cleaned == 1).sum() == 64


def test_nothing_found():
    empty = np.zeros((3, 4, 5), np.uint8)
    findings, cleaned, components = extract_findings(empty, None, None, grid_of((3, 4, 5)), LABELS)
    assert (findings, cleaned.max(), components.max()) == ((), 0, 0)
    organ = np.full((3, 4, 5), 3, np.uint8)
    findings, cleaned, components = extract_findings(organ, None, None, grid_of((3, 4, 5)), LABELS)
    assert (findings, cleaned.min(), components.max()) == ((), 3, 0)


def test_values_without_a_label_are_no_findings():
    mask = sample()
    mask[0, 0, 0] = 9
    findings, cleaned, _ = extract_findings(mask, None, None, grid_of(mask.shape), (LESION, OTHER))
    assert [f.voxels for f in findings] == [64, 32, 8, 1]
    assert cleaned[0, 0, 0] == 9


def test_unknown_numbers_are_null_in_json():
    mask = sample()
    findings, *_ = extract_findings(mask, None, None, grid_of(mask.shape), LABELS)
    assert math.isnan(findings[0].mean)
    assert json.loads(json.dumps(findings[0].to_json(), allow_nan=False))["mean"] is None


def test_shell_around_core_get_two_uids_in_a_fixed_order():
    mask = np.zeros((9, 9, 9), np.uint8)
    mask[1:8, 1:8, 1:8] = 1
    mask[2:7, 2:7, 2:7] = 0
    mask[4, 4, 4] = 1
    shell, core = reading_of(mask, grid_of(mask.shape)).findings
    assert shell.voxels > core.voxels
    assert shell.tracking_uid == tracking_uid("1.2.3", "nodule", shell.centroid_lps_mm)
    assert core.tracking_uid == tracking_uid("1.2.3", "nodule#2", core.centroid_lps_mm)


def test_grown_lesion_keeps_its_uid_on_another_grid():
    part = sample()[:7]
    before = reading_of(part, grid_of(part.shape))
    after = reading_of(sample(), grid_of((10, 20, 30)))
    kept = keep_tracking(before, after)
    assert after.findings[0].tracking_uid != before.findings[0].tracking_uid
    uids = {f.voxels: f.tracking_uid for f in before.findings}
    assert kept.findings[0].tracking_uid == uids[32]  # 2 of 4 slices of the larger one had been seen
    assert [f.tracking_uid for f in kept.findings[1:]] == [f.tracking_uid for f in after.findings[1:]]
    assert len({f.tracking_uid for f in kept.findings}) == 4


def test_split_lesion_keeps_its_uid_in_the_larger_overlap():
    whole = np.zeros((3, 10, 20), np.uint8)
    whole[1, 2:8, 2:18] = 1
    split = whole.copy()
    split[1, :, 8] = 0
    before, after = (reading_of(m, grid_of(m.shape)) for m in (whole, split))
    kept = keep_tracking(before, after)
    assert kept.findings[0].tracking_uid == before.findings[0].tracking_uid
    assert kept.findings[1].tracking_uid == after.findings[1].tracking_uid


def test_uid_given_to_another_finding_is_not_used_twice():
    mask = sample()
    after = reading_of(mask, grid_of(mask.shape))
    one, two = after.findings[:2]
    swapped = (replace(one, tracking_uid=two.tracking_uid), *after.findings[2:])
    components = np.where(after.components == 2, 0, after.components)
    before = replace(after, findings=swapped, components=components)
    kept = keep_tracking(before, after)
    assert kept.findings[0].tracking_uid == two.tracking_uid
    assert len({f.tracking_uid for f in kept.findings}) == 4


def test_other_frame_of_reference_or_label_keeps_nothing():
    mask = sample()
    after = reading_of(mask, grid_of(mask.shape))
    assert keep_tracking(reading_of(mask, grid_of(mask.shape, frame="9")), after) is after
    other = np.where(mask == 1, 2, 0).astype(np.uint8)
    assert keep_tracking(reading_of(other, grid_of(mask.shape)), after) is after
    assert keep_tracking(replace(after, components=None), after) is after
