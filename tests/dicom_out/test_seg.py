import errno
from collections import Counter
from dataclasses import replace
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest

from tests.dicom_out.sources import (
    LABELS,
    LUNG,
    MADE,
    NODULE,
    SHAPE,
    SPACING,
    label_mask,
    multi_frame,
    reading_of,
    single_frames,
)
from wetread.dicom import seg as seg_module
from wetread.dicom.authorship import Sources
from wetread.dicom.seg import write_seg
from wetread.errors import OutputError
from wetread.findings import LesionRules


def listed(folder):
    return sorted(path.name for path in folder.iterdir())


SOURCES = {"single": single_frames, "multi": multi_frame}


def written(tmp_path, source="single", oblique=False, mask=None, **options):
    headers, refs = SOURCES[source](oblique)
    reading = reading_of(label_mask() if mask is None else mask, refs, oblique)
    result = write_seg(tmp_path / "seg.dcm", reading, Sources.of(headers, refs), **options)
    return reading, result, pydicom.dcmread(tmp_path / "seg.dcm")


def expected_segments(reading):
    """Segment stacks by name, from first principles."""
    stacks = {f"{f.label} {f.number}": reading.components == f.number for f in reading.findings}
    stacks["lung"] = reading.mask == LUNG.index
    return stacks


def rebuilt(dataset, reading):
    """Segments by name, each frame placed by its own position and orientation alone, on the reading's grid."""
    names = {int(s.SegmentNumber): str(s.SegmentLabel) for s in dataset.SegmentSequence}
    stacks = {name: np.zeros(SHAPE, bool) for name in names.values()}
    shared = dataset.SharedFunctionalGroupsSequence[0]
    orientation = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    spacing = np.array(shared.PixelMeasuresSequence[0].PixelSpacing, float)
    pixels = np.atleast_3d(dataset.pixel_array).reshape(-1, *SHAPE[1:])
    for frame, group in zip(pixels, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        last = position + orientation[:3] * spacing[1] * (SHAPE[2] - 1)
        last += orientation[3:] * spacing[0] * (SHAPE[1] - 1)
        first, end = reading.grid.index([position, last])
        np.testing.assert_allclose(first[1:], 0, atol=1e-3)
        np.testing.assert_allclose(end[1:], np.array(SHAPE[1:]) - 1, atol=1e-3)
        assert first[0] == pytest.approx(round(first[0]), abs=1e-3)
        if "SegmentIdentificationSequence" in group:
            name = names[int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber)]
            stacks[name][round(first[0])] |= frame > 0
        else:
            for number, name in names.items():
                stacks[name][round(first[0])] |= frame == number
    return stacks


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
@pytest.mark.parametrize("oblique", [False, True])
@pytest.mark.parametrize("source", ["single", "multi"])
def test_every_voxel_of_every_segment(tmp_path, source, oblique, kind):
    reading, result, dataset = written(tmp_path, source, oblique, kind=kind)
    expected, found = expected_segments(reading), rebuilt(dataset, reading)
    assert len(reading.findings) == 3
    for name, stack in expected.items():
        np.testing.assert_array_equal(found[name], stack, err_msg=name)
    assert set(found) - {"Background"} == set(expected)
    assert result.segments == {1: 1, 2: 2, 3: 3}
    assert result.sop_instance_uid == dataset.SOPInstanceUID
    assert result.sop_class_uid == dataset.SOPClassUID
    assert dataset.SegmentationType == kind
    assert listed(tmp_path) == ["seg.dcm"]
    if kind == "BINARY":
        frames = sum(int(stack.any(axis=(1, 2)).sum()) for stack in expected.values())
        assert dataset.NumberOfFrames == frames


