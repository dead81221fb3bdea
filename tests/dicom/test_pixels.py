"""From stored values to real ones: representation, rescale, padding, photometric interpretation, encodings."""

from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from wetread.dicom import open_study, read_header
from wetread.dicom.header import SliceHeader, Source
from wetread.dicom.pixels import decode_slice
from wetread.errors import FileFormatError, GeometryError, PixelError, WetreadError


def header_of(ds, **options):
    stream = io.BytesIO()
    ds.save_as(stream, **({"enforce_file_format": True} | options))
    return SliceHeader(read_header(Source("memory", data=stream.getvalue())))


def slice_with(maker, stored, **tags):
    """One CT slice with given stored values."""
    ds = maker(shape=stored.shape).dataset(0, np.zeros(3))
    ds.PixelRepresentation = int(stored.dtype.kind == "i")
    ds.BitsAllocated = ds.BitsStored = stored.dtype.itemsize * 8
    ds.HighBit = ds.BitsStored - 1
    ds.RescaleSlope, ds.RescaleIntercept = "1", "0"
    data = stored.astype(stored.dtype.newbyteorder("<")).tobytes()
    ds.PixelData = data + b"\0" * (len(data) % 2)
    ds["PixelData"].VR = "OB" if stored.dtype.itemsize == 1 else "OW"
    for keyword, value in tags.items():
        setattr(ds, keyword, value)
    return ds


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4"])
def test_every_width_and_sign(maker, dtype):
    info = np.iinfo(dtype)
    stored = np.array([[info.min, 0, 1], [info.max, 7, 100]], dtype)
    decoded = decode_slice(header_of(slice_with(maker, stored)))
    np.testing.assert_array_equal(decoded.values, stored.astype(np.float32))
    assert decoded.values.dtype == (np.int16 if dtype in ("u1", "i1", "i2") else np.float32)


@pytest.mark.parametrize("into", [True, False])
def test_unsigned_values_that_fit_stay_int16(maker, into):
    stored = np.array([[0, 1024], [4095, 33791]], np.uint16)
    out = np.empty((2, 2), np.int16) if into else None
    values = decode_slice(header_of(slice_with(maker, stored, RescaleIntercept="-1024")), out).values
    assert values.dtype == np.int16
    np.testing.assert_array_equal(values, stored.astype(int) - 1024)
    assert not into or np.shares_memory(values, out)


def test_values_that_do_not_fit_become_float(maker):
    stored = np.array([[0, 65535], [40000, 1]], np.uint16)
    values = decode_slice(header_of(slice_with(maker, stored, RescaleIntercept="-1024"))).values
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, stored.astype(int) - 1024)


@pytest.mark.parametrize(
    ("signed", "expected"), [(True, [[-1, 5], [-2048, 2047]]), (False, [[4095, 5], [2048, 2047]])]
)
def test_bits_above_bits_stored_are_no_part_of_the_value(maker, signed, expected):
    stored = np.array([[0xFFF, 0x1005], [0x800, 0x57FF]], np.uint16)
    ds = slice_with(maker, stored, BitsStored=12, HighBit=11, PixelRepresentation=int(signed))
    np.testing.assert_array_equal(decode_slice(header_of(ds)).values, expected)


def test_whole_slope(maker):
    ds = slice_with(maker, np.array([[1, -2], [3, 4]], np.int16), RescaleSlope="2", RescaleIntercept="-10")
    values = decode_slice(header_of(ds)).values
    assert values.dtype == np.int16
    np.testing.assert_array_equal(values, [[-8, -14], [-4, -2]])


def test_rescale_of_each_slice_is_its_own(maker, only):
    datasets = maker(modality="MR").datasets()
    expected = []
    for k, ds in enumerate(datasets):
        ds.RescaleSlope, ds.RescaleIntercept = f"{1 + 0.25 * k:g}", f"{-10 * k}"
        stored = np.frombuffer(ds.PixelData, "<i2").reshape(14, 12)
        expected.append(stored * (1 + 0.25 * k) - 10 * k)
    volume, _ = only(datasets).volume()
    assert volume.modality == "MR"
    np.testing.assert_allclose(volume.voxels, expected, rtol=1e-6)


def test_mixed_width_falls_back_to_float(maker, only):
    """The last slice does not fit int16: the whole volume is float32, with the right values everywhere."""
    datasets = maker().datasets()
    for ds in datasets:
        ds.RescaleSlope, ds.PixelRepresentation = "1", 0
        ds.PixelData = np.full((14, 12), 7, "<u2").tobytes()
    datasets[-1].PixelData = np.full((14, 12), 50000, "<u2").tobytes()
    volume, _ = only(datasets).volume()
    assert volume.voxels.dtype == np.float32
    np.testing.assert_array_equal(volume.voxels[:, 0, 0], [7, 7, 7, 7, 7, 50000])


