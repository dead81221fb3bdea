"""Folders, single files and archives: what is found, left out, repaired and refused."""

from __future__ import annotations

import io
import shutil
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.fileset import FileSet
from pydicom.uid import ExplicitVRLittleEndian

from wetread.dicom import ArchiveLimits, gather, open_study, read_header, write_ct_series
from wetread.dicom.synthetic import SeriesNames
from wetread.errors import ArchiveError, FileFormatError, GeometryError, PixelError, StudyNotFoundError
from wetread.volume import Grid, Volume


def codes(notices):
    return {notice.code for notice in notices}


def test_nested_mixed_folder_without_extensions(maker, store, tmp_path):
    store(maker(series=1).datasets(), "study/a/b", "IM{:04d}")
    store(maker(series=2, modality="MR").datasets(), "study/c", "{:d}")
    (tmp_path / "study/readme.txt").write_text("hello")
    (tmp_path / "study/c/.DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (tmp_path / "study/empty").write_bytes(b"")
    with open_study(tmp_path / "study") as study:
        assert [(series.modality, len(series)) for series in study.series] == [("CT", 6), ("MR", 6)]
        assert codes(study.notices) == {"STRAY_FILES"}
        assert "3 files" in study.notices[0].text
        for series in study.series:
            assert series.volume()[0].voxels.shape == (6, 14, 12)


def test_single_file(maker, store):
    folder = store(maker().datasets())
    with open_study(folder / "0000.dcm") as study:
        assert len(study.series[0]) == 1
        with pytest.raises(GeometryError):
            study.series[0].grid()


def test_nothing_there(tmp_path):
    with pytest.raises(StudyNotFoundError):
        open_study(tmp_path / "absent")
    with pytest.raises(StudyNotFoundError):
        open_study(tmp_path)
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(StudyNotFoundError) as caught:
        open_study(tmp_path)
    assert "1 files" in caught.value.what


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"", "FILE_EMPTY"), (b"only text\n" * 40, "FILE_NOT_DICOM"), (b"\0" * 128 + b"DICM", "FILE_BROKEN")],
)
def test_only_a_broken_file(tmp_path, content, code):
    path = tmp_path / "x.dcm"
    path.write_bytes(content)
    for target in (path, tmp_path):
        with pytest.raises(FileFormatError) as caught:
            open_study(target)
        assert caught.value.code == code
        assert "x.dcm" in caught.value.where


@pytest.mark.parametrize("content", [b"", b"only text\n" * 40, b"\0" * 128 + b"DICM\x02\0\0\0UL"])
def test_broken_file_beside_a_whole_series_is_told(maker, store, content):
    folder = store(maker().datasets())
    (folder / "z.dcm").write_bytes(content)
    with open_study(folder) as study:
        assert len(study.notices) == 1 and "z.dcm" in study.notices[0].where
        study.series[0].volume()


@pytest.mark.parametrize("content", [b"", b"only text\n" * 40])
def test_broken_file_that_leaves_a_hole_is_refused(maker, store, content):
    folder = store(maker(count=9).datasets())
    (folder / "0004.dcm").write_bytes(content)
    with open_study(folder) as study, pytest.raises((GeometryError, FileFormatError)) as caught:
        study.series[0].volume()
    assert caught.value.code in ("SLICE_MISSING", "INSTANCE_MISSING")


def test_file_cut_off_in_its_header_is_refused_with_its_series(maker, store):
    folder = store(maker().datasets())
    path = folder / "0005.dcm"
    raw = path.read_bytes()
    path.write_bytes(raw[: raw.index(b"\x28\0\x30\0") + 12])  # within Pixel Spacing, after the UIDs
    with open_study(folder) as study:
        assert "FILE_TRUNCATED" in codes(study.notices)
        with pytest.raises(FileFormatError) as caught:
            study.series[0].volume()
    assert caught.value.code == "FILE_TRUNCATED" and "0005.dcm" in caught.value.where


