"""Series: slices that belong together, before they are a volume."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from wetread.dicom import tags
from wetread.dicom.geometry import Arrangement, arrange
from wetread.dicom.header import SliceHeader
from wetread.dicom.load import Progress, load
from wetread.dicom.plane import slice_affine
from wetread.dicom.split import is_localiser
from wetread.dicom.straighten import Label, to_source
from wetread.errors import Notice, WetreadError
from wetread.volume import Grid, SliceRef, Volume

_ATTRIBUTES = {
    "modality": "Modality",
    "description": "SeriesDescription",
    "protocol": "ProtocolName",
    "scanning_sequence": "ScanningSequence",
    "sequence_variant": "SequenceVariant",
    "sequence_name": "SequenceName",
    "pulse_sequence": "PulseSequenceName",
    "body_part": "BodyPartExamined",
    "image_type": "ImageType",
    "series_instance_uid": "SeriesInstanceUID",
    "study_instance_uid": "StudyInstanceUID",
    "series_number": "SeriesNumber",
    "study_description": "StudyDescription",
    "kernel": "ConvolutionKernel",
    "slice_thickness_mm": "SliceThickness",
    "manufacturer": "Manufacturer",
    "model": "ManufacturerModelName",
    "contrast": "ContrastBolusAgent",
    "patient_position": "PatientPosition",
    "echo_time_ms": "EchoTime",
    "repetition_time_ms": "RepetitionTime",
    "inversion_time_ms": "InversionTime",
    "b_value": "DiffusionBValue",
    "frame_of_reference_uid": "FrameOfReferenceUID",
    "sop_class_uid": "SOPClassUID",
    "study_date": "StudyDate",
}
_PER_FRAME = {
    "ImageType",
    "SliceThickness",
    "EchoTime",
    "RepetitionTime",
    "DiffusionBValue",
    "FrameOfReferenceUID",
}


@dataclass(frozen=True)
class SourceSlice:
    """One source slice of a series, in the order of its arrangement.

    Attributes:
        ref: instance, frame and class.
        affine: 4×4, array index (0, row, column) of the slice to LPS mm; its first column is the unit normal.
    """

    ref: SliceRef
    affine: NDArray[np.float64]


class Series:
    """One volume candidate: the slices of a series that belong together.

    Args:
        slices: headers in any order, all of one Series Instance UID.
        split: why they were told apart from the rest of their series, empty where they were not.
        problems: errors of instances of the same series that could not be used; they make it unreadable.
    """

    def __init__(
        self, slices: Iterable[SliceHeader], *, split: str = "", problems: Iterable[WetreadError] = ()
    ) -> None:
        self.slices = tuple(slices)
        self.split = split
        self.problems = tuple(problems)

    def __len__(self) -> int:
        return len(self.slices)

    def __repr__(self) -> str:
        uid = self.attributes.get("series_instance_uid", "")
        return f"<Series {uid} {len(self)} slices{', ' + self.split if self.split else ''}>"

    @cached_property
    def attributes(self) -> dict[str, str]:
        """What a selection can go by, as text: the keys of the table above; absent elements are left out."""
        if not self.slices:
            return {}
        first = self.slices[0]
        with tags.quiet():
            found = {
                name: first.text(keyword)
                if keyword in _PER_FRAME
                else tags.decoded(first.instance.dataset, keyword)
                for name, keyword in _ATTRIBUTES.items()
            }
        found["image_type"] = "\\".join(first.image_type)
        found["sequence"] = " ".join(
            filter(
                None,
                (
                    found[name]
                    for name in ("sequence_name", "scanning_sequence", "sequence_variant", "pulse_sequence")
                ),
            )
        )
        return {name: value for name, value in found.items() if value}

    @property
    def uid(self) -> str:
        """Series Instance UID."""
        return self.slices[0].instance.series_instance_uid if self.slices else ""

    @property
    def modality(self) -> str:
        """Modality, such as ``CT``."""
        return self.slices[0].instance.modality if self.slices else ""

    @property
    def is_localiser(self) -> bool:
        """True for scout images, which are never read."""
        return bool(self.slices) and is_localiser(self.slices[0])

    @cached_property
    def arrangement(self) -> Arrangement:
        """How the slices make one grid.

        Raises:
            GeometryError, PixelError: see `wetread.dicom.geometry.arrange`; also the first problem of an
                instance of this series that could not be used.
        """
        if self.problems:
            raise self.problems[0]
        return arrange(self.slices)

    def grid(self) -> tuple[Grid, tuple[Notice, ...]]:
        """The grid, from headers only, and what was repaired for it.

        Raises:
            GeometryError, PixelError: as `arrangement`.
        """
        return self.arrangement.grid, self.arrangement.notices

    def volume(
        self, *, threads: int | None = None, progress: Progress | None = None
    ) -> tuple[Volume, tuple[Notice, ...]]:
        """The voxels on the grid, and what was repaired for both.

        Raises:
            GeometryError, PixelError, FileFormatError: see `wetread.dicom.load.load`.
        """
        volume, notices = load(self.arrangement, threads=threads, progress=progress)
        return volume, (*self.arrangement.notices, *notices)

    def to_source(self, labels: NDArray[Label]) -> NDArray[Label]:
        """Labels on the volume's grid, brought to the source slices by nearest voxel.

        Returns:
            Shape (slices, rows, columns), in the order of `source_slices`; unchanged for a regular series.
        """
        return to_source(labels, self.arrangement)

    @cached_property
    def source_slices(self) -> tuple[SourceSlice, ...]:
        """The source slices with their own places, ordered along the grid's first axis."""
        return tuple(SourceSlice(header.ref, slice_affine(header)) for header in self.arrangement.order)

    @cached_property
    def datasets(self) -> tuple[Dataset, ...]:
        """Headers (without pixels) of the instances, in the order of `source_slices`, each once."""
        seen: dict[int, Dataset] = {}
        for header in self.arrangement.order:
            seen.setdefault(id(header.instance), header.instance.dataset)
        return tuple(seen.values())
