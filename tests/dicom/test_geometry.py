"""Each fault of geometry: repaired with values preserved at their place in the patient, or refused by name."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wetread.dicom.files import read_header
from wetread.dicom.geometry import arrange
from wetread.dicom.header import SliceHeader, Source
from wetread.dicom.straighten import to_source
from wetread.errors import GeometryError, PixelError

# The ramp is stored with a resolution of 0.05, so each value is within 0.025, plus float32 rounding.
TOLERANCE = 0.026


def codes(notices):
    return {notice.code for notice in notices}


def inside(grid, margin=0):
    """World positions of all voxels, shape (*shape, 3)."""
    return grid.world(np.moveaxis(np.indices(grid.shape), 0, -1))


def check_ramp(volume, field_value, where=None):
    expected = field_value(inside(volume.grid))
    off = np.abs(volume.voxels - expected)
    assert (off if where is None else off[where]).max() <= TOLERANCE


def test_regular_series_is_taken_as_it_is(maker, only, field_value):
    make = maker()
    volume, notices = only(make.datasets()).volume()
    assert volume.voxels.shape == (6, 14, 12)
    assert notices == ()
    np.testing.assert_allclose(volume.grid.affine[:3, 3], make.origin, atol=1e-9)
    np.testing.assert_allclose(volume.grid.spacing_mm, (2, 1, 1), atol=1e-9)
    assert volume.grid.axis_codes == "SPL"
    assert [ref.sop_instance_uid for ref in volume.grid.slices] == [f"1.2.3.1.{k}" for k in range(1, 7)]
    assert volume.grid.frame_of_reference == "1.2.3.999"
    check_ramp(volume, field_value)


def test_reversed_order_gives_the_same_volume(maker, only, field_value):
    make = maker(step=(0, 0, -2.0), origin=(-5, 7, 21))
    volume, notices = only(make.datasets()).volume()
    assert notices == ()
    assert volume.grid.slices[0].sop_instance_uid == "1.2.3.1.6"
    check_ramp(volume, field_value)


@pytest.mark.parametrize(
    "orientation",
    [
        (0, 1, 0, 0, 0, -1),
        (1, 0, 0, 0, 0, -1),
        (0.8, 0.6, 0, 0, 0, -1),
        (0.6, 0, 0.8, 0, -1, 0),
        (-1, 0, 0, 0, 1, 0),
    ],
)
def test_other_planes_and_oblique(maker, only, field_value, orientation):
    volume, notices = only(maker(orientation=orientation, spacing=(1.5, 0.75)).datasets()).volume()
    assert notices == ()
    np.testing.assert_allclose(volume.grid.spacing_mm, (2, 1.5, 0.75), atol=1e-9)
    assert volume.grid.is_orthogonal
    check_ramp(volume, field_value)


def test_rounded_positions_are_even(maker, only):
    places = [(0, 0, round(0.625 * k, 1)) for k in range(9)]
    volume, notices = only(maker(positions=places, thickness=0.625).datasets()).volume()
    assert codes(notices) == {"SPACING_ROUNDED"}
    assert volume.grid.shape[0] == 9
    np.testing.assert_allclose(volume.grid.spacing_mm[0], 0.625, atol=1e-9)


@pytest.mark.parametrize(
    "levels", [(0, 1.8, 3.6, 4.6, 5.6, 6.6), (0, 1, 2.1, 2.9, 4, 5.05), (0, 4, 8, 12, 13, 20, 27, 34)]
)
def test_uneven_spacing_is_evened(maker, only, field_value, levels):
    thickness = float(np.diff(levels).max())
    make = maker(positions=[(1, 2, z) for z in levels], thickness=thickness)
    series = only(make.datasets())
    volume, notices = series.volume()
    assert "SPACING_UNEVEN" in codes(notices)
    assert volume.voxels.dtype == np.float32
    assert volume.grid.slices == ()
    ends = volume.grid.world([(0, 0, 0), (volume.grid.shape[0] - 1, 0, 0)])
    np.testing.assert_allclose(ends, [(1, 2, levels[0]), (1, 2, levels[-1])], atol=1e-9)
    check_ramp(volume, field_value)
    labels = np.broadcast_to(
        np.arange(volume.grid.shape[0], dtype=np.uint8)[:, None, None], volume.grid.shape
    )
    back = series.to_source(labels)
    nearest = np.rint(np.array(levels) / volume.grid.spacing_mm[0])
    np.testing.assert_array_equal(back[:, 3, 3], nearest)
    uids = [part.ref.sop_instance_uid for part in series.source_slices]
    assert uids == [f"1.2.3.1.{k + 1}" for k in range(len(levels))]


def test_missing_slice_is_refused(maker, only):
    datasets = maker(count=9).datasets()
    del datasets[4]
    with pytest.raises(GeometryError) as caught:
        only(datasets).grid()
    assert caught.value.code == "SLICE_MISSING"
    assert "1.2.3.1.4" in caught.value.where and "1.2.3.1.6" in caught.value.where
    assert "(0020,0032) ImagePositionPatient" in caught.value.where


def test_gap_without_cover_is_refused(maker, only):
    places = [(0, 0, z) for z in (0, 2, 4, 7, 9, 11)]
    with pytest.raises(GeometryError) as caught:
        only(maker(positions=places).datasets()).grid()
    assert caught.value.code == "SLICE_GAP"


@pytest.mark.parametrize("step", [(0, 0.7, 2.0), (0, -0.7, 2.0), (0.33, 0.7, 2.0)])
def test_gantry_tilt_is_straightened(maker, only, field_value, step):
    make = maker(step=step, count=7)
    series = only(make.datasets())
    volume, notices = series.volume()
    assert codes(notices) == {"GANTRY_TILT"}
    assert volume.grid.is_orthogonal
    assert volume.grid.shape[1] == 14 + np.ceil(abs(step[1]) * 6)
    fields = np.stack([make.field_of(place) for place in make.places()])
    source = to_world(series, fields.shape)
    np.testing.assert_allclose(field_value(source), fields, atol=1e-6)
    off = np.abs(volume.voxels - field_value(inside(volume.grid)))
    fill = volume.voxels == -1024
    assert 0 < fill.mean() < 0.6
    # within half a voxel of the border of a slice its values repeat the edge
    index = volume.grid.index(source)
    solid = np.zeros(volume.grid.shape, bool)
    low = np.ceil(index - 1e-6).astype(int)
    solid[tuple(np.moveaxis(low[:, :-1, :-1], -1, 0))] = True
    assert off[solid].max() <= TOLERANCE
    # labels of a half space come back where they belong
    labels = (volume.grid.world(np.moveaxis(np.indices(volume.grid.shape), 0, -1))[..., 1] > 14).astype(
        np.uint8
    )
    back = series.to_source(labels)
    wrong = (back == 1) != (source[..., 1] > 14)
    assert np.abs(source[..., 1] - 14)[wrong].max(initial=0) <= 0.5 + 1e-6


def to_world(series, shape):
    rows, columns = np.indices(shape[1:])
    index = np.stack([np.zeros_like(rows), rows, columns, np.ones_like(rows)], -1)
    return np.stack([(index @ part.affine.T)[..., :3] for part in series.source_slices])


def test_straightening_agrees_with_simpleitk(maker, only):
    """A smooth, non-linear object, sampled by SimpleITK on the same grid from the sheared image's own affine."""
    sitk = pytest.importorskip("SimpleITK")
    step = np.array((0, 0.7, 2.0))
    make = maker(step=tuple(step), count=7)
    datasets = make.datasets()
    rng = np.random.default_rng(3)
    planes = rng.integers(-500, 500, (7, *make.shape)).astype(np.int16)
    for ds, plane in zip(datasets, planes, strict=True):
        ds.PixelData, ds.RescaleSlope = plane.astype("<i2").tobytes(), "1"
    volume, _ = only(datasets).volume()
    # Each output slice lies in the plane of a source slice: compare slice by slice, as 2D resampling.
    for k in range(7):
        image = sitk.GetImageFromArray(planes[k].astype(np.float32))
        image.SetOrigin((make.places()[k][0], make.places()[k][1]))
        grid = volume.grid
        out = sitk.Resample(
            image,
            (grid.shape[2], grid.shape[1]),
            sitk.Transform(2, sitk.sitkIdentity),
            sitk.sitkLinear,
            (float(grid.affine[0, 3]), float(grid.affine[1, 3])),
            (1.0, 1.0),
            (1.0, 0.0, 0.0, 1.0),
            -1024.0,
        )
        expected = sitk.GetArrayFromImage(out)
        start = make.places()[k][1] - grid.affine[1, 3]
        core = slice(int(np.ceil(start - 1e-9)), int(np.floor(start + 13 + 1e-9)) + 1)
        np.testing.assert_allclose(volume.voxels[k][core], expected[core], atol=1e-2)


