"""wetread reads CT and MR studies with trained networks, at once: DICOM in, lesions out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from wetread.engines.base import Context, Engine
    from wetread.engines.registry import make_engine
    from wetread.findings import Finding, Reading
    from wetread.package import Package
    from wetread.reading import Case, read, save
    from wetread.recipe import Recipe
    from wetread.volume import Grid, Volume

__all__ = [
    "Case",
    "Context",
    "Engine",
    "Finding",
    "Grid",
    "Package",
    "Reading",
    "Recipe",
    "Volume",
    "__version__",
    "make_engine",
    "read",
    "save",
]

_HOMES = {
    "Case": "wetread.reading",
    "Context": "wetread.engines.base",
    "Engine": "wetread.engines.base",
    "Finding": "wetread.findings",
    "Grid": "wetread.volume",
    "Package": "wetread.package",
    "Reading": "wetread.findings",
    "Recipe": "wetread.recipe",
    "Volume": "wetread.volume",
    "make_engine": "wetread.engines.registry",
    "read": "wetread.reading",
    "save": "wetread.reading",
}


def __getattr__(name: str) -> Any:
    """Loads public names on first use, so that importing wetread costs nothing."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'wetread' has no attribute {name!r}")
