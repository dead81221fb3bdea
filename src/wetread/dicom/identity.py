"""Identity: what to do with instances whose identifiers an over-eager de-identification has emptied.

SOP Instance and Class UID are taken from the file meta information where the data set has none. Study and
Series Instance UID are made from what else the slices of a series have in common, so that the same files
always get the same ones; a reading of them can be written, though not filed beside its source.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from wetread.dicom import tags
from wetread.dicom.header import Instance
from wetread.errors import FileFormatError, InputError, Notice

_STUDY = ("PatientID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "FrameOfReferenceUID")
_SERIES = (*_STUDY, "Modality", "SeriesNumber", "SeriesDescription", "SeriesTime", "ProtocolName")


def complete_sop(instance: Instance) -> bool:
    """Fills empty SOP Instance and Class UIDs of a header from its file meta information; True where it did.

    Raises:
        FileFormatError: the file meta information does not have them either.
    """
    filled = False
    for keyword, stored in (
        ("SOPInstanceUID", "MediaStorageSOPInstanceUID"),
        ("SOPClassUID", "MediaStorageSOPClassUID"),
    ):
        if instance.text(keyword):
            continue
        value = tags.meta_text(instance.dataset, stored)
        if not value:
            raise FileFormatError(
                f"{tags.named(keyword)} is missing",
                code="TAG_MISSING",
                where=f"{instance.label}, {tags.named(keyword)}",
                todo="export the series again with all of its attributes",
            )
        setattr(instance.dataset, keyword, value)
        filled = True
    return filled


def complete_series(instances: Iterable[Instance]) -> tuple[list[tuple[str, InputError]], list[Notice]]:
    """Fills empty Study and Series Instance UIDs, in place.

    Returns:
        Problems (Series Instance UID, error) of instances without one that share their frame of reference
        with a series that has one and may be slices of it; and the notices of what was filled.
    """
    instances = list(instances)
    named = {
        instance.text("FrameOfReferenceUID"): instance.text("SeriesInstanceUID")
        for instance in instances
        if instance.text("SeriesInstanceUID")
    }
    problems: list[tuple[str, InputError]] = []
    made: dict[str, list[Instance]] = {}
    for instance in instances:
        if not instance.text("SeriesInstanceUID"):
            owner = named.get(instance.text("FrameOfReferenceUID"))
            if owner is not None:
                problems.append(
                    (
                        owner,
                        FileFormatError(
                            f"{tags.named('SeriesInstanceUID')} is missing",
                            code="TAG_MISSING",
                            where=f"{instance.label}, {tags.named('SeriesInstanceUID')}",
                            todo="export the series again with all of its attributes",
                        ),
                    )
                )
            instance.dataset.SeriesInstanceUID = _made_up(instance, _SERIES)
            made.setdefault(instance.series_instance_uid, []).append(instance)
        if not instance.text("StudyInstanceUID"):
            instance.dataset.StudyInstanceUID = _made_up(instance, _STUDY)
            made.setdefault(instance.series_instance_uid, [])
    notices = [
        Notice(
            "UIDS_MISSING",
            "Study or Series Instance UID was missing; made up from the other attributes, so "
            "outputs cannot be filed beside the source",
            uid,
        )
        for uid in made
    ]
    return problems, notices


def _made_up(instance: Instance, keywords: tuple[str, ...]) -> str:
    """A UID under 2.25 from the SHA-256 of some attributes (PS3.5 section B.2)."""
    content = "\0".join(instance.text(keyword) for keyword in keywords)
    digest = hashlib.sha256(content.encode()).digest()[:16]
    return f"2.25.{int.from_bytes(digest, 'big')}"
