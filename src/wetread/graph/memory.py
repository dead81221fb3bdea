"""How much memory a network's activations take, from its graph alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import shape_inference

from wetread.errors import GraphError
from wetread.graph.shapes import infer

if TYPE_CHECKING:
    from wetread.graph.graph import Graph

_IN_PLACE = {
    "Relu", "LeakyRelu", "PRelu", "Clip", "Sigmoid", "Tanh", "Elu", "HardSigmoid", "HardSwish", "Mish", "Swish",
    "Gelu", "Add", "Sub", "Mul", "Div", "Identity", "Dropout", "Reshape", "Flatten", "Squeeze", "Unsqueeze",
    "QuantizeLinear", "DequantizeLinear",
}  # fmt: skip
"""Operators that runtimes compute in place, or inside the kernel of the node before."""


def activation_bytes(graph: Graph, window: Sequence[int]) -> int:
    """Peak of live activations in bytes for one window, as a runtime that reuses memory would need.

    A value lives from the node that writes it to the last that reads it. The network's inputs and outputs,
    which the caller owns, are left out, and so is scratch space inside kernels, which only the runtime knows.
    Values whose shape cannot be inferred count as nothing.

    Raises:
        GraphError: the network does not take this window.
    """
    fixed = graph.inlined().fixed(window, 1)
    try:
        typed = infer(fixed.model).graph
    except shape_inference.InferenceError as error:
        raise GraphError(f"shapes do not agree: {str(error).strip()}", where=graph.where) from error
    size = {value.name: _bytes(value) for value in typed.value_info}
    foreign = {value.name for value in (*typed.input, *typed.output)} | {t.name for t in typed.initializer}
    home: dict[str, str] = {}  # value → the value whose memory it takes
    birth: dict[str, int] = {}
    last: dict[str, int] = {}
    for i, node in enumerate(typed.node):
        sources = [home[name] for name in node.input if name in home]
        last.update(dict.fromkeys(sources, i))
        if node.op_type == "Constant":
            continue
        for name in node.output:
            if not name or name in foreign:
                continue
            first = sources[0] if sources else ""
            reuse = node.op_type in _IN_PLACE and first and size.get(name, 0) <= size.get(first, 0)
            home[name] = first if reuse else name
            if not reuse:
                birth[name] = last[name] = i
    return peak_bytes({name: size.get(name, 0) for name in birth}, birth, last)


def peak_bytes(size: dict[str, int], birth: dict[str, int], last: dict[str, int]) -> int:
    """Largest sum of sizes alive at one step.

    Args:
        size: bytes of each value.
        birth, last: number of the step that makes it, and of the last one that reads it.
    """
    change: dict[int, int] = {}
    for name, count in size.items():
        change[birth[name]] = change.get(birth[name], 0) + count
        change[last[name] + 1] = change.get(last[name] + 1, 0) - count
    live = peak = 0
    for step in sorted(change):
        live += change[step]
        peak = max(peak, live)
    return peak


def _bytes(value: onnx.ValueInfoProto) -> int:
    kind = value.type.tensor_type
    if not kind.HasField("shape") or not all(dim.HasField("dim_value") for dim in kind.shape.dim):
        return 0
    width = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)).itemsize
    return width * int(np.prod([dim.dim_value for dim in kind.shape.dim], dtype=np.int64))
