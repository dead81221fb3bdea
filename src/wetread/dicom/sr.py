"""Measurement reports: Comprehensive 3D SR (DICOM PS3.3 A.35.13) after TID 1500, written through highdicom.

One TID 1411 group for each finding; TID 1501 groups where there is no segmentation to refer to, for each
kind of lesion that was looked for and not found, and for each label of a classification.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import highdicom.sr as hd
import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.sr.coding import Code

from wetread.dicom import authorship, codes, tags
from wetread.dicom.authorship import NOT_CLINICAL, Sources
from wetread.dicom.seg import BUILD_ERRORS, WrittenSeg, numbered_name, position_of
from wetread.errors import OutputError
from wetread.findings import Finding, LabelInfo, Provenance, Reading
from wetread.storage import whole_file

_Group = hd.VolumetricROIMeasurementsAndQualitativeEvaluations | hd.MeasurementsAndQualitativeEvaluations
_MEASUREMENTS, _GROUP, _TRACKING_UID = "126010", "125007", "112040"
_CONTAINS = hd.RelationshipTypeValues.CONTAINS


@tags.quiet()  # remarks about values of the source, which are not ours to mend
def write_sr(
    path: Path | str,
    reading: Reading,
    sources: Sources,
    seg: WrittenSeg | None = None,
    *,
    uid_seed: str = "",
) -> str:
    """Writes the reading as a structured report; one without findings says so.

    Args:
        path: of the file.
        reading: findings, labels, notices and provenance.
        sources: the source slices.
        seg: the segmentation that `wetread.dicom.seg.write_seg` wrote, whose segments the groups refer to.
        uid_seed: makes the object's UIDs a function of the seed.

    Returns:
        SOP Instance UID of the report.

    Raises:
        OutputError: it could not be built or written, or did not read back; no file is left.
    """
    try:
        document = _document(reading, sources, seg, uid_seed)
    except BUILD_ERRORS as error:
        raise OutputError(
            f"the report could not be built: {error}",
            where=Path(path).name,
            todo="the findings are in reading.json",
            code="SR_BUILD",
        ) from error
    with whole_file(path) as partial:
        authorship.save(document, partial)
        _compare(partial, reading)
    return str(document.SOPInstanceUID)


def _document(
    reading: Reading, sources: Sources, seg: WrittenSeg | None, uid_seed: str
) -> hd.Comprehensive3DSR:
    content = hd.MeasurementReport(
        observation_context=_observer(reading.provenance, sources),
        procedure_reported=codes.procedure_of(reading.modality),
        imaging_measurements=_groups(reading, sources, seg),
        title=codes.REPORT_TITLE,
    )
    content[0].ContentSequence.extend(_comments(reading, seg))
    arguments = authorship.identifiers(reading, "SR", uid_seed)
    evidence: list[Dataset] = sources.used()
    if seg is not None:
        evidence.append(seg.dataset)
    return hd.Comprehensive3DSR(
        evidence=evidence,
        content=content[0],
        series_number=authorship.SR_SERIES,
        is_complete=reading.status == "final",
        is_final=False,
        is_verified=False,
        **arguments,
    )


def _observer(made: Provenance, sources: Sources) -> hd.ObservationContext:
    """TID 1001: an algorithm observed, described as a device (TID 1004)."""
    device = hd.DeviceObserverIdentifyingAttributes(
        uid=authorship.new_uid(f"{made.wetread_version}|{made.package_hash}", "device"),
        name=authorship.line(f"{authorship.NAME} {made.package}"),
        manufacturer_name=authorship.NAME,
        model_name=authorship.line(made.package),
        serial_number=authorship.line(made.package_hash, 80),
    )
    return hd.ObservationContext(
        observer_device_context=hd.ObserverContext(codes.concept(codes.DEVICE), device),
        subject_context=hd.SubjectContext.from_image(sources.used()[0]),
    )


def _groups(reading: Reading, sources: Sources, seg: WrittenSeg | None) -> list[_Group]:
    if reading.scores:
        return [_class(info, reading) for info in reading.labels]
    infos = {info.index: info for info in reading.labels}
    groups = [
        _lesion(finding, infos[finding.label_index], reading, sources, seg) for finding in reading.findings
    ]
    found = {finding.label_index for finding in reading.findings}
    looked_for = [info for info in reading.labels if info.lesion and info.index not in found]
    return groups + [_absent(info, reading) for info in looked_for or ([] if groups else reading.labels[:1])]


def _algorithm(made: Provenance) -> hd.AlgorithmIdentification:
    """TID 4019, with the package's hash among the parameters."""
    return hd.AlgorithmIdentification(
        name=authorship.line(made.package),
        version=authorship.line(made.package_version),
        parameters=[f"{name}={value}" for name, value in authorship.parameters(made).items()],
        manufacturer=authorship.NAME,
    )


