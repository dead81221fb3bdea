"""Regions: the part of a network between some values and others, as a small network of its own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from wetread.graph.evaluate import Evaluator
from wetread.graph.graph import Graph
from wetread.graph.passes.expression import View
from wetread.graph.passes.skeleton import Types


@dataclass(frozen=True)
class Region:
    """Nodes that compute `outputs` from `inputs`.

    Attributes:
        outputs: names of the values wanted.
        inputs: names of the values at its border, in no order that matters.
        nodes: in the order of the graph.
        constants: arrays by name.
    """

    outputs: tuple[str, ...]
    inputs: tuple[str, ...]
    nodes: tuple[ir.Node, ...]
    constants: Mapping[str, np.ndarray]


def cut_region(view: View, outputs: Collection[str], border: Callable[[str], bool]) -> Region:
    """Walks back from the outputs to constants, inputs of the network and values that `border` accepts."""
    nodes: set[ir.Node] = set()
    inputs: dict[str, None] = {}
    constants: dict[str, np.ndarray] = {}
    waiting = [view.values[name] for name in outputs]
    wanted = set(outputs)
    seen: set[str] = set()
    while waiting:
        value = waiting.pop()
        name = str(value.name)
        if name in seen:
            continue
        seen.add(name)
        node = value.producer()
        known = view.assumed.get(name) if name not in wanted else None
        if name in view.constants or known is not None:
            tensor = ir.convenience.get_const_tensor(known or value)
            if tensor is not None:
                constants[name] = tensor.numpy()
        elif node is None or (name not in wanted and border(name)):
            inputs[name] = None
        else:
            nodes.add(node)
            waiting.extend(i for i in node.inputs if i is not None)
    ordered = tuple(node for node in view.model.graph if node in nodes) if nodes else ()
    return Region(tuple(outputs), tuple(inputs), ordered, constants)


def evaluate_region(
    region: Region, view: View, inputs: Mapping[str, np.ndarray], types: Types
) -> dict[str, np.ndarray]:
    """Computes a region in float64.

    Args:
        region: of `view`.
        view: for versions of operators and for functions.
        inputs: arrays for the border.
        types: element types by value.

    Raises:
        GraphError: a node fails; names it.
    """
    found = {name: region.constants[name] for name in region.outputs if name in region.constants}
    computed = [name for name in region.outputs if name not in found]
    if not computed:
        return {
            name: array.astype(np.float64) if array.dtype.kind == "f" else array
            for name, array in found.items()
        }
    graph = helper.make_graph(
        [ir.serde.serialize_node(node) for node in region.nodes],
        "region",
        [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(inputs[name].dtype), inputs[name].shape
            )
            for name in region.inputs
        ],
        [_output(name, types) for name in computed],
        [numpy_helper.from_array(np.asarray(a, order="C"), n) for n, a in region.constants.items()],
    )
    opsets = [helper.make_opsetid(d, v) for d, v in view.model.graph.opset_imports.items()]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=view.model.ir_version)
    model.functions.extend(ir.serde.serialize_function(f) for f in view.model.functions.values())
    found |= Evaluator(Graph(model, "region")).run({name: inputs[name] for name in region.inputs})
    return found


def _output(name: str, types: Types) -> onnx.ValueInfoProto:
    element, shape = types.get(name, (onnx.TensorProto.FLOAT, None))
    return helper.make_tensor_value_info(
        name, element or onnx.TensorProto.FLOAT, shape if shape is not None else []
    )