def test_other_objects_are_left_out(maker, store):
    report = maker().datasets()[0]
    report.SOPClassUID, report.Modality = "1.2.840.10008.5.1.4.1.1.88.34", "SR"
    report.SeriesInstanceUID = "1.2.3.50"
    del report.PixelData
    segmentation = maker(series=51).datasets()[0]
    segmentation.SOPClassUID, segmentation.Modality = "1.2.840.10008.5.1.4.1.1.66.4", "SEG"
    folder = store([*maker().datasets(), report, segmentation])
    with open_study(folder) as study:
        assert len(study.series) == 1
        assert codes(study.notices) == {"NOT_IMAGES"} and len(study.notices) == 2
    for path in sorted(folder.iterdir())[:6]:
        path.unlink()
    with pytest.raises(StudyNotFoundError) as caught:
        open_study(folder)
    assert "SEG, SR" in caught.value.what


def test_data_set_without_preamble(maker, store):
    folder = store(maker().datasets())
    for path in folder.iterdir():
        ds = Dataset()
        ds.update({element.tag: element for element in read_whole(path)})
        ds.save_as(path, implicit_vr=True, little_endian=True, enforce_file_format=False)
        assert path.read_bytes()[:2] == b"\x08\0"
    with open_study(folder) as study:
        assert codes(study.notices) == {"TRANSFER_SYNTAX_MISSING"}
        assert study.series[0].volume()[0].voxels.shape == (6, 14, 12)


def read_whole(path):
    from pydicom import dcmread

    return dcmread(path)


def complete(ds):
    """What a DICOMDIR needs of an instance."""
    ds.PatientID, ds.PatientName, ds.StudyDate, ds.StudyTime = "P", "PHANTOM", "20260101", "120000"
    ds.StudyID, ds.AccessionNumber, ds.StudyDescription, ds.ContentDate = "1", "", "", "20260101"
    return ds


@pytest.mark.parametrize("missing", [False, True])
def test_dicomdir(maker, tmp_path, missing):
    files = FileSet()
    for ds in maker().datasets():
        files.add(complete(ds))
    files.write(tmp_path / "cd")
    files._stage["t"].cleanup()  # pydicom leaves its staging folder to the garbage collector, which warns
    found = sorted(
        path for path in (tmp_path / "cd").rglob("*") if path.is_file() and path.name != "DICOMDIR"
    )
    assert len(found) == 6
    if missing:
        found[-1].unlink()  # at the end: geometry alone would not notice
    with open_study(tmp_path / "cd") as study:
        assert len(study.series) == 1
        if missing:
            assert codes(study.notices) == {"INSTANCE_MISSING"}
            with pytest.raises(FileFormatError) as caught:
                study.series[0].volume()
            assert caught.value.code == "INSTANCE_MISSING" and "1.2.3.1.6" in caught.value.what
        else:
            assert study.notices == ()
            assert study.series[0].volume()[0].voxels.shape == (6, 14, 12)


def test_emptied_identifiers(maker, store):
    datasets = maker().datasets()
    for ds in datasets:
        ds.SOPInstanceUID = ds.SOPClassUID = ds.SeriesInstanceUID = ds.StudyInstanceUID = ""
    folder = store(datasets)
    uids = set()
    for _ in range(2):
        with open_study(folder) as study:
            assert codes(study.notices) == {"SOP_UIDS_MISSING", "UIDS_MISSING"}
            (series,) = study.series
            assert series.grid()[0].slices[0].sop_instance_uid == "1.2.3.1.1"
            uids.add(series.uid)
    assert len(uids) == 1 and next(iter(uids)).startswith("2.25.")


def test_one_slice_without_series_uid_is_refused(maker, store):
    datasets = maker().datasets()
    datasets[-1].SeriesInstanceUID = ""
    with open_study(store(datasets)) as study:
        series = max(study.series, key=len)
        with pytest.raises(FileFormatError) as caught:
            series.volume()
    assert caught.value.code == "TAG_MISSING"
    assert "(0020,000e) SeriesInstanceUID" in caught.value.where and "1.2.3.1.6" in caught.value.where


