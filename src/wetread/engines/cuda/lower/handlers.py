"""Brings in every module that registers handlers."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec

_MODULES = ("convolutions", "norms", "moves", "quantised", "simple", "transformer", "windows")


@cache
def load() -> None:
    """Imports the modules; later ones may take operators over from earlier ones."""
    for name in _MODULES:
        path = f"wetread.engines.cuda.lower.{name}"
        if find_spec(path) is not None:
            import_module(path)
