"""ONNX files: the graph is there, the recipe is not."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from wetread.build.importers.base import Imported, ImportedNetwork, ImportOptions
from wetread.graph import Graph
from wetread.graph.fold import computed_biases, fold_constants


def import_onnx(path: Path, options: ImportOptions) -> Imported:
    """Reads an ONNX file and its external weights.

    A file that PyTorch wrote without optimising may have biases that are no ONNX, see `fold_constants`.

    Raises:
        GraphError: missing, truncated, not ONNX.
    """
    graph = Graph.load(path).stripped()
    if computed_biases(graph):
        graph = fold_constants(graph)
    return Imported(
        (ImportedNetwork(graph),),
        sources=(path,),
        tools={"onnx": metadata.version("onnx")},
    )
