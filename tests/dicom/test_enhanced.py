"""Enhanced multi-frame CT and MR: each frame a slice, with its own place and rescale."""

from __future__ import annotations

import io

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import JPEGLSLossless, RLELossless

from wetread.dicom import open_study, read_header
from wetread.dicom.enhanced import frames
from wetread.errors import PixelError

ENHANCED = {"CT": "1.2.840.10008.5.1.4.1.1.2.1", "MR": "1.2.840.10008.5.1.4.1.1.4.1"}


def group(**elements):
    item = Dataset()
    for keyword, value in elements.items():
        setattr(item, keyword, value)
    return Sequence([item])


def enhance(make, frame_tags=None, slope=lambda k: 0.05, order=None):
    """A multi-frame instance of a maker's slices: matrix and spacing shared, place and rescale per frame."""
    slices = make.datasets()
    order = list(order or range(len(slices)))
    ds = slices[0]
    places = make.places()
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = ENHANCED[make.modality]
    ds.NumberOfFrames = len(order)
    shared = Dataset()
    shared.PixelMeasuresSequence = group(PixelSpacing=ds.PixelSpacing, SliceThickness=ds.SliceThickness)
    shared.PlaneOrientationSequence = group(ImageOrientationPatient=ds.ImageOrientationPatient)
    ds.SharedFunctionalGroupsSequence = Sequence([shared])
    items, pixels = [], []
    for n, k in enumerate(order):
        item = Dataset()
        item.FrameContentSequence = group(StackID="1", InStackPositionNumber=n + 1)
        item.PlanePositionSequence = group(ImagePositionPatient=[f"{v:.9f}" for v in places[k]])
        item.PixelValueTransformationSequence = group(
            RescaleSlope=f"{slope(k):.9g}", RescaleIntercept="10", RescaleType="HU"
        )
        for keyword, value in (frame_tags(n) if frame_tags else {}).items():
            setattr(item, keyword, value)
        items.append(item)
        pixels.append(np.rint((make.field_of(places[k]) - 10) / slope(k)).astype("<i2"))
    ds.PerFrameFunctionalGroupsSequence = Sequence(items)
    for keyword in (
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "SliceThickness",
        "RescaleSlope",
        "RescaleIntercept",
    ):
        delattr(ds, keyword)
    ds.PixelData = np.stack(pixels).tobytes()
    ds["PixelData"].VR = "OW"
    return ds


def check(volume, field_value):
    index = np.moveaxis(np.indices(volume.grid.shape), 0, -1)
    assert np.abs(volume.voxels - field_value(volume.grid.world(index))).max() <= 0.06


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_frames_are_slices(maker, store, field_value, modality):
    ds = enhance(maker(modality=modality), slope=lambda k: 0.05 + 0.01 * k, order=[5, 3, 1, 0, 2, 4])
    with open_study(store([ds])) as study:
        (series,) = study.series
        volume, notices = series.volume()
        assert notices == ()
        assert volume.modality == modality and volume.grid.shape == (6, 14, 12)
        assert [ref.frame for ref in volume.grid.slices] == [4, 3, 5, 2, 6, 1]
        assert {ref.sop_class_uid for ref in volume.grid.slices} == {ENHANCED[modality]}
        assert len(series.datasets) == 1
        assert series.attributes["slice_thickness_mm"] == "2"
        check(volume, field_value)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
def test_compressed_frames(maker, store, field_value, syntax):
    ds = enhance(maker())
    ds.compress(syntax, generate_instance_uid=False)
    with open_study(store([ds])) as study:
        volume, _ = study.series[0].volume()
    check(volume, field_value)


def test_tilted_and_deflated_frames(maker, store):
    ds = enhance(maker(step=(0, 0.7, 2)))
    ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    with open_study(store([ds])) as study:
        volume, notices = study.series[0].volume()
        assert [notice.code for notice in notices] == ["GANTRY_TILT"]
        assert volume.grid.is_orthogonal


def test_several_instances_make_one_volume(maker, store, field_value):
    low, high = enhance(maker(count=3)), enhance(maker(count=3, origin=(-5, 7, 17), first=50))
    with open_study(store([high, low])) as study:
        (series,) = study.series
        volume, _ = series.volume()
        assert volume.grid.shape[0] == 6 and len(series.datasets) == 2
        check(volume, field_value)


