"""Engines: networks made ready for a device, behind one seam."""

from wetread.engines.base import Array, Context, Engine, EngineInfo, Layered, LayerRun, TensorInfo, Ticket
from wetread.engines.registry import BACKENDS, Backend, available, make_engine, resolve

__all__ = [
    "BACKENDS",
    "Array",
    "Backend",
    "Context",
    "Engine",
    "EngineInfo",
    "LayerRun",
    "Layered",
    "TensorInfo",
    "Ticket",
    "available",
    "make_engine",
    "resolve",
]