def test_extreme_shift_is_refused(maker, only):
    with pytest.raises(GeometryError) as caught:
        only(maker(step=(0, 5.0, 2.0), count=9).datasets()).grid()
    assert caught.value.code == "SHIFT_TOO_LARGE"


def test_jitter_in_plane_is_moved(maker, only, field_value):
    places = [(0, 0, 0), (0.4, 0, 2), (0, -0.6, 4), (0.2, 0.3, 6), (0, 0, 8)]
    volume, notices = only(maker(positions=places).datasets()).volume()
    assert codes(notices) == {"SLICES_SHIFTED"}
    core = (slice(None), slice(2, -2), slice(2, -2))
    check_ramp(volume, field_value, core)


def test_tiny_jitter_is_ignored(maker, only):
    places = [(0.02 * (k % 2), 0, 2 * k) for k in range(5)]
    _, notices = only(maker(positions=places).datasets()).volume()
    assert notices == ()


def test_equal_duplicates_are_dropped(maker, only, field_value):
    datasets = maker().datasets()
    extra = maker(first=100).datasets()[2]
    volume, notices = only([*datasets, extra]).volume()
    assert codes(notices) == {"DUPLICATE_SLICE"}
    assert "1.2.3.1.102" in notices[0].where
    assert volume.grid.shape[0] == 6
    check_ramp(volume, field_value)