def test_no_sop_instance_uid_anywhere(maker, store):
    ds = maker().datasets()[0]
    folder = store([ds])
    raw = (folder / "0000.dcm").read_bytes()
    (folder / "0000.dcm").write_bytes(raw.replace(b"1.2.3.1.1\0", b"\0" * 10))
    with pytest.raises(FileFormatError) as caught:
        open_study(folder)
    assert "(0008,0018) SOPInstanceUID" in caught.value.where


def test_headers_can_come_one_at_a_time(maker, store):
    """What a server does: headers from bytes as they arrive, series from the headers."""
    folder = store(maker().datasets())
    arrived = []
    for path in sorted(folder.iterdir(), reverse=True):
        arrived.append(read_header(path.read_bytes()))
        (series,) = gather(arrived)
        assert len(series) == len(arrived)
    volume, notices = series.volume()
    assert notices == () and volume.grid.shape == (6, 14, 12)


def zipped(folder: Path, target: Path, **options) -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder.parent))
    return target


def test_zip(maker, store, tmp_path):
    from_folder = open_study(store(maker().datasets(), "study/deep/er")).series[0].volume()[0]
    with open_study(zipped(tmp_path / "study", tmp_path / "s.zip")) as study:
        volume, notices = study.series[0].volume()
        unpacked = study.series[0].slices[0].instance.source
        assert unpacked.name.startswith("study/deep/er/") and unpacked.path.exists()
    assert not unpacked.path.exists()
    assert notices == () and study.notices == ()
    np.testing.assert_array_equal(volume.voxels, from_folder.voxels)


def archive_with(tmp_path, name, content=b"x", attributes=None):
    path = tmp_path / "bad.zip"
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo(name)
        info.compress_type = zipfile.ZIP_DEFLATED
        if attributes is not None:
            info.external_attr = attributes << 16
        archive.writestr(info, content)
    return path


@pytest.mark.parametrize(
    "name", ["../evil.dcm", "a/../../evil.dcm", "/etc/evil", "\\evil", "C:\\evil", "a\\..\\..\\b"]
)
def test_paths_that_climb_out(tmp_path, name):
    before = sorted(tmp_path.parent.iterdir())
    with pytest.raises(ArchiveError) as caught:
        open_study(archive_with(tmp_path, name))
    assert caught.value.code == "ARCHIVE_PATH"
    assert sorted(tmp_path.parent.iterdir()) == before


def test_links_in_archives(tmp_path):
    with pytest.raises(ArchiveError) as caught:
        open_study(archive_with(tmp_path, "link", b"/etc/passwd", stat.S_IFLNK | 0o777))
    assert caught.value.code == "ARCHIVE_LINK"


def test_encrypted_archive(tmp_path):
    path = archive_with(tmp_path, "a.dcm")
    raw = bytearray(path.read_bytes())
    raw[6] |= 1
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(raw)
    with pytest.raises(ArchiveError) as caught:
        open_study(path)
    assert caught.value.code == "ARCHIVE_ENCRYPTED"


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        (ArchiveLimits(entries=3), "ARCHIVE_ENTRIES"),
        (ArchiveLimits(total_bytes=100_000), "ARCHIVE_TOO_LARGE"),
        (ArchiveLimits(ratio=20, ratio_from_bytes=10_000), "ARCHIVE_RATIO"),
    ],
)
def test_bombs(tmp_path, limits, code):
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for k in range(4):
            archive.writestr(f"{k}.dcm", bytes(50_000))
    with pytest.raises(ArchiveError) as caught:
        open_study(path, limits=limits)
    assert caught.value.code == code


