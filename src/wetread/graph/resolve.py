"""A network for one window and batch as plain nodes: every shape known, everything computed that hangs on no input."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, inliner, numpy_helper
from onnx.reference import ReferenceEvaluator

from wetread.errors import GraphError, UnsupportedOperatorError
from wetread.graph import change
from wetread.graph.graph import Graph, node_name, numpy_name
from wetread.graph.operators import OPERATORS
from wetread.graph.plain import Operation, operation_of
from wetread.graph.shapes import infer
from wetread.package import TensorEntry

_ROUNDS = 6
"""Times that folding may make new shapes known, which make new folding possible."""

_LARGE = 1 << 14
"""Bytes from which a weight is no shape and no list of axes."""

_STAY = frozenset(
    {"DequantizeLinear", "RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike"}
)
"""Operators that are not computed: eight-bit weights stay what they are, random numbers are no constants."""


@dataclass(frozen=True, eq=False)
class Resolved:
    """A network as plain data.

    Attributes:
        nodes: in order; those of the domain ``wetread`` have operators such as ``wetread.Gelu``.
        constants: weights and folded values, by name.
        tensors: type and shape of every other value, by name; all sizes known.
        opset: version of the standard operators.
        outputs: names of the values that the network returns.
    """

    nodes: tuple[Operation, ...]
    constants: Mapping[str, NDArray[Any]]
    tensors: Mapping[str, TensorEntry]
    opset: int
    outputs: tuple[str, ...]


_MOVES = frozenset(
    {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"}
    | {f"{change.DOMAIN}.{name}" for name in ("WindowPartition", "WindowReverse", "Roll")}
)
"""Operators that give as many values as they take; inference does not check that of shapes that are constants."""


def resolve(graph: Graph, window: Sequence[int], batch: int, functions: Collection[str] = ()) -> Resolved:
    """Fixes the network's shapes, folds what follows from them, and leaves out what no output needs.

    Args:
        graph: the network.
        window: sizes of the spatial axes of every input.
        batch: size of the batch axis.
        functions: names of functions of the domain ``wetread`` that stay nodes; others are inlined.

    Raises:
        GraphError: shapes do not agree for this window, or one hangs on the values of an input; names the node.
        UnsupportedOperatorError: an operator is none of ONNX's.
    """
    model = change.without_dead(_inlined(graph, functions))
    large = _set_aside(model)
    names = {entry.name for entry in graph.inputs}
    if batch > 1:
        _free_batch(model, change.fixed(model, names, window, 1, graph.where))
    model = change.fixed(model, names, window, batch, graph.where)
    for _ in range(_ROUNDS):
        shapes = _shapes(model, graph.where)
        if not _fold(model, shapes, large, graph.where):
            break
    constants = {t.name: numpy_helper.to_array(t) for t in (*model.graph.initializer, *large.values())}
    tensors = _tensors(model, shapes, constants, graph.where)
    nodes = tuple(_plain(node) for node in model.graph.node)
    for node in nodes:
        if node.operator in _MOVES and node.inputs[0] in tensors:
            _check_move(node, tensors, f"{graph.where}: {node.operator} {node.name!r}", batch)
    return Resolved(nodes, constants, tensors, graph.opset, tuple(entry.name for entry in graph.outputs))


def _check_move(node: Operation, tensors: Mapping[str, TensorEntry], where: str, batch: int) -> None:
    given, made = (tensors[name].shape for name in (node.inputs[0], node.outputs[0]))
    if math.prod(size or 0 for size in given) != math.prod(size or 0 for size in made):
        raise GraphError(
            f"makes shape {made} of {given}, at a batch of {batch}", where=where,
            todo="the network was exported for another batch or window: export it with these axes free",
        )  # fmt: skip


def _set_aside(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Large weights taken out of the model, where inputs of their types stand for them: each copy would carry them."""
    found, kept = {}, []
    for tensor in model.graph.initializer:
        if tensor.ByteSize() > _LARGE:
            found[tensor.name] = onnx.TensorProto()
            found[tensor.name].CopyFrom(tensor)
        else:
            kept.append(tensor)
    listed = [value for value in model.graph.input if value.name not in found]
    listed += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in found.values()]
    for field, items in ((model.graph.initializer, kept), (model.graph.input, listed)):
        copies = [type(item).FromString(item.SerializeToString()) for item in items]
        del field[:]
        field.extend(copies)
    return found


def _free_batch(model: onnx.ModelProto, single: onnx.ModelProto) -> None:
    """Lets Reshape nodes that were exported for a batch of 1 keep the first axis as it is, whatever its size.

    Where both shapes begin with 1 that is the same; with a larger batch, shapes that do not agree are still refused.

    Args:
        model: changed in place.
        single: the same with a batch of 1.
    """
    shapes = _shapes(single, "")
    targets = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in model.graph.node:
        target = targets.get(node.input[1]) if node.op_type == "Reshape" and not node.domain else None
        sizes = _sizes(shapes.get(node.input[0])) if node.input else None
        if target is None or not sizes or sizes[0] != 1 or not target.size or target[0] != 1:
            continue
        if any(a.name == "allowzero" and a.i for a in node.attribute):
            continue
        made = numpy_helper.from_array(
            np.concatenate([[0], target[1:]]).astype(np.int64), f"{node.name}/kept"
        )
        model.graph.initializer.append(made)
        node.input[1] = made.name


def _plain(node: onnx.NodeProto) -> Operation:
    found = operation_of(node)
    if node.domain != change.DOMAIN:
        return found
    return Operation(
        f"{change.DOMAIN}.{found.operator}", found.name, found.inputs, found.outputs, found.attributes
    )


