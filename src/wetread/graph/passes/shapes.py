"""Shapes and types of all values, as `wetread.graph.shapes` infers them, written on the values."""

from __future__ import annotations

import onnx_ir as ir

from wetread.graph.graph import Graph
from wetread.graph.passes.base import Pass
from wetread.graph.passes.network import Network
from wetread.graph.passes.skeleton import skeleton
from wetread.graph.shapes import infer


class ShapesPass(Pass):
    """Infers shapes; it runs by itself after every pass that changed something, too."""

    name = "shapes"
    ensures = "every value has a type, and a shape as far as it can be inferred"

    def run(self, network: Network) -> None:
        """Writes inferred types and shapes on the values."""
        assign(network.model, skeleton(network.model, "network"))


def assign(model: ir.Model, small: Graph) -> None:
    """Writes types and shapes that follow for the skeleton `small` of `model` on the values of `model`."""
    found = {value.name: value.type for value in infer(small.model, strict=False).graph.value_info}
    for node in model.graph:
        for value in node.outputs:
            kind = found.get(str(value.name))
            if kind is None:
                continue
            value.type = ir.serde.deserialize_type_proto_for_type(kind)
            shape = ir.serde.deserialize_type_proto_for_shape(kind)
            if shape is not None:
                value.shape = shape
