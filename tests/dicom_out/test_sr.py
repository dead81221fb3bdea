import errno
from dataclasses import replace
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest

from tests.dicom_out.sources import MADE, NODULE, SHAPE, label_mask, multi_frame, reading_of, single_frames
from wetread.dicom import sr as sr_module
from wetread.dicom.authorship import Sources
from wetread.dicom.seg import write_seg
from wetread.dicom.sr import write_sr
from wetread.errors import OutputError

VOLUME, LONG, SHORT = "118565006", "103339001", "103340004"


def written(folder, source=single_frames, mask=None, seg=True, **fields):
    headers, refs = source()
    reading = reading_of(label_mask() if mask is None else mask, refs, **fields)
    sources = Sources.of(headers, refs)
    segmentation = write_seg(folder / "seg.dcm", reading, sources) if seg else None
    uid = write_sr(folder / "sr.dcm", reading, sources, segmentation)
    document = pydicom.dcmread(folder / "sr.dcm")
    assert document.SOPInstanceUID == uid
    return reading, segmentation, document


def name_of(item):
    return item.ConceptNameCodeSequence[0].CodeValue if "ConceptNameCodeSequence" in item else ""


def children(item, value=None):
    return [c for c in item.get("ContentSequence", []) if value is None or name_of(c) == value]


def groups_of(document):
    (container,) = children(document, "126010")
    return children(container, "125007")


def number(group, value, derivation=None):
    """The numeric value and unit of a measurement by its code, and its derivation's."""
    for item in children(group, value):
        how = [c.ConceptCodeSequence[0].CodeValue for c in children(item, "121401")]
        if how == ([derivation] if derivation else []):
            measured = item.MeasuredValueSequence[0]
            return float(measured.NumericValue), measured.MeasurementUnitsCodeSequence[0].CodeValue
    return None


@pytest.mark.parametrize("source", [single_frames, multi_frame])
def test_one_group_for_each_finding(tmp_path, source, verified):
    reading, seg, document = written(tmp_path, source)
    verified(tmp_path / "sr.dcm")
    assert document.SOPClassUID == "1.2.840.10008.5.1.4.1.1.88.34"
    assert document.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    groups = groups_of(document)
    assert len(groups) == len(reading.findings) == 3
    for group, finding in zip(groups, reading.findings, strict=True):
        assert group.ContentTemplateSequence[0].TemplateIdentifier == "1411"
        assert children(group, "112039")[0].TextValue == f"{finding.label} {finding.number}"
        assert finding.tracking_uid == children(group, "112040")[0].UID
        (kind,) = children(group, "121071")
        assert kind.ConceptCodeSequence[0].CodeValue == (
            "427359005" if finding.label_index == 1 else "4147007"
        )
        site = [c.ConceptCodeSequence[0].CodeValue for c in children(group, "363698007")]
        assert site == (["39607008"] if finding.label_index == 1 else [])
        (segment,) = children(group, "121191")
        reference = segment.ReferencedSOPSequence[0]
        assert reference.ReferencedSOPInstanceUID == seg.sop_instance_uid
        assert reference.ReferencedSegmentNumber == seg.segments[finding.number]
        assert children(group, "121232")[0].UID == "1.2.3.2"
        assert number(group, VOLUME) == (pytest.approx(finding.volume_ml * 1000, abs=1e-3), "mm3")
        assert number(group, LONG) == (pytest.approx(finding.long_axis_mm, abs=1e-3), "mm")
        assert number(group, SHORT) == (pytest.approx(finding.short_axis_mm, abs=1e-3), "mm")
        assert number(group, "L0JK") == (pytest.approx(finding.diameter_3d_mm, abs=1e-3), "mm")
        assert number(group, "112031", "373098007") == (pytest.approx(finding.mean, abs=1e-3), "[hnsf'U]")
        assert number(group, "112031", "386136009") == (pytest.approx(finding.sd, abs=1e-3), "[hnsf'U]")
        assert number(group, "111012") == (pytest.approx(finding.max_probability * 100, abs=1e-2), "%")
        assert children(group, "111001")[0].TextValue == "lung-nodule"
        assert children(group, "111003")[0].TextValue == "1.2.3"
        parameters = [c.TextValue for c in children(group, "111002")]
        assert f"package_hash={MADE.package_hash}" in parameters
        (centre,) = children(group, "111010")
        np.testing.assert_allclose(centre.GraphicData, finding.centroid_lps_mm, atol=1e-4)
        assert centre.ReferencedFrameOfReferenceUID == "1.2.3.4"


def test_document_says_what_it_is(tmp_path):
    reading, seg, document = written(tmp_path)
    assert document.SpecificCharacterSet == "ISO_IR 192"
    assert str(document.PatientName) == "Müller^Jörg"
    assert "not for clinical use" in document.SeriesDescription
    assert (document.CompletionFlag, document.VerificationFlag) == ("COMPLETE", "UNVERIFIED")
    assert document.PreliminaryFlag == "PRELIMINARY"
    comments = [c.TextValue for c in children(document, "121106")]
    assert comments[0] == MADE.intended_use
    assert "3 findings." in comments
    assert "ODD: slices were reversed – größtenteils" in comments
    assert children(document, "121058")[0].ConceptCodeSequence[0].CodeValue == "25045-6"
    assert children(document, "121005")[0].ConceptCodeSequence[0].CodeValue == "121007"
    referenced = {
        instance.ReferencedSOPInstanceUID
        for sequence in ("CurrentRequestedProcedureEvidenceSequence", "PertinentOtherEvidenceSequence")
        for study in document.get(sequence, [])
        for series in study.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    }
    assert referenced == {seg.sop_instance_uid} | {f"1.2.3.2.{i}" for i in range(1, SHAPE[0] + 1)}
    groups = highdicom.sr.srread(tmp_path / "sr.dcm").content.get_volumetric_roi_measurement_groups()
    assert [group.tracking_uid for group in groups] == [f.tracking_uid for f in reading.findings]