def test_bomb_that_lies_about_its_size(tmp_path):
    """The header promises 10 bytes; what is unpacked counts (or the archive is found damaged)."""
    path = archive_with(tmp_path, "a.dcm", bytes(1 << 20))
    raw = path.read_bytes().replace((1 << 20).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    path.write_bytes(raw)
    with pytest.raises(ArchiveError):
        open_study(path, limits=ArchiveLimits(total_bytes=1000))


@pytest.mark.parametrize(
    "damage",
    [lambda raw: raw[: len(raw) // 2], lambda raw: raw[:60] + b"\xff" * 40 + raw[100:], lambda raw: raw[:4]],
)
def test_damaged_archives(maker, store, tmp_path, damage):
    path = zipped(store(maker().datasets()), tmp_path / "s.zip")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ArchiveError) as caught:
        open_study(path)
    assert caught.value.code == "ARCHIVE_DAMAGED"


def test_full_disk_while_unpacking(maker, store, tmp_path, monkeypatch):
    path = zipped(store(maker().datasets()), tmp_path / "s.zip")

    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("wetread.dicom.archive._copy", full)
    with pytest.raises(ArchiveError) as caught:
        open_study(path)
    assert caught.value.code == "ARCHIVE_IO" and "No space" in caught.value.what


def test_file_that_vanishes(maker, store):
    folder = store(maker().datasets())
    with open_study(folder) as study:
        shutil.rmtree(folder)
        with pytest.raises(FileFormatError) as caught:
            study.series[0].volume()
    assert caught.value.code == "FILE_UNREADABLE"


def test_deflate_and_meta_without_data(tmp_path):
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = "1.2", "1.3"
    stream = io.BytesIO()
    ds.save_as(stream, enforce_file_format=True)
    with pytest.raises(FileFormatError):
        read_header(stream.getvalue())


def test_synthetic_series_round_trip(tmp_path):
    rng = np.random.default_rng(5)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    affine = np.eye(4)
    affine[:3, :3] = turn[:, ::-1] * (
        1.25,
        0.8,
        0.7,
    )  # columns: slice, row, column; right-handed from the back
    affine[:3, 3] = (-20.123456, 30.5, 1000.000001)
    grid = Grid((4, 9, 7), affine)
    volume = Volume(rng.integers(-1024, 3000, grid.shape).astype(np.int16), grid, "CT")
    if np.linalg.det(grid.directions[:, ::-1]) < 0:
        pytest.fail("the test's grid is left-handed")
    files = write_ct_series(volume, tmp_path / "a")
    with open_study(tmp_path / "a") as study:
        back, notices = study.series[0].volume()
        assert study.notices == () and notices == ()
        assert "PHANTOM" in str(study.series[0].datasets[0].PatientName)
    np.testing.assert_array_equal(back.voxels, volume.voxels)
    np.testing.assert_allclose(back.grid.affine, affine, atol=1e-6)
    again = write_ct_series(volume, tmp_path / "b")
    assert [a.read_bytes() for a in files] == [b.read_bytes() for b in again]
    other = write_ct_series(volume, tmp_path / "c", names=SeriesNames(seed=1))
    assert other[0].read_bytes() != files[0].read_bytes()


def test_synthetic_series_refuses_what_it_cannot_write(tmp_path):
    sheared = np.eye(4)[:, [2, 1, 0, 3]]
    sheared[0, 0] = 0.5
    with pytest.raises(GeometryError):
        write_ct_series(Volume(np.zeros((2, 3, 4), np.int16), Grid((2, 3, 4), sheared), "CT"), tmp_path)
    straight = Grid((2, 3, 4), np.eye(4)[:, [2, 1, 0, 3]])
    with pytest.raises(PixelError):
        write_ct_series(Volume(np.full((2, 3, 4), 1e6, np.float32), straight, "CT"), tmp_path)


@pytest.mark.parametrize("size", [40_000, 700_000])
def test_headers_of_any_length(maker, only, size, field_value):
    """Private elements before the pixels: the header does not fit what is read of the file at first."""
    datasets = maker().datasets()
    for ds in datasets:
        ds.private_block(0x0029, "WETREAD TEST", create=True).add_new(1, "OB", bytes(size))
    series = only(datasets)
    volume, notices = series.volume()
    assert notices == ()
    index = np.moveaxis(np.indices(volume.grid.shape), 0, -1)
    assert np.abs(volume.voxels - field_value(volume.grid.world(index))).max() < 0.026
