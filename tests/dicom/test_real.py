"""Real files: every codec, two scanners with habits of their own, and a whole chest against SimpleITK."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from wetread.dicom import decode_slice, open_study, read_header
from wetread.dicom.codecs import remarks
from wetread.dicom.header import SliceHeader

sitk = pytest.importorskip("SimpleITK")

LOSSY = ("4.50", "4.51", "4.53", "4.55", "4.81")
LOSSLESS = ("1.2.2.dcm", "1.2.1.dcm", "1.2.dcm", "1.2.1.99", "2.5.dcm", "4.57", "4.70", "4.80", "4.90")


def by_simpleitk(folder):
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(names)
    return reader.Execute()


def affine_of(image):
    """Affine of an array [z, y, x], index to LPS mm."""
    direction = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = direction[:, ::-1], image.GetOrigin()
    return affine


def test_all_lossless_codecs_hold_the_same_pixels(real_case):
    folder = real_case("codecs")
    expected = decode_slice(SliceHeader(read_header(folder / "CTImage.dcm"))).values
    assert expected.shape == (512, 512) and expected.std() > 100
    seen = set()
    for path in sorted(folder.iterdir()):
        kind = next((kind for kind in LOSSLESS if kind in path.name[-30:]), None)
        if kind is None or any(lossy in path.name for lossy in LOSSY):
            continue
        seen.add(kind)
        header = SliceHeader(read_header(path))
        np.testing.assert_array_equal(decode_slice(header).values, expected, err_msg=path.name)
        assert "LOSSY" not in remarks(header), path.name
    assert seen == set(LOSSLESS)


@pytest.mark.parametrize(
    ("kind", "tolerance"), [("4.50", 65), ("4.51", 36), ("4.53", 36), ("4.55", 36), ("4.81", 1), ("4.91", 5)]
)
def test_lossy_codecs_are_near_and_say_so(real_case, kind, tolerance):
    """Tolerances: largest difference of each encoding, 8 bits of 4096 HU for JPEG baseline."""
    folder = real_case("codecs")
    expected = decode_slice(SliceHeader(read_header(folder / "CTImage.dcm"))).values.astype(float)
    (path,) = folder.glob(f"*{kind}.dcm")
    decoded = decode_slice(SliceHeader(read_header(path)))
    assert "LOSSY" in decoded.repairs
    assert np.abs(decoded.values - expected).max() <= tolerance


def test_lidc_agrees_with_simpleitk(real_case):
    folder = real_case("lidc-idri-0314") / "dicom"
    with open_study(folder) as study:
        (series,) = study.series
        volume, notices = series.volume()
        assert study.notices == () and notices == ()
    image = by_simpleitk(folder)
    np.testing.assert_array_equal(volume.voxels, sitk.GetArrayViewFromImage(image))
    np.testing.assert_allclose(volume.grid.affine, affine_of(image), atol=1e-6)
    assert volume.voxels.dtype == np.int16
    # the annotated nodule: voxel (x 184, y 243, z 159) is at this place and is dense
    np.testing.assert_allclose(volume.grid.world((159, 243, 184)), (-57.44, 131.23, -520.36), atol=0.6)
    assert volume.voxels[159, 243, 184] > 0 > volume.voxels[159, 243, 160]


def test_jpeg2000_agrees_with_simpleitk(real_case):
    folder = real_case("ct-jpeg2000")
    with open_study(folder) as study:
        (series,) = study.series
        volume, notices = series.volume()
        assert {notice.code for notice in study.notices} == {"SOP_UIDS_MISSING", "UIDS_MISSING"}
        assert [notice.code for notice in notices] == ["SLICES_OVERLAP"]
    image = by_simpleitk(folder)
    np.testing.assert_array_equal(volume.voxels, sitk.GetArrayViewFromImage(image))
    np.testing.assert_allclose(volume.grid.affine, affine_of(image), atol=1e-6)


def test_tilted_head_is_straightened(real_case):
    """18.5° of tilt and three slice distances: values are checked against SimpleITK's interpolation of pairs."""
    with open_study(real_case("ct-tilt-ge")) as study:
        (series,) = study.series  # 21 acquisition numbers and two image types, and still one volume
        assert len(series) == 28 and series.split == ""
        volume, notices = series.volume()
        source = series.source_slices
        labels = np.zeros(volume.grid.shape, np.uint8)
        labels[volume.voxels > 300] = 1
        back = series.to_source(labels)
        planes = [decode_slice(header).values for header in series.arrangement.order]
    assert {notice.code for notice in notices} == {
        "SPACING_UNEVEN",
        "GANTRY_TILT",
        "SLICES_OVERLAP",
        "PIXEL_PADDING",
    }
    assert "18.50°" in next(notice.text for notice in notices if notice.code == "GANTRY_TILT")
    grid = volume.grid
    assert grid.is_orthogonal and grid.slices == ()
    np.testing.assert_allclose(grid.spacing_mm[0], 4.0, atol=0.01)
    # sample the volume at the source pixels of slices that a grid slice passes through
    for k in (0, 9, 27):
        rows, columns = np.mgrid[60:450:7, 60:450:7]
        index = np.stack([np.zeros_like(rows), rows, columns, np.ones_like(rows)], -1)
        at = grid.index((index @ source[k].affine.T)[..., :3])
        level = round(float(at[0, 0, 0]))
        if abs(at[0, 0, 0] - level) > 0.03:
            continue
        image = sitk.GetImageFromArray(volume.voxels[level])
        sampled = np.array(
            [[image.EvaluateAtContinuousIndex((c, r)) for _, r, c in line] for line in at.tolist()]
        )
        assert np.corrcoef(sampled.ravel(), planes[k][rows, columns].ravel())[0, 1] > 0.98
    # bone marked in the volume falls on bone of the source slices
    bone = np.stack(planes) > 300
    overlap = 2 * (bone & (back == 1)).sum() / (bone.sum() + (back == 1).sum())
    assert overlap > 0.93


def test_threads_do_not_change_the_voxels(real_case):
    with open_study(real_case("ct-jpeg2000")) as study:
        steps = []
        one, _ = study.series[0].volume(threads=1, progress=lambda done, total: steps.append((done, total)))
        four, _ = study.series[0].volume(threads=4)
    np.testing.assert_array_equal(one.voxels, four.voxels)
    assert steps == [(k, 20) for k in range(1, 21)]


def test_no_warning_escapes(real_case):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for case in ("codecs", "ct-tilt-ge"):
            with open_study(real_case(case)) as study:
                for series in study.series:
                    _ = series.attributes
