import errno
import gzip
import re
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from wetread.errors import FileFormatError, GeometryError, OutputError, PixelError, StudyNotFoundError
from wetread.nifti import read_nifti, write_mask
from wetread.volume import Grid, SliceRef

AFFINE = np.array([[-0.8, 0.1, 0, 12], [0.1, 0.8, 0, -40], [0, 0, 2.5, 7], [0, 0, 0, 1.0]])
FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])


def save(path, array, affine=AFFINE, unit="mm", kind=nib.Nifti1Image, **fields):
    image = kind(array, affine)
    image.header.set_xyzt_units(unit)
    for name, value in fields.items():
        image.header[name] = value
    nib.save(image, path)
    return path


def patch(path, offset, data):
    raw = bytearray(path.read_bytes())
    raw[offset : offset + len(data)] = data
    path.write_bytes(bytes(raw))
    return path


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(-1000, 1000, (5, 6, 7)).astype(np.int16)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_array_and_place(tmp_path, image, name, kind):
    volume, notices = read_nifti(save(tmp_path / name, image, kind=kind))
    assert notices == ()
    assert volume.voxels.dtype == np.int16
    assert volume.voxels.flags.c_contiguous
    np.testing.assert_array_equal(volume.voxels, image)
    np.testing.assert_allclose(volume.grid.affine, FLIP @ AFFINE, atol=1e-5)
    assert volume.sources == (name,)
    assert volume.grid.axis_codes == "LAS"


def test_agrees_with_nibabel_on_scaling_and_byte_order(tmp_path, image):
    path = tmp_path / "a.nii"
    for endian in "<>":
        big = nib.Nifti1Image(image, AFFINE, nib.Nifti1Header(endianness=endian))
        big.header.set_slope_inter(0.25, -3)
        nib.save(big, path)
        volume, _ = read_nifti(path)
        assert volume.voxels.dtype == np.float32
        np.testing.assert_allclose(volume.voxels, np.asarray(nib.load(path).dataobj), atol=1e-3)


def test_whole_intercept_stays_integer(tmp_path):
    stored = np.arange(5 * 6 * 7, dtype=np.uint16).reshape(5, 6, 7)
    path = patch(save(tmp_path / "a.nii", stored), 112, struct.pack("<ff", 1.0, -1024.0))
    volume, _ = read_nifti(path)
    assert volume.voxels.dtype == np.int16
    np.testing.assert_array_equal(volume.voxels, stored.astype(int) - 1024)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32, np.float64])
def test_types(tmp_path, dtype):
    stored = np.random.default_rng(1).integers(0, 200, (4, 5, 6)).astype(dtype)
    volume, _ = read_nifti(save(tmp_path / "a.nii.gz", stored))
    assert volume.voxels.dtype == (np.float32 if np.dtype(dtype).kind == "f" else dtype)
    np.testing.assert_array_equal(volume.voxels, stored)


def test_trailing_axes_of_one(tmp_path, image):
    volume, _ = read_nifti(save(tmp_path / "a.nii", image[..., None, None]))
    np.testing.assert_array_equal(volume.voxels, image)


@pytest.mark.parametrize(("unit", "factor"), [("meter", 1000.0), ("micron", 0.001)])
def test_units_become_millimetres(tmp_path, image, unit, factor):
    volume, notices = read_nifti(save(tmp_path / "a.nii", image, AFFINE @ np.diag([10, 10, 10, 1]), unit))
    assert volume.grid.spacing_mm[2] == pytest.approx(25 * factor)
    assert [notice.code for notice in notices] == ["NIFTI_UNIT"]


def test_sform_wins_and_the_difference_is_told(tmp_path, image):
    made = nib.Nifti1Image(image, AFFINE)
    moved = AFFINE.copy()
    moved[0, 3] += 5
    made.set_qform(moved, 1)
    made.set_sform(AFFINE, 2)
    nib.save(made, tmp_path / "a.nii")
    volume, notices = read_nifti(tmp_path / "a.nii")
    np.testing.assert_allclose(volume.grid.affine, FLIP @ AFFINE, atol=1e-5)
    assert [notice.code for notice in notices] == ["NIFTI_FORMS_DIFFER"]
    assert "5 mm" in notices[0].text


def test_qform_alone_and_no_form(tmp_path, image):
    made = nib.Nifti1Image(image, None)
    made.set_qform(AFFINE, 1)
    made.set_sform(None, 0)
    nib.save(made, tmp_path / "q.nii")
    volume, notices = read_nifti(tmp_path / "q.nii")
    np.testing.assert_allclose(volume.grid.affine, FLIP @ AFFINE, atol=1e-4)
    assert notices == ()
    made.set_qform(None, 0)
    nib.save(made, tmp_path / "n.nii")
    volume, notices = read_nifti(tmp_path / "n.nii")
    assert [notice.code for notice in notices] == ["NIFTI_NO_PLACE"]
    np.testing.assert_allclose(volume.grid.spacing_mm, made.header.get_zooms(), rtol=1e-6)


