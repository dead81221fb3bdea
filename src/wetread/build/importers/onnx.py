"""ONNX files: the graph is there, the recipe is not."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from wetread.build.importers.base import Imported, ImportedNetwork, ImportOptions
from wetread.graph import Graph


def import_onnx(path: Path, options: ImportOptions) -> Imported:
    """Reads an ONNX file and its external weights.

    Raises:
        GraphError: missing, truncated, not ONNX.
    """
    return Imported(
        (ImportedNetwork(Graph.load(path).stripped()),),
        sources=(path,),
        tools={"onnx": metadata.version("onnx")},
    )
