"""What PyTorch's exporter leaves unfolded although it depends on no input: shapes of weights, zeros made of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from wetread.errors import GraphError
from wetread.graph.graph import Graph


def fold_constants(graph: Graph) -> Graph:
    """Computes nodes that depend on no input, and removes biases that are zero; nothing else changes.

    The exporter spells a missing bias as zeros of a shape that it reads off the weight. Engines refuse a bias
    whose number of axes they cannot tell. For `conv3d` onnxscript up to 0.7.2 even writes (channels, 2), which
    is not ONNX, so such a bias has to go before an engine or the verifier sees the graph.

    Args:
        graph: as it was exported.

    Raises:
        GraphError: the graph cannot be folded.
    """
    from onnxscript import optimizer

    model = graph.ir()
    try:
        optimizer.fold_constants(model, onnx_shape_inference=False)
        for node in model.graph:
            if (
                node.op_type in ("Conv", "ConvTranspose")
                and len(node.inputs) == 3
                and _is_zero(node.inputs[2])
            ):
                node.resize_inputs(2)
        optimizer.remove_unused_nodes(model)
    except Exception as error:  # evaluators raise what they like
        raise GraphError(f"constants cannot be folded: {error}", where=graph.where) from error
    return Graph.from_ir(model, graph.where)


def computed_biases(graph: Graph) -> bool:
    """Whether a convolution's bias is computed by nodes, as PyTorch's exporter writes a missing one unoptimised."""
    stored = {tensor.name for tensor in graph.model.graph.initializer}
    return any(
        node.op_type in ("Conv", "ConvTranspose") and len(node.input) == 3 and node.input[2] not in stored
        for node in graph.nodes
    )


def _is_zero(value: Any) -> bool:
    return value is not None and value.const_value is not None and not np.any(value.const_value.numpy())
