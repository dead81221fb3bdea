"""Segmentation objects (DICOM PS3.3 A.51, C.8.20), written through highdicom and read back before they count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from highdicom import PixelMeasuresSequence
from highdicom.color import CIELabColor
from highdicom.seg import Segmentation, SegmentDescription, segread
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from wetread.dicom import authorship, codes, tags
from wetread.dicom.authorship import Sources
from wetread.errors import OutputError
from wetread.findings import Finding, LabelInfo, Reading
from wetread.storage import whole_file
from wetread.volume import SliceRef

BUILD_ERRORS = (ValueError, TypeError, AttributeError, KeyError, IndexError, RuntimeError)


@dataclass(frozen=True)
class Segment:
    """One segment: its number, its finding (None for an organ or for voxels that belong to no finding)."""

    number: int
    label: LabelInfo
    finding: Finding | None = None

    @property
    def name(self) -> str:
        """Segment Label: ``lung nodule 1`` for a finding, else the label's name."""
        if self.finding is not None:
            return numbered_name(self.finding)
        return authorship.line(self.label.name + (" (not measured)" if self.label.lesion else ""))


@dataclass(frozen=True)
class WrittenSeg:
    """What a report needs to refer to a segmentation that was written.

    Attributes:
        segments: by finding's number, the number of its segment.
    """

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    dataset: Segmentation
    segments: dict[int, int]


def numbered_name(finding: Finding) -> str:
    """Name of a finding for people: its label and number."""
    tail = f" {finding.number}"
    return authorship.line(finding.label, 64 - len(tail)) + tail


@tags.quiet()  # remarks about values of the source, which are not ours to mend
def write_seg(
    path: Path | str,
    reading: Reading,
    sources: Sources,
    *,
    labels: NDArray[np.uint8] | None = None,
    components: NDArray[np.int32] | None = None,
    kind: Literal["BINARY", "LABELMAP"] = "BINARY",
    uid_seed: str = "",
) -> WrittenSeg | None:
    """Writes the reading's mask: one segment for each finding, and one for each label of an organ.

    The file is read back through highdicom and compared with the mask, voxel by voxel and place by place,
    before it gets its name.

    Args:
        path: of the file.
        reading: its findings, labels and provenance.
        sources: the source slices, as many as the masks have.
        labels: label values on the source slices, [slice, row, column]; by default the reading's mask.
        components: numbers of findings there; by default the reading's.
        kind: ``BINARY``, which all viewers know, or ``LABELMAP`` (Supplement 243).
        uid_seed: makes the object's UIDs a function of the seed.

    Returns:
        What was written, or None where there is no mask or an empty one: a segmentation needs a frame (PS3.3
        C.7.6.16), and one of empty frames stops some viewers.

    Raises:
        OutputError: it could not be built or written, or did not read back as it was; no file is left.
    """
    labels = reading.mask if labels is None else labels
    if labels is None:
        return None
    components = reading.components if components is None else components
    if components is not None and components.shape != labels.shape:
        raise OutputError(
            f"components have shape {components.shape}, the mask has {labels.shape}", code="MASK_SHAPE"
        )
    keep: NDArray[np.bool_] = np.any(labels, axis=(1, 2))
    if not keep.any():
        return None
    labels = labels[keep]
    components = np.zeros(labels.shape, np.int32) if components is None else components[keep]
    _check_place(reading, sources)
    segments = _segments(reading, labels, components)
    stack = _stack(segments, labels, components)
    try:
        dataset = _build(reading, sources, keep, stack, segments, kind, uid_seed)
    except BUILD_ERRORS as error:
        raise OutputError(
            f"the segmentation could not be built: {error}",
            where=Path(path).name,
            todo="the mask is in mask.nii.gz",
            code="SEG_BUILD",
        ) from error
    with whole_file(path) as partial:
        authorship.save(dataset, partial)
        _compare(partial, sources, keep, stack)
    return WrittenSeg(
        Path(path),
        str(dataset.SOPClassUID),
        str(dataset.SOPInstanceUID),
        str(dataset.SeriesInstanceUID),
        dataset,
        {segment.finding.number: segment.number for segment in segments if segment.finding},
    )


