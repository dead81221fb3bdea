"""DICOMDIR: used for one thing only, to know which instances should be there (DICOM PS3.3 annex F).

The files themselves are always found by looking, because names in a directory often differ in case or
extension from those on disk.
"""

from __future__ import annotations

from collections.abc import Container

from wetread.dicom import tags
from wetread.dicom.header import Instance

MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"


def is_directory(instance: Instance) -> bool:
    """True for the header of a DICOMDIR."""
    stored = tags.meta_text(instance.dataset, "MediaStorageSOPClassUID")
    return stored == MEDIA_DIRECTORY or tags.tag_of("DirectoryRecordSequence") in tags.raw_elements(
        instance.dataset
    )


def missing_instances(directory: Instance, present: Container[str]) -> list[tuple[str, str]]:
    """Images that a directory lists and that are not present.

    Args:
        directory: the DICOMDIR.
        present: SOP Instance UIDs that were found.

    Returns:
        Pairs (Series Instance UID, SOP Instance UID); empty where the directory cannot be read.
    """
    try:
        records = tags.items(directory.dataset, "DirectoryRecordSequence")
    except ValueError:
        return []
    series, missing = "", []
    for record in records:
        elements = tags.raw_elements(record)
        kind = tags.text(elements.get(tags.tag_of("DirectoryRecordType")))
        if kind == "SERIES":
            series = tags.text(elements.get(tags.tag_of("SeriesInstanceUID")))
        elif kind == "IMAGE":
            uid = tags.text(elements.get(tags.tag_of("ReferencedSOPInstanceUIDInFile")))
            if uid and uid not in present:
                missing.append((series, uid))
    return missing