@pytest.mark.parametrize(
    ("array", "error", "code"),
    [
        (np.zeros((4, 5, 6, 2), np.int16), FileFormatError, "NIFTI_4D"),
        (np.zeros((4, 5, 1), np.int16), GeometryError, "ONE_SLICE"),
        (np.zeros((4, 5), np.int16), GeometryError, "ONE_SLICE"),
        (np.zeros((4, 5, 6), np.complex64), PixelError, "VOXEL_TYPE"),
        (np.zeros((4, 5, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")]), PixelError, "VOXEL_TYPE"),
        (np.full((4, 5, 6), np.nan, np.float32), PixelError, "VOXELS_NOT_FINITE"),
    ],
)
def test_refused_images(tmp_path, array, error, code):
    with pytest.raises(error, match=r"a\.nii") as caught:
        read_nifti(save(tmp_path / "a.nii", array))
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("row", "code"), [((np.nan, 0, 0, 0), "AFFINE_NOT_FINITE"), ((0, 0, 0, 0), "AFFINE_SINGULAR")]
)
def test_refused_affines(tmp_path, image, row, code):
    path = patch(save(tmp_path / "a.nii", image, sform_code=1), 280, struct.pack("<4f", *row))
    with pytest.raises(GeometryError, match=r"a\.nii") as caught:
        read_nifti(path)
    assert caught.value.code == code


def test_damaged_files(tmp_path, image):
    good, packed = save(tmp_path / "a.nii", image), save(tmp_path / "a.nii.gz", image)
    with pytest.raises(StudyNotFoundError):
        read_nifti(tmp_path / "none.nii")
    cases = {
        "empty.nii": b"",
        "empty.nii.gz": b"",
        "text.nii": b"this is a text file " * 40,
        "text.nii.gz": b"this is a text file " * 40,
        "short.nii": good.read_bytes()[:-50],
        "header.nii": good.read_bytes()[:100],
        "short.nii.gz": packed.read_bytes()[:-60],
        "flipped.nii.gz": packed.read_bytes()[:200] + b"\xff" * 30 + packed.read_bytes()[230:],
        "inner.nii.gz": gzip.compress(good.read_bytes()[:-50]),
    }
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(FileFormatError, match=re.escape(name)):
            read_nifti(tmp_path / name)


def test_header_that_promises_terabytes(tmp_path, image):
    path = patch(save(tmp_path / "a.nii", image), 40, struct.pack("<8h", 3, 32000, 32000, 32000, 1, 1, 1, 1))
    with pytest.raises(FileFormatError, match="promises"):
        read_nifti(path)
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(FileFormatError, match="promises"):
        read_nifti(tmp_path / "b.nii.gz")


def stack_grid():
    affine = np.array([[0, 0, 0.7, -100], [0, 0.7, 0, -90], [2.0, 0, 0, 50], [0, 0, 0, 1]])
    return Grid((4, 6, 8), affine, "1.2", tuple(SliceRef(f"1.{i}") for i in range(4)))


@pytest.mark.parametrize("name", ["mask.nii", "mask.nii.gz"])
def test_mask_of_a_stack(tmp_path, name):
    grid = stack_grid()
    mask = np.random.default_rng(2).integers(0, 3, grid.shape).astype(np.uint8)
    write_mask(tmp_path / name, mask, grid)
    image = nib.load(tmp_path / name)
    assert image.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(image.dataobj), mask.transpose(2, 1, 0))
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 1)
    np.testing.assert_allclose(image.get_sform(), image.get_qform(), atol=1e-5)
    world = image.affine @ (5, 3, 2, 1)
    np.testing.assert_allclose(world[:3] * (-1, -1, 1), grid.world((2, 3, 5)), atol=1e-4)
    volume, notices = read_nifti(tmp_path / name)
    assert notices == ()
    assert volume.voxels.dtype == np.uint8
    assert [p.name for p in tmp_path.iterdir()] == [name]
    first = (tmp_path / name).read_bytes()
    write_mask(tmp_path / name, mask, grid)
    assert (tmp_path / name).read_bytes() == first


def test_mask_of_a_nifti_image_has_its_axes(tmp_path, image):
    volume, _ = read_nifti(save(tmp_path / "a.nii", image))
    mask = (volume.voxels > 0).astype(np.uint8)
    write_mask(tmp_path / "m.nii.gz", mask, volume.grid)
    back = nib.load(tmp_path / "m.nii.gz")
    np.testing.assert_array_equal(np.asarray(back.dataobj), image > 0)
    np.testing.assert_allclose(back.affine, AFFINE, atol=1e-5)


def test_sheared_grid_has_no_qform(tmp_path):
    affine = np.eye(4)
    affine[2, 1] = 0.3
    write_mask(tmp_path / "m.nii", np.ones((3, 4, 5), np.uint8), Grid((3, 4, 5), affine))
    header = nib.load(tmp_path / "m.nii").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 0)
    np.testing.assert_allclose(read_nifti(tmp_path / "m.nii")[0].grid.affine, affine, atol=1e-6)


def test_full_disk_leaves_nothing(tmp_path, monkeypatch):
    grid = stack_grid()
    (tmp_path / "mask.nii.gz").write_bytes(b"older")

    def full(self, *args, **kw):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputError, match="No space left") as caught:
        write_mask(tmp_path / "mask.nii.gz", np.zeros(grid.shape, np.uint8), grid)
    assert caught.value.code == "DISK_FULL"
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("mask.nii.gz", b"older")]
    with pytest.raises(OutputError, match="expected uint8"):
        write_mask(tmp_path / "m.nii", np.zeros((1, 2, 3), np.uint8), grid)


def test_folder_that_is_a_file(tmp_path):
    (tmp_path / "out").write_bytes(b"")
    with pytest.raises(OutputError, match="could not be written"):
        write_mask(tmp_path / "out" / "mask.nii.gz", np.zeros((4, 6, 8), np.uint8), stack_grid())
