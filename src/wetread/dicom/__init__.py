"""DICOM: studies in, segmentations and reports out. The only room that imports pydicom and highdicom."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wetread.dicom.archive import ArchiveLimits
    from wetread.dicom.files import read_header
    from wetread.dicom.header import Instance, SliceHeader, Source
    from wetread.dicom.pixels import decode_slice
    from wetread.dicom.series import Series, SourceSlice
    from wetread.dicom.study import Study, gather, open_study
    from wetread.dicom.synthetic import write_ct_series

__all__ = [
    "ArchiveLimits",
    "Instance",
    "Series",
    "SliceHeader",
    "Source",
    "SourceSlice",
    "Study",
    "decode_slice",
    "gather",
    "open_study",
    "read_header",
    "write_ct_series",
]

_HOMES = {
    "ArchiveLimits": "archive",
    "Instance": "header",
    "Series": "series",
    "SliceHeader": "header",
    "Source": "header",
    "SourceSlice": "series",
    "Study": "study",
    "decode_slice": "pixels",
    "gather": "study",
    "open_study": "study",
    "read_header": "files",
    "write_ct_series": "synthetic",
}


def __getattr__(name: str) -> Any:
    """Loads public names on first use, so that importing the room costs nothing."""
    if name in _HOMES:
        return getattr(import_module(f"wetread.dicom.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'wetread.dicom' has no attribute {name!r}")
