"""Packages: the deployable directory of a network, its recipe, its gate and its manifest."""

from wetread.package.gate import DeviceGate, Gate, GateRecord, GateVerdict
from wetread.package.manifest import (
    Manifest,
    ModelEntry,
    Precision,
    ShapeProfile,
    SourceEntry,
    TensorEntry,
    file_sha256,
)
from wetread.package.package import Package, bytes_sha256, embedded_names, user_cache
from wetread.package.write import Contents, NetworkFile, write_package

__all__ = [
    "Contents",
    "DeviceGate",
    "Gate",
    "GateRecord",
    "GateVerdict",
    "Manifest",
    "ModelEntry",
    "NetworkFile",
    "Package",
    "Precision",
    "ShapeProfile",
    "SourceEntry",
    "TensorEntry",
    "bytes_sha256",
    "embedded_names",
    "file_sha256",
    "user_cache",
    "write_package",
]