def test_no_finding_is_an_answer(tmp_path, verified):
    _, seg, document = written(tmp_path, mask=np.zeros(SHAPE, np.uint8))
    verified(tmp_path / "sr.dcm")
    assert seg is None
    groups = groups_of(document)
    assert [children(g, "112039")[0].TextValue for g in groups] == ["No lung nodule found", "No mass found"]
    for group in groups:
        assert group.ContentTemplateSequence[0].TemplateIdentifier == "1501"
        assert children(group, "121052")[0].ConceptCodeSequence[0].CodeMeaning == "Absent"
        assert children(group, "111001")[0].TextValue == "lung-nodule"
    assert "No lung nodule or mass found." in [c.TextValue for c in children(document, "121106")]
    assert document.CompletionFlag == "COMPLETE"


def test_absent_kinds_stand_beside_found_ones(tmp_path):
    mask = label_mask()
    mask[mask == 2] = 0
    _, _, document = written(tmp_path, mask=mask)
    names = [children(g, "112039")[0].TextValue for g in groups_of(document)]
    assert names == ["lung nodule 1", "lung nodule 2", "No mass found"]


@pytest.mark.parametrize("source", [single_frames, multi_frame])
def test_without_a_segmentation_groups_refer_to_slices(tmp_path, source, verified):
    reading, _, document = written(tmp_path, source, seg=False)
    verified(tmp_path / "sr.dcm")
    _, refs = source()
    for group, finding in zip(groups_of(document), reading.findings, strict=True):
        (image,) = [c for c in children(group) if c.ValueType == "IMAGE"]
        reference = image.ReferencedSOPSequence[0]
        key = reference.ReferencedSOPInstanceUID, int(reference.get("ReferencedFrameNumber", 0))
        place = [(ref.sop_instance_uid, ref.frame) for ref in refs].index(key)
        assert abs(float(reading.grid.index(finding.centroid_lps_mm)[0]) - place) < 0.501
        assert number(group, VOLUME)[0] == pytest.approx(finding.volume_ml * 1000, abs=1e-3)
    assert "There is no segmentation object with this report." in [
        c.TextValue for c in children(document, "121106")
    ]


def test_provisional_is_partial_and_says_so(tmp_path):
    _, _, document = written(tmp_path, status="provisional")
    assert document.CompletionFlag == "PARTIAL"
    assert any("Provisional" in c.TextValue for c in children(document, "121106"))


def test_unknown_numbers_are_left_out(tmp_path):
    headers, refs = single_frames()
    reading = reading_of(label_mask(), refs)
    bare = tuple(replace(f, mean=float("nan"), max_probability=float("nan")) for f in reading.findings)
    write_sr(tmp_path / "sr.dcm", replace(reading, findings=bare, modality="MR"), Sources.of(headers))
    group = groups_of(pydicom.dcmread(tmp_path / "sr.dcm"))[0]
    assert number(group, "111012") is None
    assert number(group, "110852", "373098007") is None
    assert number(group, "110852", "386136009")[1] == "1"


def test_other_modalities_and_long_names(tmp_path, verified):
    headers, refs = single_frames()
    for header in headers:
        header.PatientName = "ANON-314"  # one component, which highdicom remarks on
    long = "x" * 200 + "\\\n"
    reading = reading_of(label_mask(), refs)
    reading = replace(
        reading,
        modality="PT",
        findings=tuple(replace(f, label=long) for f in reading.findings),
        labels=tuple(replace(info, anatomy=NODULE.anatomy) for info in reading.labels),
        provenance=replace(MADE, package=long, package_version=long, intended_use=""),
    )
    sources = Sources.of(headers)
    seg = write_seg(tmp_path / "seg.dcm", reading, sources)
    write_sr(tmp_path / "sr.dcm", reading, sources, seg)
    verified(tmp_path / "seg.dcm")
    verified(tmp_path / "sr.dcm")
    document = pydicom.dcmread(tmp_path / "sr.dcm")
    assert children(groups_of(document)[0], "112039")[0].TextValue == "x" * 62 + " 1"
    assert len(document.SeriesDescription) <= 64


def test_what_does_not_read_back_is_not_kept(tmp_path, monkeypatch):
    real = sr_module.authorship.save

    def faulty(dataset, path):
        dataset.ContentSequence[-2:] = []
        groups = next(c for c in dataset.ContentSequence if name_of(c) == "126010").ContentSequence
        del groups[0]
        real(dataset, path)

    monkeypatch.setattr(sr_module.authorship, "save", faulty)
    with pytest.raises(OutputError, match="2 of 3 findings"):
        written(tmp_path, seg=False)
    assert list(tmp_path.iterdir()) == []


def test_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(dataset, path):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sr_module.authorship, "save", full)
    with pytest.raises(OutputError, match="No space left"):
        written(tmp_path, seg=False)
    assert list(tmp_path.iterdir()) == []