def _inlined(graph: Graph, functions: Collection[str]) -> onnx.ModelProto:
    stay = [(f.domain, f.name) for f in graph.model.functions if f.name in functions]
    if len(stay) == len(graph.model.functions):
        model = change.copy(graph.model)
    else:
        model = inliner.inline_selected_functions(graph.model, stay, exclude=True)
    taken = {node.name for node in model.graph.node}
    for node in model.graph.node:
        if not node.name:
            node.name = next(
                n for i in range(len(taken) + 2) if (n := f"{node.output[0]}{'.' * i}") not in taken
            )
            taken.add(node.name)
    return model


def _shapes(model: onnx.ModelProto, where: str) -> dict[str, onnx.ValueInfoProto]:
    try:
        found = infer(model, strict=False).graph
    except onnx.shape_inference.InferenceError as error:
        raise GraphError(f"shapes do not agree: {str(error).strip()}", where=where) from error
    return {value.name: value for value in (*found.input, *found.value_info, *found.output)}


def _sizes(value: onnx.ValueInfoProto | None) -> tuple[int, ...] | None:
    """The shape where it is wholly known."""
    if value is None or not value.type.tensor_type.HasField("shape"):
        return None
    dims = value.type.tensor_type.shape.dim
    return tuple(d.dim_value for d in dims) if all(d.HasField("dim_value") for d in dims) else None


def _fold(
    model: onnx.ModelProto,
    shapes: Mapping[str, onnx.ValueInfoProto],
    large: dict[str, onnx.TensorProto],
    where: str,
) -> bool:
    """Computes, in place, nodes that hang on no input; whether there were any."""
    graph = model.graph
    known = {t.name for t in graph.initializer} | {"", *large}
    kept, folded = [], []
    for node in graph.node:
        if _shape_of(node, shapes) is not None:
            made = numpy_helper.from_array(np.array(_shape_of(node, shapes), np.int64), node.output[0])
            graph.initializer.append(made)
            known.add(node.output[0])
        elif node.op_type not in _STAY and all(name in known for name in node.input) and not _has_graph(node):
            folded.append(node)
            known.update(node.output)
        else:
            kept.append(node)
    if len(kept) == len(graph.node):
        return False
    read = {name for node in kept for name in node.input} | {value.name for value in graph.output}
    wanted = [name for node in folded for name in node.output if name in read]
    if wanted:
        graph.initializer.extend(_computed(model, folded, wanted, large, where))
    del graph.node[:]
    graph.node.extend(kept)
    change.without_dead(model)
    return True


def _has_graph(node: onnx.NodeProto) -> bool:
    return any(a.HasField("g") or a.graphs for a in node.attribute)


def _shape_of(node: onnx.NodeProto, shapes: Mapping[str, onnx.ValueInfoProto]) -> Any:
    """What a Shape or Size node gives where its input's shape is known."""
    if node.op_type not in ("Shape", "Size") or node.domain not in ("", "ai.onnx"):
        return None
    sizes = _sizes(shapes.get(node.input[0]))
    if sizes is None:
        return None
    if node.op_type == "Size":
        return int(np.prod(sizes, dtype=np.int64))
    at = {a.name: a.i for a in node.attribute}
    return sizes[slice(at.get("start", 0), at.get("end"))]


def _computed(
    model: onnx.ModelProto,
    nodes: Sequence[onnx.NodeProto],
    wanted: Sequence[str],
    large: Mapping[str, onnx.TensorProto],
    where: str,
) -> list[onnx.TensorProto]:
    read = {name for node in nodes for name in node.input}
    part = onnx.ModelProto()
    part.CopyFrom(model)
    del part.graph.node[:], part.graph.input[:], part.graph.output[:], part.graph.value_info[:]
    part.graph.node.extend(nodes)
    part.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in wanted)
    weights = [t for t in (*model.graph.initializer, *large.values()) if t.name in read]
    del part.graph.initializer[:]
    part.graph.initializer.extend(weights)
    try:
        values = ReferenceEvaluator(part, new_ops=list(OPERATORS)).run(None, {})
    except Exception as error:  # evaluators raise what they like
        cause = error.__cause__ or error
        raise GraphError(f"what hangs on no input cannot be computed: {cause}", where=where) from error
    return [numpy_helper.from_array(np.asarray(v), name) for v, name in zip(values, wanted, strict=True)]


def _tensors(
    model: onnx.ModelProto, shapes: Mapping[str, onnx.ValueInfoProto], constants: Collection[str], where: str
) -> dict[str, TensorEntry]:
    found = {}
    for value in model.graph.input:
        if value.name not in constants:
            found[value.name] = _entry(value.name, shapes, f"{where}: input {value.name!r}")
    for node in model.graph.node:
        if node.domain in ("", "ai.onnx") and not onnx.defs.has(node.op_type):
            raise UnsupportedOperatorError(
                f"there is no standard operator {node.op_type}",
                where=f"{where}: {node_name(node)}",
                todo="export with ONNX's own operators",
            )
        for name in node.output:
            if name:
                found[name] = _entry(name, shapes, f"{where}: {node_name(node)}")
    return found


def _entry(name: str, shapes: Mapping[str, onnx.ValueInfoProto], where: str) -> TensorEntry:
    sizes = _sizes(shapes.get(name))
    kind = shapes[name].type.tensor_type.elem_type if name in shapes else 0
    if sizes is None or not kind:
        raise GraphError(
            f"shape or type of {name!r} is not known for this window",
            where=where,
            todo="networks whose inner shapes hang on values of their input cannot be lowered",
        )
    return TensorEntry(name=name, shape=sizes, dtype=numpy_name(kind))
