"""Multi-frame instances: one slice header for each frame, from its functional groups.

Enhanced CT, MR and PET (DICOM PS3.3 C.7.6.16, A.36, A.38): what is common to all frames stands in the Shared,
what differs in the Per-frame Functional Groups Sequence. The elements that geometry, pixels and splitting
need are flattened into one mapping for each frame.
"""

from __future__ import annotations

from pydicom.dataset import Dataset

from wetread.dicom import tags
from wetread.dicom.header import Instance, SliceHeader
from wetread.errors import PixelError

_GROUPS = (
    "FrameContentSequence",
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelMeasuresSequence",
    "PixelValueTransformationSequence",
    "CTImageFrameTypeSequence",
    "MRImageFrameTypeSequence",
    "PETFrameTypeSequence",
    "MREchoSequence",
    "MRDiffusionSequence",
    "MRTimingAndRelatedParametersSequence",
    "CardiacSynchronizationSequence",
    "TemporalPositionSequence",
    "CTReconstructionSequence",
    "MRModifierSequence",
    "FrameAnatomySequence",
)
_NESTED = ("DiffusionGradientDirectionSequence",)
_PER_FRAME, _SHARED = "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"


def frames(instance: Instance) -> list[SliceHeader]:
    """Slice headers of an instance: one, or one for each frame.

    Raises:
        PixelError: Number of Frames is not a positive number, differs from the functional groups that are
            there, or several frames come without functional groups (their places are then unknown).
    """
    classic = SliceHeader(instance)
    count = int(classic.number("NumberOfFrames", 1.0))
    where = classic.where("NumberOfFrames")
    if count < 1:
        raise PixelError(
            f"{tags.named('NumberOfFrames')} is {count}, expected at least 1", where=where, code="TAG_INVALID"
        )
    try:
        per_frame = tags.items(instance.dataset, _PER_FRAME)
        shared = _flatten(tags.items(instance.dataset, _SHARED)[:1])
        if not per_frame and count == 1:
            return [SliceHeader(instance, 0, shared or None)]
        if not per_frame:
            raise PixelError(
                f"{count} frames without {tags.named(_PER_FRAME)}: their places are unknown",
                where=classic.where(_PER_FRAME),
                code="MULTIFRAME",
                todo="export the series as single slices or as an enhanced multi-frame instance",
            )
        if len(per_frame) != count:
            raise PixelError(
                f"{tags.named('NumberOfFrames')} is {count}, but there are {len(per_frame)} items in "
                f"{tags.named(_PER_FRAME)}",
                where=where,
                code="MULTIFRAME",
                todo="copy or export the instance again",
            )
        return [
            SliceHeader(instance, number, {**shared, **_flatten([item])})
            for number, item in enumerate(per_frame, start=1)
        ]
    except ValueError as error:
        raise PixelError(
            str(error), where=classic.where(), code="TAG_INVALID", todo="copy or export the instance again"
        ) from error


def _flatten(groups: list[Dataset]) -> dict[int, object]:
    """Elements of the known functional groups of an item by tag, under the names that slices use."""
    found: dict[int, object] = {}
    for group in groups:
        for keyword in _GROUPS:
            for item in tags.items(group, keyword)[:1]:
                found.update(tags.raw_elements(item))
                for nested in _NESTED:
                    for inner in tags.items(item, nested)[:1]:
                        found.update(tags.raw_elements(inner))
    for frame_keyword, slice_keyword in (
        ("EffectiveEchoTime", "EchoTime"),
        ("FrameAcquisitionNumber", "AcquisitionNumber"),
        ("NominalCardiacTriggerDelayTime", "TriggerTime"),
    ):
        element = found.get(tags.tag_of(frame_keyword))
        if element is not None:
            found[tags.tag_of(slice_keyword)] = element
    return found
