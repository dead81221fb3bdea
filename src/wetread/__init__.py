"""wetread reads CT and MR studies with trained networks, at once: DICOM in, lesions out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from wetread.findings import Finding, Reading
    from wetread.package import Package
    from wetread.reading import Case, read, save
    from wetread.volume import Grid, Volume

__all__ = ["Case", "Finding", "Grid", "Package", "Reading", "Volume", "__version__", "read", "save"]

_HOMES = {
    "Case": "wetread.reading",
    "Finding": "wetread.findings",
    "Grid": "wetread.volume",
    "Package": "wetread.package",
    "Reading": "wetread.findings",
    "Volume": "wetread.volume",
    "read": "wetread.reading",
    "save": "wetread.reading",
}


def __getattr__(name: str) -> Any:
    """Loads public names on first use, so that importing wetread costs nothing."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'wetread' has no attribute {name!r}")