def _segments(reading: Reading, labels: NDArray[np.uint8], components: NDArray[np.int32]) -> list[Segment]:
    """Findings that have voxels, in their order, then the labels that have voxels outside of all findings."""
    present = set(np.flatnonzero(np.bincount(components[components > 0])).tolist())
    outside = labels[(components == 0) & (labels > 0)]
    infos = {info.index: info for info in reading.labels}
    findings = [finding for finding in reading.findings if finding.number in present]
    rest = [int(value) for value in np.flatnonzero(np.bincount(outside))]
    unknown = (set(rest) | {finding.label_index for finding in findings}) - set(infos)
    if unknown or len(findings) != len(present):
        raise OutputError(
            f"the mask holds values without a meaning: labels {sorted(unknown)}, "
            f"components {sorted(present - {finding.number for finding in findings})}",
            code="MASK_VALUES",
        )
    pairs = [(infos[finding.label_index], finding) for finding in findings]
    return [
        Segment(number, info, finding)
        for number, (info, finding) in enumerate([*pairs, *((infos[value], None) for value in rest)], 1)
    ]


def _check_place(reading: Reading, sources: Sources) -> None:
    """Where the grid is the source's own, its slices must lie where their headers say.

    Raises:
        OutputError: a slice is off by more than half a voxel, such as in a stack that was turned over.
    """
    if tuple(reading.grid.slices) != tuple(sources.slices):
        return
    allowed_mm = min(reading.grid.spacing_mm) / 2
    for i, ref in enumerate(sources.slices):
        off_mm = float(np.linalg.norm(reading.grid.world((i, 0, 0)) - position_of(sources, ref)))
        if off_mm > allowed_mm:
            raise OutputError(
                f"slice {i} of the grid lies {off_mm:.2f} mm from its source",
                where=ref.sop_instance_uid,
                todo="give the source slices in the order of the grid",
                code="SEG_PLACE",
            )


def _stack(
    segments: Sequence[Segment], labels: NDArray[np.uint8], components: NDArray[np.int32]
) -> NDArray[Any]:
    """Segment numbers, of the labels' shape."""
    dtype = np.uint8 if len(segments) < 256 else np.uint16
    by_label = np.zeros(256, dtype)
    last = max((s.finding.number for s in segments if s.finding), default=0)
    by_finding = np.zeros(last + 1, dtype)
    for segment in segments:
        if segment.finding is None:
            by_label[segment.label.index] = segment.number
        else:
            by_finding[segment.finding.number] = segment.number
    return np.where(components > 0, by_finding[components], by_label[labels])


def _build(
    reading: Reading,
    sources: Sources,
    keep: NDArray[np.bool_],
    stack: NDArray[Any],
    segments: Sequence[Segment],
    kind: str,
    uid_seed: str,
) -> Segmentation:
    if len(keep) != len(sources.slices):
        raise ValueError(f"the mask has {len(keep)} slices, the source has {len(sources.slices)}")
    images = sources.used(keep)
    pixels = stack
    if sources.multiframe:
        pixels = np.zeros((int(images[0].NumberOfFrames), *stack.shape[1:]), stack.dtype)
        pixels[[ref.frame - 1 for ref, kept in zip(sources.slices, keep, strict=True) if kept]] = stack
    dataset = Segmentation(
        source_images=images,
        pixel_array=pixels,
        segmentation_type=kind,
        segment_descriptions=[_description(segment, reading) for segment in segments],
        series_number=authorship.SEG_SERIES,
        content_label="WETREAD",
        content_description=authorship.line(f"{reading.provenance.package}. {authorship.NOT_CLINICAL}"),
        **authorship.identifiers(reading, "SEG", uid_seed),
    )
    measures = _pixel_measures(reading, sources, images[0])
    dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence = measures
    dataset.ContentQualification = "RESEARCH"
    dataset.BodyPartExamined = str(sources.first.get("BodyPartExamined", "") or "")
    if not dataset.BodyPartExamined:
        del dataset.BodyPartExamined
    return dataset


def _pixel_measures(reading: Reading, sources: Sources, image: Dataset) -> PixelMeasuresSequence:
    """Spacings of the source, with the distance between slices where the grid is the source's own.

    highdicom knows only the slices that are not empty, and takes over what the source says of the distance.
    """
    if sources.multiframe:
        image = image.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    between = reading.grid.spacing_mm[0]
    regular = tuple(reading.grid.slices) == tuple(sources.slices)
    return PixelMeasuresSequence(
        pixel_spacing=[float(x) for x in image.PixelSpacing],
        slice_thickness=float(image.get("SliceThickness", None) or between),
        spacing_between_slices=between if regular else None,
    )


