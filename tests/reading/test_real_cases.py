"""Real cases, where this machine has them."""

from __future__ import annotations

import numpy as np
import pytest

import wetread
from wetread.errors import SelectionError
from wetread.reading import describe

CENTRE_LPS_MM = (-57.44, 131.23, -520.36)  # LUNA16's annotation of lidc-idri-0314, diameter 15.49 mm


def test_lidc_nodule_is_found(real_case, tmp_path):
    """Held out: never trained or tuned on. A centroid within 8 mm, long axis 8–25 mm, at most 8 false positives."""
    reading = wetread.read(real_case("lidc-idri-0314/dicom"))
    distance = [
        float(np.linalg.norm(np.subtract(f.centroid_lps_mm, CENTRE_LPS_MM))) for f in reading.findings
    ]
    hits = [f for f, d in zip(reading.findings, distance, strict=True) if d <= 8]
    assert len(hits) == 1
    assert 8 <= hits[0].long_axis_mm <= 25
    assert len(reading.findings) - 1 <= 8
    written = wetread.save(reading, tmp_path / "out")
    assert {"seg.dcm", "sr.dcm", "mask.nii.gz", "report.html", "preview.png"} <= set(written)


def test_tilted_gantry_is_straightened_and_says_so(real_case):
    """Tilt 18.5°, spacings of 4.0, 7.0 and 1.08 mm in one series; the recipe excludes heads."""
    data = describe(real_case("ct-tilt-ge"))
    assert {"GANTRY_TILT", "SPACING_UNEVEN"} <= {notice["code"] for notice in data["series"][0]["repaired"]}
    with pytest.raises(SelectionError, match="HEAD"):
        wetread.read(real_case("ct-tilt-ge"))


def test_jpeg2000_series_is_read(real_case):
    data = describe(real_case("ct-jpeg2000"))
    assert data["series"][0]["grid"]["shape"][0] == 20
    reading = wetread.read(real_case("ct-jpeg2000"))
    assert reading.mask.shape == tuple(data["series"][0]["grid"]["shape"])