def test_highdicom_makes_the_same_volume(tmp_path):
    reading, result, _ = written(tmp_path, oblique=True)
    volume = highdicom.seg.segread(result.path).get_volume(combine_segments=True)
    filled = np.flatnonzero(reading.mask.any(axis=(1, 2)))
    crop = reading.components[filled[0] : filled[-1] + 1]
    organ = reading.mask[filled[0] : filled[-1] + 1] == LUNG.index
    array, affine = volume.array, volume.affine
    if np.linalg.norm(affine[:3, 3] - reading.grid.world((filled[0], 0, 0))) > 1e-3:
        array = array[::-1]
        affine = affine @ np.array([[-1, 0, 0, len(array) - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    np.testing.assert_array_equal(array, np.where(organ, 4, crop))
    np.testing.assert_allclose(affine[:3, :3], reading.grid.affine[:3, :3], atol=1e-5)
    np.testing.assert_allclose(affine[:3, 3], reading.grid.world((filled[0], 0, 0)), atol=1e-4)


@pytest.mark.parametrize("source", ["single", "multi"])
def test_references_and_description(tmp_path, source):
    reading, _, ds = written(tmp_path, source)
    headers, refs = SOURCES[source]()
    assert ds.FrameOfReferenceUID == "1.2.3.4"
    assert ds.SpecificCharacterSet == "ISO_IR 192"
    assert str(ds.PatientName) == "Müller^Jörg"
    assert (ds.PatientID, ds.StudyInstanceUID, ds.PatientBirthDate) == ("ID-1", "1.2.3.1", "19500607")
    assert ds.SeriesInstanceUID != "1.2.3.2"
    (series,) = ds.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == "1.2.3.2"
    known = {str(h.SOPInstanceUID) for h in headers}
    assert {i.ReferencedSOPInstanceUID for i in series.ReferencedInstanceSequence} <= known
    for group in ds.PerFrameFunctionalGroupsSequence:
        image = group.DerivationImageSequence[0].SourceImageSequence[0]
        position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        slice_index = round(float(reading.grid.index(position)[0]))
        assert image.ReferencedSOPInstanceUID == refs[slice_index].sop_instance_uid
        assert image.get("ReferencedFrameNumber", 0) == refs[slice_index].frame
    assert ds.ContentQualification == "RESEARCH"
    assert "not for clinical use" in ds.SeriesDescription
    assert "Not for clinical use" in ds.ContentDescription
    equipment = [(e.Manufacturer, e.get("ManufacturerModelName")) for e in ds.ContributingEquipmentSequence]
    assert ("wetread", "lung-nodule") in equipment
    assert (ds.Manufacturer, ds.ManufacturerModelName) == ("wetread", "lung-nodule")
    first, *_, organ = ds.SegmentSequence
    finding = reading.findings[0]
    assert (first.SegmentLabel, first.TrackingID) == ("lung nodule 1", "lung nodule 1")
    assert first.TrackingUID == finding.tracking_uid
    assert first.SegmentAlgorithmType == "AUTOMATIC"
    kind = first.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeValue, kind.CodingSchemeDesignator, kind.CodeMeaning) == NODULE.type
    assert first.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "49755003"
    assert first.AnatomicRegionSequence[0].CodeValue == "39607008"
    (algorithm,) = first.SegmentationAlgorithmIdentificationSequence
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("lung-nodule", "1.2.3")
    assert MADE.package_hash in str(algorithm.AlgorithmParameters)
    lightness = first.RecommendedDisplayCIELabValue[0] / 65535 * 100
    assert lightness == pytest.approx(50, abs=5)  # sRGB (220, 60, 40)
    assert organ.SegmentLabel == "lung"
    assert "TrackingUID" not in organ
    measures = ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert [float(x) for x in measures.PixelSpacing] == pytest.approx(SPACING[1:])
    assert float(measures.SpacingBetweenSlices) == pytest.approx(2.5)
    assert float(measures.SliceThickness) == 2.5


@pytest.mark.parametrize("source", ["single", "multi"])
@pytest.mark.parametrize("oblique", [False, True])
def test_dciodvfy_finds_no_error(tmp_path, verified, source, oblique):
    written(tmp_path, source, oblique)
    verified(tmp_path / "seg.dcm")


def test_one_finding_in_one_slice(tmp_path, verified):
    mask = np.zeros(SHAPE, np.uint8)
    mask[4, 5:8, 6:9] = 1
    reading, result, dataset = written(tmp_path, mask=mask)
    assert (dataset.NumberOfFrames, len(dataset.SegmentSequence), result.segments) == (1, 1, {1: 1})
    np.testing.assert_array_equal(dataset.pixel_array.reshape(SHAPE[1:]), mask[4])
    position = dataset.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient
    np.testing.assert_allclose(np.array(position, float), reading.grid.world((4, 0, 0)), atol=1e-4)
    verified(tmp_path / "seg.dcm")


def test_nothing_found_writes_no_segmentation(tmp_path):
    headers, refs = single_frames()
    reading = reading_of(np.zeros(SHAPE, np.uint8), refs)
    assert write_seg(tmp_path / "seg.dcm", reading, Sources.of(headers)) is None
    assert listed(tmp_path) == []


def test_voxels_of_dropped_components_keep_a_segment_of_their_own(tmp_path):
    headers, refs = single_frames()
    reading = reading_of(label_mask(), refs, rules=LesionRules(min_ml=0.05, remove_small=False))
    assert len(reading.findings) == 1
    write_seg(tmp_path / "seg.dcm", reading, Sources.of(headers))
    found = rebuilt(pydicom.dcmread(tmp_path / "seg.dcm"), reading)
    assert set(found) == {"lung nodule 1", "lung nodule (not measured)", "mass (not measured)", "lung"}
    assert sum(stack.sum() for stack in found.values()) == (reading.mask > 0).sum()


def test_without_components_there_is_a_segment_for_each_label(tmp_path):
    headers, refs = single_frames()
    reading = replace(reading_of(label_mask(), refs), components=None, findings=())
    result = write_seg(tmp_path / "seg.dcm", reading, Sources.of(headers))
    assert result.segments == {}
    found = rebuilt(pydicom.dcmread(tmp_path / "seg.dcm"), reading)
    np.testing.assert_array_equal(found["lung"], reading.mask == 3)


def test_masks_on_other_slices_than_the_grid(tmp_path):
    """As after a series was straightened: the grid has no slices of its own, the masks lie on the sources."""
    headers, refs = single_frames()
    reading = reading_of(label_mask(), refs)
    grid = replace(reading.grid, slices=(), shape=(12, 30, 32), affine=np.diag([1.0, 2.0, 3.0, 1.0]))
    straight = replace(reading, grid=grid, mask=np.zeros(grid.shape, np.uint8))
    options = {"labels": reading.mask, "components": reading.components}
    write_seg(tmp_path / "seg.dcm", straight, Sources.of(headers), **options)
    found = rebuilt(pydicom.dcmread(tmp_path / "seg.dcm"), reading)
    for name, stack in expected_segments(reading).items():
        np.testing.assert_array_equal(found[name], stack)


def test_many_findings(tmp_path):
    mask = np.zeros(SHAPE, np.uint8)
    mask[::4, ::2, ::3] = 1
    headers, refs = single_frames()
    reading = reading_of(mask, refs)
    assert len(reading.findings) > 300
    result = write_seg(tmp_path / "seg.dcm", reading, Sources.of(headers), kind="LABELMAP")
    assert len(result.segments) == len(reading.findings)


def test_uids_follow_the_seed(tmp_path):
    uids = [written(tmp_path, uid_seed=seed)[1].sop_instance_uid for seed in ("a", "a", "b", "", "")]
    assert uids[0] == uids[1]
    assert Counter(uids).most_common(1)[0][1] == 2
    assert len(set(uids)) == 4
    assert all(pydicom.uid.UID(uid).is_valid and uid.startswith("2.25.") for uid in uids)


def test_sparse_and_odd_headers(tmp_path, verified):
    headers, refs = single_frames()
    for header in headers:
        for keyword in (
            "PatientBirthDate",
            "PatientSex",
            "StudyID",
            "AccessionNumber",
            "SliceThickness",
            "BodyPartExamined",
            "Manufacturer",
            "ReferringPhysicianName",
        ):
            delattr(header, keyword)
        header.StudyTime = ""
    files = [tmp_path / f"{i}.dcm" for i in range(len(headers))]
    for header, file in zip(headers, files, strict=True):
        header.save_as(file, enforce_file_format=True)
    headers = [pydicom.dcmread(file) for file in files]
    reading = reading_of(label_mask(), refs)
    write_seg(tmp_path / "seg.dcm", reading, Sources.of(headers))
    assert "PatientBirthDate" not in headers[0]
    assert headers[0].SpecificCharacterSet == "ISO_IR 100"
    assert str(pydicom.dcmread(tmp_path / "seg.dcm").PatientName) == "Müller^Jörg"
    verified(tmp_path / "seg.dcm")


def test_orientations_that_differ_in_rounding(tmp_path):
    headers, refs = single_frames(oblique=True)
    for i, header in enumerate(headers[1:], 1):
        header.ImageOrientationPatient = [
            f"{float(x) + 1e-6 * i:.8f}" for x in header.ImageOrientationPatient
        ]
    before = [str(header.ImageOrientationPatient) for header in headers]
    reading = reading_of(label_mask(), refs, oblique=True)
    write_seg(tmp_path / "seg.dcm", reading, Sources.of(headers))
    found = rebuilt(pydicom.dcmread(tmp_path / "seg.dcm"), reading)
    np.testing.assert_array_equal(found["lung"], reading.mask == 3)
    assert [str(header.ImageOrientationPatient) for header in headers] == before


def test_multi_frame_with_everything_per_frame(tmp_path, verified):
    (header,), refs = multi_frame()
    shared = header.SharedFunctionalGroupsSequence[0]
    for frame in header.PerFrameFunctionalGroupsSequence:
        frame.PlaneOrientationSequence = shared.PlaneOrientationSequence
        frame.PixelMeasuresSequence = shared.PixelMeasuresSequence
    header.SharedFunctionalGroupsSequence = [pydicom.Dataset()]
    reading = reading_of(label_mask(), refs)
    write_seg(tmp_path / "seg.dcm", reading, Sources.of([header], refs))
    found = rebuilt(pydicom.dcmread(tmp_path / "seg.dcm"), reading)
    for name, stack in expected_segments(reading).items():
        np.testing.assert_array_equal(found[name], stack)
    assert len(header.SharedFunctionalGroupsSequence[0]) == 0
    verified(tmp_path / "seg.dcm")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda h, r: (h[:-1], r), "OUTPUT_SOURCES"),
        (lambda h, r: ([], ()), "OUTPUT_SOURCES"),
        (lambda h, r: (h, r[:-1]), "SEG_BUILD"),
        (lambda h, r: (h, (r[1], r[0], *r[2:])), "SEG_PLACE"),
    ],
)
def test_sources_that_do_not_fit(tmp_path, change, code):
    headers, refs = single_frames()
    headers, refs = change(headers, refs)
    with pytest.raises(OutputError) as caught:
        reading = reading_of(label_mask(), refs if len(refs) == SHAPE[0] else ())
        write_seg(tmp_path / "seg.dcm", reading, Sources.of(headers, refs))
    assert caught.value.code == code
    assert listed(tmp_path) == []