def _lesion(
    finding: Finding, info: LabelInfo, reading: Reading, sources: Sources, seg: WrittenSeg | None
) -> _Group:
    """TID 1411 of a finding with a segment, else TID 1501 that refers to the source slices."""
    tracking = hd.TrackingIdentifier(uid=finding.tracking_uid, identifier=numbered_name(finding))
    sites = [hd.FindingSite(codes.concept(info.anatomy))] if info.anatomy else None
    measurements = _measurements(finding, reading.modality)
    number = seg.segments.get(finding.number) if seg else None
    if seg is None or number is None:
        return hd.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=tracking,
            finding_type=codes.concept(info.type),
            finding_category=codes.concept(info.category),
            finding_sites=sites,
            algorithm_id=_algorithm(reading.provenance),
            measurements=measurements,
            source_images=_source_images(finding, reading, sources),
        )
    group = hd.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=tracking,
        referenced_segment=hd.ReferencedSegment(
            sop_class_uid=seg.sop_class_uid,
            sop_instance_uid=seg.sop_instance_uid,
            segment_number=number,
            source_series=hd.SourceSeriesForSegmentation(str(sources.first.SeriesInstanceUID)),
        ),
        finding_type=codes.concept(info.type),
        finding_category=codes.concept(info.category),
        finding_sites=sites,
        algorithm_id=_algorithm(reading.provenance),
        measurements=measurements,
    )
    if reading.grid.frame_of_reference:
        group[0].ContentSequence.append(_centre(finding, reading.grid.frame_of_reference))
    return group


def _centre(finding: Finding, frame_of_reference: str) -> hd.Scoord3DContentItem:
    """Centroid as a point of the frame of reference, LPS mm (TID 1411 may be extended)."""
    return hd.Scoord3DContentItem(
        name=codes.CENTER,
        graphic_type=hd.GraphicTypeValues3D.POINT,
        graphic_data=np.array([finding.centroid_lps_mm]),
        frame_of_reference_uid=frame_of_reference,
        relationship_type=_CONTAINS,
    )


def _source_images(
    finding: Finding, reading: Reading, sources: Sources
) -> list[hd.SourceImageForMeasurementGroup]:
    """The source slice nearest to a finding's centroid."""
    normal = reading.grid.directions[:, 0]
    away = [
        abs(float((np.array(position_of(sources, ref)) - finding.centroid_lps_mm) @ normal))
        for ref in sources.slices
    ]
    ref = sources.slices[int(np.argmin(away))]
    return [
        hd.SourceImageForMeasurementGroup(
            str(sources.instances[ref.sop_instance_uid].SOPClassUID),
            ref.sop_instance_uid,
            [ref.frame] if ref.frame else None,
        )
    ]


def _measurements(finding: Finding, modality: str) -> list[hd.Measurement]:
    """TID 1419 and TID 300: sizes, intensities, and how sure the network is."""
    rows: list[tuple[Code, float, Code, Code | None]] = [
        (codes.VOLUME, round(finding.volume_ml * 1000.0, 3), codes.MM3, None),
        (codes.LONG_AXIS, round(finding.long_axis_mm, 3), codes.MM, None),
        (codes.SHORT_AXIS, round(finding.short_axis_mm, 3), codes.MM, None),
        (codes.DIAMETER_3D, round(finding.diameter_3d_mm, 3), codes.MM, None),
    ]
    intensity = codes.intensity_of(modality)
    if intensity is not None:
        name, unit = intensity
        rows += [
            (name, round(finding.mean, 3), unit, codes.MEAN),
            (name, round(finding.sd, 3), unit, codes.STANDARD_DEVIATION),
        ]
    rows.append((codes.CERTAINTY, round(finding.max_probability * 100.0, 2), codes.PERCENT, None))
    return [
        hd.Measurement(name=name, value=value, unit=unit, derivation=derivation)
        for name, value, unit, derivation in rows
        if math.isfinite(value)
    ]


def _absent(info: LabelInfo, reading: Reading) -> hd.MeasurementsAndQualitativeEvaluations:
    """TID 1501: a kind of lesion was looked for and is absent."""
    seed = f"{reading.series_instance_uid}|{reading.provenance.package_hash}|{info.name}"
    return hd.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.TrackingIdentifier(
            uid=authorship.new_uid(seed, "absent"), identifier=authorship.line(f"No {info.name} found")
        ),
        finding_type=codes.concept(info.type),
        finding_category=codes.concept(info.category),
        finding_sites=[hd.FindingSite(codes.concept(info.anatomy))] if info.anatomy else None,
        algorithm_id=_algorithm(reading.provenance),
        qualitative_evaluations=[hd.QualitativeEvaluation(name=codes.PRESENCE, value=codes.ABSENT)],
    )


