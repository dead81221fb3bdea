"""What the gate's cases have and calibration lacks is named, and nothing else is."""

from dataclasses import replace

import numpy as np
import pytest

from tests.conftest import ball_recipe, ball_volume
from tests.precision.test_windows import mr_recipe, nifti
from wetread.precision.coverage import CaseFacts, coverage, scan_facts
from wetread.recipe import load_recipe

FACT = CaseFacts("a/case-1", "ct", "SIEMENS", "Sensation 64", "B50f", 1.25, -1000.0, 900.0, "HU")


def codes(report):
    return [warning.code for warning in report.warnings]


def test_alike_is_quiet():
    near = replace(FACT, case="b/case-2", manufacturer="Siemens ", slice_mm=1.4, high=1000.0)
    assert coverage([FACT], [FACT, near]).warnings == ()


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"model": "LightSpeed VCT", "manufacturer": "GE"}, "COVERAGE_SCANNER", "GE LIGHTSPEED VCT"),
        ({"kernel": "LUNG"}, "COVERAGE_KERNEL", "LUNG"),
        ({"slice_mm": 5.0}, "COVERAGE_SLICES", "5 mm"),
        ({"slice_mm": 0.6}, "COVERAGE_SLICES", "0.6 mm"),
        ({"high": 3071.0}, "COVERAGE_INTENSITY", "3071"),
        ({"low": -2000.0}, "COVERAGE_INTENSITY", "-2000"),
        ({"unit": "sd"}, "COVERAGE_INTENSITY", "sd"),
    ],
)
def test_each_gap_is_named(change, code, words):
    other = replace(FACT, case="b/case-2", **change)
    report = coverage([FACT], [FACT, other] if "unit" not in change else [other])
    assert codes(report) == [code]
    assert words in report.warnings[0].text
    assert report.warnings[0].where == "case-2"
    assert report.as_dict()["warnings"][0]["code"] == code


def test_a_range_between_two_cases_is_covered():
    thick = replace(FACT, slice_mm=5.0)
    assert codes(coverage([FACT, thick], [replace(FACT, slice_mm=2.5)])) == []


def test_channels_are_compared_apart():
    pet = replace(FACT, channel="pet", kernel="PSF")
    assert codes(coverage([FACT, pet], [replace(FACT, kernel="PSF")])) == ["COVERAGE_KERNEL"]


def test_facts_of_a_dicom_series(tmp_path):
    from wetread.dicom import write_ct_series

    write_ct_series(ball_volume(), tmp_path / "soft", kernel="B30f")
    write_ct_series(ball_volume((3.0, 0.8, 0.8)), tmp_path / "sharp", kernel="B70f")
    recipe = load_recipe(ball_recipe())
    soft, sharp = scan_facts([tmp_path / "soft", tmp_path / "sharp"], recipe)
    assert (soft.kernel, soft.unit, soft.slice_mm) == ("B30f", "HU", 1.5)
    assert (soft.low, soft.high) == (-850.0, 40.0)
    assert (sharp.kernel, sharp.slice_mm) == ("B70f", 3.0)
    assert sorted(codes(coverage([soft], [sharp]))) == ["COVERAGE_KERNEL", "COVERAGE_SLICES"]


def test_facts_of_files(tmp_path):
    """A recipe that scales each image by itself: a constant factor is no gap, a brighter lesion is."""
    rng = np.random.default_rng(0)
    image = rng.normal(100, 10, (40, 40, 40)).astype(np.float32)
    bright = image.copy()
    bright[:8, :8, :8] = 900
    paths = [
        nifti(tmp_path / name, array)
        for name, array in (("a.nii.gz", image), ("b.nii.gz", 7 * image), ("c.nii.gz", bright))
    ]
    recipe = mr_recipe(steps=[{"step": "minmax"}])
    a, b, c = scan_facts(paths, recipe)
    assert a.unit == "sd"
    assert coverage([a], [b]).warnings == ()
    assert codes(coverage([a], [c])) == ["COVERAGE_INTENSITY"]
    raw = scan_facts(paths[:2], mr_recipe(steps=[]))
    assert raw[0].unit == "raw"
    assert codes(coverage(raw[:1], raw[1:])) == ["COVERAGE_INTENSITY"]
