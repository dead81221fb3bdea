"""What ONNX Runtime executes: the nodes that are left after its own optimisation."""

from __future__ import annotations

from wetread.engines.base import LayerRun
from wetread.graph import Graph

_INTEGER = ("QLinear", "QGemm", "QAttention", "MatMulInteger", "ConvInteger")
_PASSIVE = {"Constant"}


def layers_of(optimised: Graph) -> tuple[LayerRun, ...]:
    """Nodes in their order.

    A Q/DQ graph does not run in integers because it could: on x86 ONNX Runtime keeps most convolutions of int8
    activations in float32 and rounds between them, which gives the quantised graph's numbers without its speed.
    An integer kernel is known by its operator, others by the type of their weights.

    ONNX Runtime chooses its kernels by operator and type, so that these are their names.
    """
    floating = "float32" if optimised.precision in ("int8", "float8") else optimised.precision
    found = []
    for node in optimised.nodes:
        if node.op_type in _PASSIVE:
            continue
        weights = [optimised.weights[name].dtype for name in node.input[1:] if name in optimised.weights]
        floats = [kind.name for kind in weights if kind.kind == "f"]
        integer = node.op_type.startswith(_INTEGER)
        found.append(
            LayerRun(
                name=node.name or (node.output[0] if node.output else ""),
                type=node.op_type,
                precision="int8" if integer else floats[0] if floats else floating,
                kernel=f"{node.domain or 'ai.onnx'}.{node.op_type}",
                nodes=(node.name,) if node.name else tuple(node.output),
            )
        )
    return tuple(found)