def test_ct_padding_becomes_air(maker):
    ds = slice_with(maker, np.array([[-2000, 5], [-2000, 40]], np.int16), PixelPaddingValue=63536)
    ds["PixelPaddingValue"].VR = "US"  # as GE writes it: unsigned for a signed image
    decoded = decode_slice(header_of(ds))
    assert decoded.repairs == {"PIXEL_PADDING"}
    np.testing.assert_array_equal(decoded.values, [[-1024, 5], [-1024, 40]])


def test_padding_range_and_modality_without_units(maker):
    ds = slice_with(
        maker,
        np.array([[-20, -15, 5], [-10, 40, 9]], np.int16),
        Modality="MR",
        PixelPaddingValue=-20,
        PixelPaddingRangeLimit=-10,
    )
    ds["PixelPaddingValue"].VR = ds["PixelPaddingRangeLimit"].VR = "SS"
    np.testing.assert_array_equal(decode_slice(header_of(ds)).values, [[5, 5, 5], [5, 40, 9]])


def test_padding_is_told_in_the_volume(maker, only):
    datasets = maker().datasets()
    for ds in datasets[:2]:
        ds.PixelPaddingValue = int(np.frombuffer(ds.PixelData, "<i2")[0])
        ds["PixelPaddingValue"].VR = "SS"
    volume, notices = only(datasets).volume()
    assert [notice.code for notice in notices] == ["PIXEL_PADDING"]
    assert "2 of 6" in notices[0].text
    assert volume.voxels[0, 0, 0] == -1024


def test_monochrome1(maker):
    stored = np.array([[0, 1], [4000, 4095]], np.uint16)
    tags = {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12, "HighBit": 11}
    inverted = decode_slice(header_of(slice_with(maker, stored, Modality="MR", **tags)))
    assert inverted.repairs == {"MONOCHROME1"}
    np.testing.assert_array_equal(inverted.values, 4095 - stored.astype(int))
    # Hounsfield units are defined by rescale, whatever the display: air stays dark
    ct = decode_slice(header_of(slice_with(maker, stored, RescaleIntercept="-1024", **tags)))
    assert ct.repairs == {"MONOCHROME1"}
    np.testing.assert_array_equal(ct.values, stored.astype(int) - 1024)


def test_modality_lut(maker):
    ds = slice_with(maker, np.array([[0, 10], [11, 99]], np.uint16))
    del ds.RescaleSlope, ds.RescaleIntercept
    lut = Dataset()
    lut.LUTDescriptor, lut.ModalityLUTType = [3, 10, 16], "HU"
    lut["LUTDescriptor"].VR = "US"
    lut.LUTData = [100, 300, 500]
    lut["LUTData"].VR = "US"
    ds.ModalityLUTSequence = [lut]
    decoded = decode_slice(header_of(ds))
    assert decoded.repairs == {"MODALITY_LUT"}
    np.testing.assert_array_equal(decoded.values, [[100, 100], [300, 500]])


def rewritten(ds, syntax, **options):
    ds.file_meta.TransferSyntaxUID = syntax
    return header_of(ds, **options)


def test_native_transfer_syntaxes_agree(maker):
    ds = maker().dataset(0, np.zeros(3))
    expected = decode_slice(header_of(ds)).values
    implicit = rewritten(ds, ImplicitVRLittleEndian, implicit_vr=True, little_endian=True)
    np.testing.assert_array_equal(decode_slice(implicit).values, expected)
    deflated = rewritten(ds, DeflatedExplicitVRLittleEndian)
    np.testing.assert_array_equal(decode_slice(deflated).values, expected)
    assert deflated.instance.transfer_syntax == DeflatedExplicitVRLittleEndian
    ds.PixelData = np.frombuffer(ds.PixelData, "<i2").astype(">i2").tobytes()
    big = rewritten(ds, ExplicitVRBigEndian, implicit_vr=False, little_endian=False)
    decoded = decode_slice(big)
    assert decoded.repairs == {"BIG_ENDIAN"}
    np.testing.assert_array_equal(decoded.values, expected)


def test_deflate_bomb_is_refused(maker, monkeypatch):
    from wetread.dicom import files

    ds = maker().dataset(0, np.zeros(3))
    ds.PixelData = bytes(4 << 20)
    stream = io.BytesIO()
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    ds.save_as(stream, enforce_file_format=True)
    monkeypatch.setattr(files, "_INFLATED_LIMIT", 1 << 20)
    with pytest.raises(FileFormatError) as caught:
        read_header(stream.getvalue())
    assert caught.value.code == "FILE_TOO_LARGE"


