import os
from pathlib import Path

import numpy as np
import pydicom
import pytest

from tests.dicom_out.sources import MADE, NODULE
from wetread.dicom.authorship import Sources
from wetread.dicom.seg import write_seg
from wetread.dicom.sr import write_sr
from wetread.findings import Reading, extract_findings
from wetread.volume import Grid

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("WETREAD_TEST_DATA", ROOT.parent / "shared" / "data"))
FOLDER = DATA / "lidc-idri-0314" / "dicom"


@pytest.mark.skipif(not FOLDER.is_dir(), reason="lidc-idri-0314 is not in WETREAD_TEST_DATA")
def test_chest_ct_with_five_findings(tmp_path, verified):
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in FOLDER.rglob("*.dcm")]
    headers.sort(key=lambda header: float(header.ImagePositionPatient[2]))
    sources = Sources.of(headers)
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]] = (1.0, *(float(x) for x in headers[0].PixelSpacing))
    affine[:3, 3], affine[3, 3] = [float(x) for x in headers[0].ImagePositionPatient], 1
    grid = Grid((275, 512, 512), affine, headers[0].FrameOfReferenceUID, tuple(sources.slices))
    mask = np.zeros(grid.shape, np.uint8)
    for centre, radius in (
        ((159, 243, 184), 9),
        ((100, 200, 150), 6),
        ((60, 250, 350), 5),
        ((200, 300, 340), 4),
    ):
        ball = (np.indices((2 * radius + 1,) * 3) - radius) ** 2
        box = tuple(slice(c - radius, c + radius + 1) for c in centre)
        mask[box] = ball.sum(axis=0) <= radius**2
    findings, mask, components = extract_findings(mask, None, None, grid, (NODULE,))
    np.testing.assert_allclose(findings[0].centroid_lps_mm, (-57.44, 131.23, -520.36), atol=1.0)
    reading = Reading(mask, grid, findings, (NODULE,), MADE, components=components, modality="CT")
    seg = write_seg(tmp_path / "seg.dcm", reading, sources)
    write_sr(tmp_path / "sr.dcm", reading, sources, seg)
    verified(tmp_path / "seg.dcm")
    verified(tmp_path / "sr.dcm")
    dataset = pydicom.dcmread(tmp_path / "seg.dcm")
    assert dataset.NumberOfFrames == 19 + 13 + 11 + 9
    assert dataset.pixel_array.sum() == (mask > 0).sum()
    assert (tmp_path / "seg.dcm").stat().st_size < 3_000_000