@pytest.mark.parametrize(
    ("name", "tags"),
    [
        ("stack", lambda n: {"FrameContentSequence": group(StackID=str(n % 2))}),
        (
            "image type",
            lambda n: {"MRImageFrameTypeSequence": group(FrameType=["ORIGINAL", "PRIMARY", "WF"[n % 2]])},
        ),
        ("echo time", lambda n: {"MREchoSequence": group(EffectiveEchoTime=10.0 * (n % 2 + 1))}),
        ("b-value", lambda n: {"MRDiffusionSequence": group(DiffusionBValue=500.0 * (n % 2))}),
        ("temporal position", lambda n: {"FrameContentSequence": group(TemporalPositionIndex=n % 2 + 1)}),
    ],
)
def test_frames_of_several_volumes(maker, store, name, tags):
    ds = enhance(maker(modality="MR"), tags, order=[k for k in range(6) for _ in range(2)])
    with open_study(store([ds])) as study:
        assert [len(series) for series in study.series] == [6, 6]
        assert all(name in series.split for series in study.series)
        for part, series in enumerate(study.series):
            assert [ref.frame for ref in series.grid()[0].slices] == [2 * k + 1 + part for k in range(6)]


def broken_count(ds):
    ds.NumberOfFrames = 7


def broken_zero(ds):
    ds.NumberOfFrames = 0


def no_groups(ds):
    del ds.PerFrameFunctionalGroupsSequence


@pytest.mark.parametrize(
    ("damage", "code", "tag"),
    [
        (broken_count, "MULTIFRAME", "(0028,0008)"),
        (broken_zero, "TAG_INVALID", "(0028,0008)"),
        (no_groups, "MULTIFRAME", "(5200,9230)"),
    ],
)
def test_malformed_frames(maker, store, damage, code, tag):
    ds = enhance(maker())
    damage(ds)
    with open_study(store([ds])) as study, pytest.raises(PixelError) as caught:
        study.series[0].volume()
    assert caught.value.code == code
    assert tag in caught.value.where


def test_frame_without_a_place_is_named(maker, store):
    ds = enhance(maker())
    del ds.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence
    from wetread.errors import GeometryError

    with open_study(store([ds])) as study, pytest.raises(GeometryError) as caught:
        study.series[0].volume()
    assert "frame 3" in caught.value.where and "(0020,0032)" in caught.value.where


def test_cut_off_frames(maker, store):
    folder = store([enhance(maker())])
    path = folder / "0000.dcm"
    path.write_bytes(path.read_bytes()[:-400])
    with open_study(folder) as study, pytest.raises(PixelError) as caught:
        study.series[0].volume()
    assert caught.value.code == "PIXEL_TRUNCATED"


def test_single_frame_instance_is_one_slice(maker):
    stream = io.BytesIO()
    maker().datasets()[0].save_as(stream, enforce_file_format=True)
    (header,) = frames(read_header(stream.getvalue()))
    assert header.frame == 0 and header.shape == (14, 12)


def test_highdicom_legacy_conversion(maker, store, field_value):
    """An object made by another library: classic slices converted to a legacy enhanced instance."""
    hd = pytest.importorskip("highdicom")
    datasets = maker().datasets()
    for ds in datasets:
        ds.PatientID, ds.PatientName = "PHANTOM", "PHANTOM^"
        ds.PatientBirthDate = ds.PatientSex = ds.AccessionNumber = ds.StudyID = ds.StudyDate = (
            ds.StudyTime
        ) = ""
        ds.ReferringPhysicianName, ds.Manufacturer, ds.AcquisitionNumber = "", "wetread", 1
        ds.KVP, ds.PositionReferenceIndicator, ds.SeriesDescription = "120", "", ""
        ds.AcquisitionDate = ds.ContentDate = ds.SeriesDate = ds.InstanceCreationDate = "20260101"
        ds.AcquisitionTime = ds.ContentTime = ds.SeriesTime = ds.InstanceCreationTime = "120000"
        ds.BodyPartExamined, ds.PatientPosition, ds.BurnedInAnnotation = "CHEST", "HFS", "NO"
        ds.VolumetricProperties, ds.SoftwareVersions, ds.DeviceSerialNumber = "VOLUME", "1", "1"
    converted = hd.legacy.LegacyConvertedEnhancedCTImage(datasets, "1.2.3.9", 9, "1.2.3.9.1", 1)
    with open_study(store([converted])) as study:
        volume, _ = study.series[0].volume()
    assert volume.grid.shape == (6, 14, 12)
    check(volume, field_value)