def test_rle(maker, only):
    datasets = maker().datasets()
    expected = [np.frombuffer(ds.PixelData, "<i2").reshape(14, 12) * 0.05 for ds in datasets]
    for ds in datasets:
        ds.compress(RLELossless, generate_instance_uid=False)
    volume, notices = only(datasets).volume()
    assert notices == ()
    np.testing.assert_allclose(volume.voxels, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("tags", "code", "tag"),
    [
        ({"PhotometricInterpretation": "RGB"}, "PHOTOMETRIC", "(0028,0004)"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "PHOTOMETRIC", "(0028,0004)"),
        ({"SamplesPerPixel": 3}, "PHOTOMETRIC", "(0028,0002)"),
        ({"BitsAllocated": 64}, "BITS", "(0028,0100)"),
        ({"BitsStored": 17}, "BITS", "(0028,0101)"),
        ({"HighBit": 14}, "BITS", "(0028,0102)"),
        ({"PixelRepresentation": 2}, "TAG_INVALID", "(0028,0103)"),
        ({"RescaleSlope": "0"}, "TAG_INVALID", "(0028,1053)"),
        ({"Rows": 0}, "TAG_INVALID", "(0028,0010)"),
        ({"Rows": 13}, "PIXEL_LENGTH", "(7fe0,0010)"),
        ({"PixelData": b"\0" * 10}, "PIXEL_LENGTH", "(7fe0,0010)"),
        ({"NumberOfFrames": 2}, "PIXEL_LENGTH", "(7fe0,0010)"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(maker, tags, code, tag):
    ds = maker().dataset(0, np.zeros(3))
    for keyword, value in tags.items():
        setattr(ds, keyword, value)
    with pytest.raises(PixelError) as caught:
        decode_slice(header_of(ds))
    assert caught.value.code == code
    assert tag in caught.value.where
    assert "1.2.3.1.1" in caught.value.where


REQUIRED = {
    "ImagePositionPatient": GeometryError,
    "ImageOrientationPatient": GeometryError,
    "PixelSpacing": GeometryError,
    "Rows": PixelError,
    "Columns": PixelError,
    "BitsAllocated": PixelError,
    "PixelRepresentation": PixelError,
    "PhotometricInterpretation": PixelError,
    "RescaleSlope": PixelError,
    "RescaleIntercept": PixelError,
    "PixelData": PixelError,
}


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("keyword", sorted(REQUIRED))
def test_required_elements(maker, only, keyword, everywhere):
    from wetread.dicom.tags import named

    datasets = maker().datasets()
    for ds in datasets if everywhere else datasets[-1:]:
        delattr(ds, keyword)
    with pytest.raises(REQUIRED[keyword]) as caught:
        only(datasets).volume()
    assert named(keyword) in caught.value.where
    assert ("1.2.3.1.1" if everywhere else "1.2.3.1.6") in caught.value.where


@pytest.mark.parametrize(
    "keyword",
    [
        "BitsStored",
        "HighBit",
        "SamplesPerPixel",
        "InstanceNumber",
        "SeriesNumber",
        "ImageType",
        "SliceThickness",
        "Modality",
        "StudyInstanceUID",
    ],
)
def test_elements_that_can_be_done_without(maker, only, keyword, field_value):
    datasets = maker().datasets()
    for ds in datasets:
        delattr(ds, keyword)
    volume, _ = only(datasets).volume()
    index = np.moveaxis(np.indices(volume.grid.shape), 0, -1)
    assert np.abs(volume.voxels - field_value(volume.grid.world(index))).max() < 0.026


@pytest.mark.parametrize("cut", [1, 100, 300])
def test_pixels_cut_off(maker, store, cut):
    folder = store(maker().datasets())
    path = folder / "0003.dcm"
    path.write_bytes(path.read_bytes()[:-cut])
    with open_study(folder) as study, pytest.raises(PixelError) as caught:
        study.series[0].volume()
    assert caught.value.code == "PIXEL_TRUNCATED"
    assert "0003.dcm" in caught.value.where and "(7fe0,0010) PixelData" in caught.value.where


def test_every_cut_is_an_error_or_whole(maker, store):
    """Wherever a file is cut off, reading fails with a named error or does not include the file's slice wrongly."""
    datasets = maker(shape=(4, 4)).datasets()
    folder = store(datasets)
    path = folder / "0003.dcm"
    whole = path.read_bytes()
    for cut in range(0, len(whole), 7):
        path.write_bytes(whole[:cut])
        with pytest.raises(WetreadError), open_study(folder) as study:
            study.series[0].volume()


@pytest.mark.parametrize(
    "syntax",
    [
        "1.2.840.10008.1.2.4.90",
        "1.2.840.10008.1.2.4.80",
        "1.2.840.10008.1.2.4.70",
        "1.2.840.10008.1.2.4.51",
        "1.2.840.10008.1.2.5",
        "1.2.840.10008.1.2.4.100",
    ],
)
def test_damaged_streams(maker, syntax):
    from pydicom.encaps import encapsulate

    ds = maker().dataset(0, np.zeros(3))
    ds.PixelData = encapsulate([zlib.compress(b"no image at all" * 9)])
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    ds.file_meta.TransferSyntaxUID = syntax
    with pytest.raises(PixelError) as caught:
        decode_slice(header_of(ds))
    assert caught.value.code in ("PIXEL_DECODE", "TRANSFER_SYNTAX")
    assert "1.2.3.1.1" in caught.value.where