def test_different_duplicates_are_refused(maker, only):
    datasets = maker().datasets()
    extra = maker(first=100).datasets()[2]
    extra.PixelData = bytes(len(extra.PixelData))
    with pytest.raises(GeometryError) as caught:
        only([*datasets, extra]).volume()
    assert caught.value.code == "DUPLICATE_DIFFERS"
    assert "1.2.3.1.102" in caught.value.where


def test_two_fields_of_view_in_one_plane_are_refused(maker, only):
    places = [(x, 0, 2.0 * k) for k in range(4) for x in (0, 30)]
    with pytest.raises(GeometryError) as caught:
        only(maker(positions=places).datasets()).grid()
    assert caught.value.code == "POSITION_CONFLICT"


def test_overlapping_slices_are_told(maker, only):
    assert codes(only(maker(thickness=4).datasets()).grid()[1]) == {"SLICES_OVERLAP"}


def test_spaced_slices_are_told(maker, only):
    assert codes(only(maker(thickness=1).datasets()).grid()[1]) == {"SLICES_APART"}


def test_one_slice_is_refused(maker, only):
    with pytest.raises(GeometryError) as caught:
        only(maker(count=1).datasets()).grid()
    assert caught.value.code == "SINGLE_SLICE"
    assert "1.2.3.1.1" in caught.value.where


@pytest.mark.parametrize(
    ("keyword", "value", "code", "tag"),
    [
        (
            "ImageOrientationPatient",
            ["1", "0.02", "0", "-0.02", "1", "0"],
            "ORIENTATION_DIFFERS",
            "(0020,0037)",
        ),
        ("ImageOrientationPatient", ["1", "0", "0", "1", "0", "0"], "ORIENTATION_INVALID", "(0020,0037)"),
        ("ImageOrientationPatient", ["2", "0", "0", "0", "1", "0"], "ORIENTATION_INVALID", "(0020,0037)"),
        ("PixelSpacing", ["1", "1.1"], "SPACING_DIFFERS", "(0028,0030)"),
        ("PixelSpacing", ["0", "1"], "TAG_INVALID", "(0028,0030)"),
        ("PixelSpacing", ["1"], "TAG_INVALID", "(0028,0030)"),
        ("Rows", 13, "MATRIX_DIFFERS", "(0028,0010)"),
    ],
)
def test_one_slice_that_differs_is_refused(maker, only, keyword, value, code, tag):
    datasets = maker().datasets()
    setattr(datasets[3], keyword, value)
    with pytest.raises((GeometryError, PixelError)) as caught:
        only(datasets).grid()
    assert caught.value.code == code
    assert tag in caught.value.where
    assert "1.2.3.1.4" in caught.value.where


