"""Coded concepts of what wetread writes, with the context groups of DICOM PS3.16 that they come from."""

from __future__ import annotations

from highdicom.sr import CodedConcept
from pydicom.sr.coding import Code

# CID 7162, 7005, 7021
ARTIFICIAL_INTELLIGENCE = Code("123110", "DCM", "Artificial Intelligence")
PROCESSING_EQUIPMENT = Code("109102", "DCM", "Processing Equipment")
REPORT_TITLE = Code("126000", "DCM", "Imaging Measurement Report")
DEVICE = Code("121007", "DCM", "Device")

# CID 7469, 7470, 7472: sizes and intensities; CID 7464: how they were derived
VOLUME = Code("118565006", "SCT", "Volume")
LONG_AXIS = Code("103339001", "SCT", "Long axis")
SHORT_AXIS = Code("103340004", "SCT", "Short axis")
DIAMETER_3D = Code("L0JK", "IBSI", "Maximum 3D Diameter of a Mesh")
ATTENUATION = Code("112031", "DCM", "Attenuation Coefficient")
SIGNAL = Code("110852", "DCM", "MR signal intensity")
MEAN = Code("373098007", "SCT", "Mean")
STANDARD_DEVIATION = Code("386136009", "SCT", "Standard Deviation")

# CID 6048: how sure the device is
CERTAINTY = Code("111012", "DCM", "Certainty of Finding")
CENTER = Code("111010", "DCM", "Center")

# Units of UCUM, CID 82 and 7181
MM = Code("mm", "UCUM", "millimeter")
MM3 = Code("mm3", "UCUM", "cubic millimeter")
HU = Code("[hnsf'U]", "UCUM", "Hounsfield unit")
PERCENT = Code("%", "UCUM", "Percent")
NO_UNIT = Code("1", "UCUM", "no units")

# CID 240 and DCM: whether what was looked for is there
PRESENCE = Code("121052", "DCM", "Presence of property")
ABSENT = Code("272519000", "SCT", "Absent")
PRESENT = Code("52101004", "SCT", "Present")
COMMENT = Code("121106", "DCM", "Comment")

# CID 100: procedure reported, by modality
_PROCEDURES = {
    "CT": Code("25045-6", "LN", "CT unspecified body region"),
    "MR": Code("25056-3", "LN", "MRI unspecified body region"),
}
_ANY_PROCEDURE = Code("363679005", "SCT", "Imaging procedure")

# The mean and standard deviation of what, in which unit, by modality
_INTENSITIES = {"CT": (ATTENUATION, HU), "MR": (SIGNAL, NO_UNIT)}


def concept(code: tuple[str, str, str] | Code) -> CodedConcept:
    """Coded concept of a code (value, scheme, meaning), as `wetread.findings.LabelInfo` holds them."""
    value, scheme, meaning = code[:3]
    return CodedConcept(value, scheme, meaning)


def procedure_of(modality: str) -> Code:
    """Procedure reported (CID 100) for a modality."""
    return _PROCEDURES.get(modality, _ANY_PROCEDURE)


def intensity_of(modality: str) -> tuple[Code, Code] | None:
    """What voxels of a modality measure, and its unit; None where no code says so."""
    return _INTENSITIES.get(modality)