def _description(segment: Segment, reading: Reading) -> SegmentDescription:
    """Segment Description Macro (PS3.3 C.8.20.4); tracking only where there is a finding to track."""
    label, finding = segment.label, segment.finding
    return SegmentDescription(
        segment_number=segment.number,
        segment_label=segment.name,
        segmented_property_category=codes.concept(label.category),
        segmented_property_type=codes.concept(label.type),
        algorithm_type="AUTOMATIC",
        algorithm_identification=authorship.algorithm(reading.provenance),
        tracking_uid=finding.tracking_uid if finding else None,
        tracking_id=segment.name if finding else None,
        anatomic_regions=[codes.concept(label.anatomy)] if label.anatomy else None,
        display_color=CIELabColor.from_rgb(*label.color),
    )


def _compare(path: Path, sources: Sources, keep: NDArray[np.bool_], stack: NDArray[Any]) -> None:
    """Reads the file as a viewer would and compares pixels, frames and places with what was meant.

    Raises:
        OutputError: any difference.
    """
    refs = [ref for ref, kept in zip(sources.slices, keep, strict=True) if kept]
    options: dict[str, Any] = {
        "combine_segments": True,
        "relabel": False,
        "assert_missing_frames_are_empty": True,
    }
    try:
        seg = segread(path)
        if sources.multiframe:
            found = seg.get_pixels_by_source_frame(
                refs[0].sop_instance_uid, [ref.frame for ref in refs], **options
            )
        else:
            found = seg.get_pixels_by_source_instance([ref.sop_instance_uid for ref in refs], **options)
        places = _places(seg)
    except BUILD_ERRORS as error:
        raise _mismatch(path, f"it cannot be read: {error}") from error
    if found.shape != stack.shape:
        raise _mismatch(path, f"its pixels have shape {found.shape}, expected {stack.shape}")
    if not np.array_equal(found, stack):
        raise _mismatch(path, f"{int((found != stack).sum())} voxels differ")
    if str(seg.SegmentationType) == "LABELMAP":
        frames = len(stack)
    else:
        frames = sum(int(np.count_nonzero(np.bincount(plane[plane > 0]))) for plane in stack)
    if int(seg.NumberOfFrames) != frames:
        raise _mismatch(path, f"it has {seg.NumberOfFrames} frames, expected {frames}")
    expected = {(ref.sop_instance_uid, ref.frame): position_of(sources, ref) for ref in refs}
    for key, place in places:
        if key not in expected or np.abs(np.subtract(place, expected[key])).max() > 1e-3:
            raise _mismatch(path, f"a frame lies at {place}, expected {expected.get(key)}")


def _places(seg: Segmentation) -> list[tuple[tuple[str, int], tuple[float, ...]]]:
    """Source (instance, frame) and position of every frame."""
    places = []
    for item in seg.PerFrameFunctionalGroupsSequence:
        source = item.DerivationImageSequence[0].SourceImageSequence[0]
        key = str(source.ReferencedSOPInstanceUID), int(source.get("ReferencedFrameNumber", 0) or 0)
        position = item.PlanePositionSequence[0].ImagePositionPatient
        places.append((key, tuple(float(x) for x in position)))
    return places


def position_of(sources: Sources, ref: SliceRef) -> tuple[float, ...]:
    """Image Position (Patient) of a source slice, in mm."""
    header = sources.instances[ref.sop_instance_uid]
    if ref.frame:
        groups = [header.PerFrameFunctionalGroupsSequence[ref.frame - 1]]
        groups += list(header.get("SharedFunctionalGroupsSequence", []))
        header = next(g for g in groups if "PlanePositionSequence" in g).PlanePositionSequence[0]
    return tuple(float(x) for x in header.ImagePositionPatient)


def _mismatch(path: Path, what: str) -> OutputError:
    return OutputError(
        f"the segmentation did not read back as it was written: {what}",
        where=path.name,
        todo="report this with the study's geometry; the mask is in mask.nii.gz",
        code="SEG_READ_BACK",
    )