@pytest.mark.parametrize(
    "text", [b"NaN\\0\\0 ", b"inf\\0\\0 ", b"0\\0 ", b"abc\\0\\0 ", b"0\\0\\0\\0 ", b"1e999\\0\\0"]
)
def test_position_that_is_no_number_is_refused(maker, only, text):
    datasets = maker().datasets()
    series = only(datasets)
    element = series.slices[2].instance.dataset.get_item("ImagePositionPatient")
    series.slices[2].instance.dataset._dict[element.tag] = element._replace(value=text)
    del series.slices[2].position  # parsed once already, when the series was split
    with pytest.raises(GeometryError) as caught:
        series.grid()
    assert caught.value.code == "TAG_INVALID"
    assert "(0020,0032) ImagePositionPatient" in caught.value.where
    assert series.slices[2].instance.sop_instance_uid in caught.value.where


def test_nan_position_in_a_file_is_refused(maker, store):
    from wetread.dicom import open_study

    folder = store(maker().datasets())
    path = folder / "0002.dcm"
    raw = path.read_bytes()
    assert raw.count(b"-5.000000000\\") == 1
    path.write_bytes(raw.replace(b"-5.000000000\\", b"NaN         \\"))
    with open_study(folder) as study, pytest.raises(GeometryError) as caught:
        study.series[0].volume()
    assert caught.value.code == "TAG_INVALID"
    assert "NaN" in caught.value.what


def test_repeated_instance_uid_is_refused(maker, only):
    datasets = maker().datasets()
    datasets[3].SOPInstanceUID = datasets[2].SOPInstanceUID
    with pytest.raises(GeometryError) as caught:
        only(datasets).grid()
    assert caught.value.code == "SOP_INSTANCE_UID_REPEATED"


def test_missing_frame_of_reference_is_told(maker, only):
    datasets = maker().datasets()
    for ds in datasets:
        del ds.FrameOfReferenceUID
    grid, notices = only(datasets).grid()
    assert codes(notices) == {"FRAME_OF_REFERENCE_MISSING"}
    assert grid.frame_of_reference == ""


def test_labels_of_another_shape_are_refused(maker, only):
    with pytest.raises(GeometryError):
        only(maker().datasets()).to_source(np.zeros((1, 2, 3), np.uint8))


def headers_of(datasets):
    from io import BytesIO

    found = []
    for ds in datasets:
        stream = BytesIO()
        ds.save_as(stream, enforce_file_format=True)
        found.append(SliceHeader(read_header(Source("memory", data=stream.getvalue()))))
    return found


unit = st.floats(-1, 1, allow_nan=False)


@given(
    a=st.tuples(unit, unit, unit),
    b=st.tuples(unit, unit, unit),
    order=st.permutations(range(5)),
    origin=st.tuples(*[st.floats(-20, 20)] * 3),
    distance=st.floats(0.5, 4),
)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_orientation_and_order(maker, a, b, order, origin, distance):
    """The grid puts each voxel where the slice's own header puts it."""
    x = np.array(a)
    y = np.array(b)
    if np.linalg.norm(x) < 0.1 or np.linalg.norm(np.cross(x, y)) < 0.1:
        return
    x /= np.linalg.norm(x)
    y -= (x @ y) * x
    y /= np.linalg.norm(y)
    make = maker(
        count=5, shape=(4, 3), orientation=(*x, *y), origin=origin, distance=distance, spacing=(0.9, 1.3)
    )
    datasets = make.datasets()
    found = arrange(headers_of([datasets[k] for k in order]))
    assert found.is_identity
    assert np.linalg.det(found.grid.affine[:3, :3]) != 0
    for k, ref in enumerate(found.grid.slices):
        place = make.places()[int(ref.sop_instance_uid.split(".")[-1]) - 1]
        for row, column in ((0, 0), (3, 2)):
            expected = place + row * 0.9 * y + column * 1.3 * x
            np.testing.assert_allclose(found.grid.world((k, row, column)), expected, atol=1e-6)


@given(tilt=st.floats(-0.4, 0.4), side=st.floats(-0.3, 0.3), distance=st.floats(1, 3))
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_tilt_keeps_places_and_labels(maker, tilt, side, distance):
    """Every source pixel takes the label of a voxel at most half a voxel away along each axis."""
    make = maker(step=(side * distance, tilt * distance, distance), count=6)
    found = arrange(headers_of(make.datasets()))
    grid = found.grid
    assert grid.is_orthogonal
    for axis in range(3):
        labels = np.broadcast_to(
            np.arange(grid.shape[axis], dtype=np.uint8).reshape([-1 if a == axis else 1 for a in range(3)]),
            grid.shape,
        )
        back = to_source(labels, found)
        for k, place in enumerate(make.places()):
            index = grid.index(place + np.array((3, 5, 0.0)))
            assert abs(back[k, 5, 3] - index[axis]) <= 0.5 + 0.11