def _class(info: LabelInfo, reading: Reading) -> hd.MeasurementsAndQualitativeEvaluations:
    """TID 1501: whether the reading decides for a class, and how probable the network holds it."""
    seed = f"{reading.series_instance_uid}|{reading.provenance.package_hash}|{info.name}"
    value = codes.PRESENT if info.name in reading.classes else codes.ABSENT
    return hd.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.TrackingIdentifier(
            uid=authorship.new_uid(seed, "class"), identifier=authorship.line(info.name)
        ),
        finding_type=codes.concept(info.type),
        finding_category=codes.concept(info.category),
        finding_sites=[hd.FindingSite(codes.concept(info.anatomy))] if info.anatomy else None,
        algorithm_id=_algorithm(reading.provenance),
        measurements=[
            hd.Measurement(codes.CERTAINTY, round(100 * reading.scores[info.name], 4), codes.PERCENT)
        ],
        qualitative_evaluations=[hd.QualitativeEvaluation(name=codes.PRESENCE, value=value)],
    )


def _comments(reading: Reading, seg: WrittenSeg | None) -> Iterable[hd.TextContentItem]:
    """What people must know: purpose, number of findings, status, and every notice."""
    texts = [reading.provenance.intended_use or NOT_CLINICAL]
    if "not for clinical use" not in texts[0].lower():
        texts.append(NOT_CLINICAL)
    texts.append(summary(reading))
    if seg is None and reading.findings:
        texts.append("There is no segmentation object with this report.")
    texts += [f"{notice.code}: {notice.text}" for notice in reading.notices]
    for text in texts:
        yield hd.TextContentItem(
            name=codes.COMMENT, value=authorship.line(text, 1024), relationship_type=_CONTAINS
        )


def summary(reading: Reading) -> str:
    """One sentence: how many findings, or which class, and whether more of the scan may follow."""
    state = ". Provisional: the scan was not complete." if reading.status != "final" else "."
    if reading.scores:
        return (", ".join(reading.classes) or f"None of {', '.join(reading.scores)}") + state
    count = len(reading.findings)
    lesions: Sequence[str] = [info.name for info in reading.labels if info.lesion]
    found = (
        f"{count} finding{'s' if count != 1 else ''}"
        if count
        else f"No {' or '.join(lesions) or 'lesion'} found"
    )
    return found + state


def _compare(path: Path, reading: Reading) -> None:
    """Reads the report back; every finding must be there once, with its UID and volume, and every score.

    Raises:
        OutputError: any difference.
    """
    try:
        groups = _named(_named([dcmread(path)], _MEASUREMENTS), _GROUP)
        found = []
        for group in groups:
            for volume in _named([group], codes.VOLUME.value):
                uid = _named([group], _TRACKING_UID)[0].UID
                found.append((str(uid), float(volume.MeasuredValueSequence[0].NumericValue)))
        certain = [
            float(item.MeasuredValueSequence[0].NumericValue)
            for item in _named(groups, codes.CERTAINTY.value)
        ]
    except (*BUILD_ERRORS, InvalidDicomError) as error:
        raise OutputError(
            f"the report cannot be read back: {error}", where=path.name, code="SR_READ_BACK"
        ) from error
    expected = sorted((f.tracking_uid, round(f.volume_ml * 1000.0, 3)) for f in reading.findings)
    same = [uid for uid, _ in sorted(found)] == [uid for uid, _ in expected]
    if not same or any(abs(a - b) > 1e-2 for (_, a), (_, b) in zip(sorted(found), expected, strict=True)):
        raise OutputError(
            f"the report did not read back as it was written: {len(found)} of {len(expected)} findings",
            where=path.name,
            code="SR_READ_BACK",
        )

    if reading.scores and certain != [round(100 * score, 4) for score in reading.scores.values()]:
        raise OutputError("the scores did not read back as written", where=path.name, code="SR_READ_BACK")


def _named(parents: Iterable[Dataset], value: str) -> list[Dataset]:
    """Content items directly below the parents whose concept name has a code value."""
    return [
        item
        for parent in parents
        for item in parent.get("ContentSequence", [])
        if "ConceptNameCodeSequence" in item and item.ConceptNameCodeSequence[0].CodeValue == value
    ]
