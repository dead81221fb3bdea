"""Who made an outgoing object, from what, and under which identifiers."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from highdicom import AlgorithmIdentificationSequence, ContributingEquipment
from numpy.typing import NDArray
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset

from wetread.dicom import codes
from wetread.errors import OutputError
from wetread.findings import Provenance, Reading
from wetread.volume import SliceRef

NAME = "wetread"
UTF_8 = "ISO_IR 192"
NOT_CLINICAL = "Research only. Not for clinical use."
SEG_SERIES, SR_SERIES = 9801, 9802  # Series Number, far from those of scanners
_SAME_DIRECTION = 1e-3
_UNKNOWN = "0000000"  # device serial number: software has none
_REQUIRED = (  # type 2 of the Patient, General Study and General Series modules (PS3.3 C.7.1.1, C.7.2.1)
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)


@dataclass(frozen=True)
class Sources:
    """The source slices of a reading.

    Args:
        slices: one for each slice, in the order of axis 0 of the masks that are written.
        instances: headers by SOP Instance UID; pixels are not needed. A multi-frame instance serves many slices.

    Raises:
        OutputError: no slices, or a slice without its header.
    """

    slices: Sequence[SliceRef]
    instances: Mapping[str, Dataset]

    def __post_init__(self) -> None:
        missing = [ref.sop_instance_uid for ref in self.slices if ref.sop_instance_uid not in self.instances]
        if not self.slices or missing:
            raise OutputError(
                "there are no source slices" if not self.slices else "a source slice has no header",
                where=missing[0] if missing else "",
                code="OUTPUT_SOURCES",
            )

    @classmethod
    def of(cls, headers: Iterable[Dataset], slices: Sequence[SliceRef] = ()) -> Sources:
        """Of headers alone: single-frame instances in the order of the slices, or with explicit slices."""
        instances = {str(header.SOPInstanceUID): header for header in headers}
        refs = slices or [SliceRef(uid, 0, str(header.SOPClassUID)) for uid, header in instances.items()]
        return cls(refs, instances)

    @property
    def first(self) -> Dataset:
        """Header of the first slice's instance."""
        return self.instances[self.slices[0].sop_instance_uid]

    @property
    def multiframe(self) -> bool:
        """Whether the slices are frames."""
        return self.slices[0].frame > 0

    def used(self, keep: NDArray[np.bool_] | None = None) -> list[Dataset]:
        """Headers of the slices that are kept, each once, as highdicom needs them.

        What must be there is added, empty; orientations that differ in rounding only become the first one's;
        an orientation or spacing that a multi-frame instance repeats for each frame is shared. The headers
        that were given stay as they are: what changes is a shallow copy.
        """
        refs = [ref for i, ref in enumerate(self.slices) if keep is None or keep[i]]
        headers = {ref.sop_instance_uid: ref for ref in reversed(refs)}
        orientation = self.first.get("ImageOrientationPatient")
        return [
            _completed(self.instances[uid], headers[uid], orientation)
            for uid in dict.fromkeys(ref.sop_instance_uid for ref in refs)
        ]


def _completed(header: Dataset, ref: SliceRef, orientation: Any) -> Dataset:
    changed: dict[str, Any] = {keyword: "" for keyword in _REQUIRED if keyword not in header}
    if ref.frame:
        shared = _copied(next(iter(header.get("SharedFunctionalGroupsSequence", [])), Dataset()))
        frame = header.PerFrameFunctionalGroupsSequence[ref.frame - 1]
        for keyword in ("PlaneOrientationSequence", "PixelMeasuresSequence"):
            if keyword not in shared and keyword in frame:
                _put(shared, keyword, frame[keyword].value)
        changed["SharedFunctionalGroupsSequence"] = [shared]
    else:
        if "SliceThickness" not in header:
            changed["SliceThickness"] = None  # highdicom asks for it even where it is told another one
        own = header.get("ImageOrientationPatient")
        if own is not None and orientation is not None and own != orientation:
            off = max(abs(float(a) - float(b)) for a, b in zip(own, orientation, strict=True))
            if off < _SAME_DIRECTION:
                changed["ImageOrientationPatient"] = orientation
    if not changed:
        return header
    copy = _copied(header)
    for keyword, value in changed.items():
        _put(copy, keyword, value)
    return copy


