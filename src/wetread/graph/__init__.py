"""Graphs: networks as typed ONNX models. The only room that imports onnx and onnx_ir."""

from wetread.graph.graph import Graph
from wetread.graph.verify import verify

__all__ = ["Graph", "verify"]