def test_no_frame_of_reference_is_refused(tmp_path):
    headers, refs = single_frames()
    for header in headers:
        del header.FrameOfReferenceUID
    with pytest.raises(OutputError, match="Frame Of Reference"):
        write_seg(tmp_path / "seg.dcm", reading_of(label_mask(), refs), Sources.of(headers))


def test_values_without_meaning_are_refused(tmp_path):
    headers, refs = single_frames()
    reading = reading_of(label_mask(), refs)
    with pytest.raises(OutputError, match="without a meaning"):
        write_seg(tmp_path / "a.dcm", replace(reading, labels=LABELS[:2]), Sources.of(headers))
    with pytest.raises(OutputError, match="without a meaning"):
        write_seg(tmp_path / "a.dcm", replace(reading, findings=reading.findings[1:]), Sources.of(headers))
    with pytest.raises(OutputError, match="components have shape"):
        write_seg(tmp_path / "a.dcm", reading, Sources.of(headers), components=reading.components[1:])


@pytest.mark.parametrize("fault", ["turned", "dropped", "moved", "cut"])
def test_what_does_not_read_back_is_not_kept(tmp_path, monkeypatch, fault):
    """Each fault is planted in the file between writing and reading."""
    real = seg_module.authorship.save

    def faulty(dataset, path):
        real(dataset, path)
        if fault == "cut":
            path.write_bytes(path.read_bytes()[:-400])
            return
        ds = pydicom.dcmread(path)
        if fault == "turned":
            pixels = np.unpackbits(np.frombuffer(ds.PixelData, np.uint8), bitorder="little")
            count = int(ds.NumberOfFrames) * SHAPE[1] * SHAPE[2]
            frames = pixels[:count].reshape(-1, *SHAPE[1:])[:, ::-1]
            ds.PixelData = np.packbits(frames.ravel(), bitorder="little").tobytes()
        if fault == "dropped":
            ds.PerFrameFunctionalGroupsSequence[0].SegmentIdentificationSequence[
                0
            ].ReferencedSegmentNumber = 2
        if fault == "moved":
            place = ds.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0]
            place.ImagePositionPatient = ["0", "0", "0"]
        ds.save_as(path)

    monkeypatch.setattr(seg_module.authorship, "save", faulty)
    (tmp_path / "seg.dcm").write_bytes(b"older")
    with pytest.raises(OutputError, match="did not read back") as caught:
        written(tmp_path)
    assert caught.value.code == "SEG_READ_BACK"
    assert listed(tmp_path) == ["seg.dcm"]
    assert (tmp_path / "seg.dcm").read_bytes() == b"older"


def test_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(dataset, path):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(seg_module.authorship, "save", full)
    with pytest.raises(OutputError, match="No space left") as caught:
        written(tmp_path)
    assert caught.value.code == "DISK_FULL"
    assert listed(tmp_path) == []