def _copied(dataset: Dataset) -> Dataset:
    """A dataset of its own that shares the elements; they must be replaced, never changed."""
    copy = Dataset({element.tag: element for element in dataset.values()})
    implicit, little = dataset.original_encoding
    copy.set_original_encoding(implicit, little, dataset.original_character_set)
    return copy


def _put(dataset: Dataset, keyword: str, value: Any) -> None:
    tag = tag_for_keyword(keyword)
    assert tag is not None
    dataset.add_new(tag, dictionary_VR(tag), value)


def new_uid(seed: str, role: str) -> str:
    """A UID of the 2.25 form (PS3.5 B.2): random without a seed, else the same for the same seed and role."""
    if not seed:
        return f"2.25.{uuid.uuid4().int}"
    digest = hashlib.sha256(f"wetread-object|{role}|{seed}".encode()).digest()
    return f"2.25.{uuid.UUID(bytes=digest[:16], version=5).int}"


def line(text: str, limit: int = 64) -> str:
    """Text for a value of type LO, SH or UT: one line, no backslash, no control characters, cut to length."""
    clean = "".join(c if c.isprintable() and c != "\\" else " " for c in text)
    return " ".join(clean.split())[:limit].rstrip()


def described(reading: Reading, kind: str) -> str:
    """Series Description: package, kind of object, and that it is not for clinical use."""
    tail = f" {kind} - not for clinical use"
    return line(reading.provenance.package, 64 - len(tail)) + tail


def algorithm(made: Provenance) -> AlgorithmIdentificationSequence:
    """Algorithm Identification Macro (PS3.3 10.16) with the package's hash among its parameters."""
    return AlgorithmIdentificationSequence(
        name=line(made.package),
        family=codes.ARTIFICIAL_INTELLIGENCE,
        version=line(made.package_version),
        source=NAME,
        parameters=parameters(made),
    )


def parameters(made: Provenance) -> dict[str, str]:
    """Parameters with which the algorithm ran."""
    return {
        "package_hash": line(made.package_hash, 1024),
        "engine": line(made.engine, 1024),
        "precision": line(made.precision, 1024),
        "gate": line(made.gate, 1024),
        "wetread": line(made.wetread_version, 1024),
    }


def equipment(made: Provenance) -> list[ContributingEquipment]:
    """Contributing Equipment Sequence (PS3.3 C.12.1.1.5): wetread with its version and package."""
    return [
        ContributingEquipment(
            NAME,
            codes.PROCESSING_EQUIPMENT,
            manufacturer_model_name=line(made.package),
            software_versions=[line(made.wetread_version), line(made.package_version)],
            contribution_description=line(f"Automatic reading. {NOT_CLINICAL}", 1024),
        )
    ]


def identifiers(reading: Reading, kind: str, uid_seed: str) -> dict[str, Any]:
    """Arguments of highdicom's constructors that all outgoing objects share."""
    made = reading.provenance
    return {
        "series_instance_uid": new_uid(uid_seed, f"{kind} series"),
        "sop_instance_uid": new_uid(uid_seed, f"{kind} instance"),
        "instance_number": 1,
        "manufacturer": NAME,
        "manufacturer_model_name": line(made.package) or NAME,
        "software_versions": line(made.wetread_version) or "unknown",
        "device_serial_number": _UNKNOWN,
        "series_description": described(reading, kind),
        "specific_character_set": UTF_8,
        "contributing_equipment": equipment(made),
    }


def save(dataset: Dataset, path: Path) -> None:
    """Writes a dataset under a temporary name (the caller renames).

    Raises:
        OSError: the disk is full or the folder cannot be written to.
        OutputError: a value cannot be encoded.
    """
    try:
        dataset.save_as(path, enforce_file_format=True)
    except (ValueError, TypeError, AttributeError, UnicodeError) as error:
        raise OutputError(
            f"a value cannot be encoded: {error}", where=path.name, code="OUTPUT_ENCODE"
        ) from error
