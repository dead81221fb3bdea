"""Graphs made from graphs: further outputs, fewer outputs, fixed shapes, functions inlined."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx
from onnx import inliner, shape_inference

from wetread.errors import GraphError
from wetread.graph.shapes import infer

DOMAIN = "wetread"
"""Domain of functions whose body is their definition in standard operators; they stay nodes of a graph."""


def inline(model: onnx.ModelProto, where: str, keep_own: bool) -> onnx.ModelProto:
    """A copy without functions; with `keep_own` those of the domain ``wetread`` stay.

    Raises:
        GraphError: a function cannot be inlined.
    """
    own = [(f.domain, f.name) for f in model.functions if f.domain == DOMAIN]
    try:
        if keep_own and own:
            if len(own) == len(model.functions):
                return model
            return inliner.inline_selected_functions(model, own, exclude=True)
        return inliner.inline_local_functions(model)
    except (RuntimeError, ValueError) as error:
        raise GraphError(f"the network's functions cannot be inlined: {error}", where=where) from error


def copy(model: onnx.ModelProto) -> onnx.ModelProto:
    """A deep copy."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    return made


def with_outputs(model: onnx.ModelProto, names: Sequence[str], where: str) -> onnx.ModelProto:
    """A copy that returns further values after its own outputs; see `Graph.with_outputs`."""
    there = {value.name for value in model.graph.output}
    extra = [name for name in dict.fromkeys(names) if name not in there]
    if not extra:
        return model
    found = {value.name: value for value in _typed(model, where).graph.value_info}
    found |= {value.name: value for value in model.graph.input}
    written = {name for node in model.graph.node for name in node.output} | {
        value.name for value in model.graph.input
    }
    made = copy(model)
    for name in extra:
        if name not in written:
            raise GraphError(f"no node writes {name!r}", where=where)
        if name not in found or not found[name].type.tensor_type.HasField("shape"):
            raise GraphError(f"type or shape of {name!r} cannot be inferred", where=where)
        made.graph.output.add().CopyFrom(found[name])
    return made


def _typed(model: onnx.ModelProto, where: str) -> onnx.ModelProto:
    try:
        return infer(model)
    except shape_inference.InferenceError as error:
        raise GraphError(f"types or shapes do not agree: {str(error).strip()}", where=where) from error


def cut(model: onnx.ModelProto, outputs: Sequence[str], where: str) -> onnx.ModelProto:
    """A copy with these outputs only, and the nodes and weights that they need; see `Graph.cut`."""
    if not outputs:
        raise GraphError("a network needs one output at least", where=where)
    made = copy(with_outputs(model, outputs, where))
    kept = {value.name: value for value in made.graph.output}
    order = [
        onnx.ValueInfoProto.FromString(kept[name].SerializeToString()) for name in dict.fromkeys(outputs)
    ]
    del made.graph.output[:]
    made.graph.output.extend(order)
    return without_dead(made)


def without_dead(model: onnx.ModelProto) -> onnx.ModelProto:
    """Removes, in place, nodes, weights, functions and notes of types that no output needs."""
    graph = model.graph
    needed = {value.name for value in graph.output}
    alive: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if needed.intersection(name for name in node.output if name):
            alive.append(onnx.NodeProto.FromString(node.SerializeToString()))
            needed.update(name for name in node.input if name)
            needed.update(_captured(node))
    del graph.node[:]
    graph.node.extend(reversed(alive))
    weights = {tensor.name for tensor in graph.initializer}
    _keep(graph.initializer, needed)
    _keep(graph.value_info, needed)
    listed = [value for value in graph.input if value.name in needed or value.name not in weights]
    if len(listed) != len(graph.input):
        _keep(graph.input, {value.name for value in listed})
    called = {(node.domain, node.op_type) for node in graph.node}
    for function in reversed(model.functions):
        if (function.domain, function.name) in called:
            called |= {(node.domain, node.op_type) for node in function.node}
    for i in reversed(range(len(model.functions))):
        if (model.functions[i].domain, model.functions[i].name) not in called:
            del model.functions[i]
    return model


def _captured(node: onnx.NodeProto) -> set[str]:
    """Values that control flow inside a node reads from around it."""
    graphs = [a.g for a in node.attribute if a.HasField("g")]
    graphs += [g for a in node.attribute for g in a.graphs]
    return {
        name for g in graphs for inner in g.node for name in (*inner.input, *_captured(inner)) if name
    } | {value.name for g in graphs for value in g.output}


def _keep(items: object, names: Collection[str]) -> None:
    for i in reversed(range(len(items))):  # type: ignore[arg-type]
        if items[i].name not in names:  # type: ignore[index]
            del items[i]  # type: ignore[attr-defined]


def fixed(
    model: onnx.ModelProto, names: Collection[str], window: Sequence[int], batch: int | None, where: str
) -> onnx.ModelProto:
    """A copy whose inputs have this spatial shape; see `Graph.fixed`."""
    made = copy(model)
    for value in made.graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name in names:
            if len(dims) != len(window) + 2:
                raise GraphError(
                    f"has {len(dims)} axes, expected {len(window) + 2}", where=f"{where}: {value.name}"
                )
            for dim, size in zip(dims[2:], window, strict=True):
                dim.dim_value = size
            if batch is not None:
                dims[0].dim_value = batch
    for value in made.graph.output:
        value.type.tensor_type.ClearField("shape")
    del made.graph.value_info[:]
    try:
        found = infer(made)
    except shape_inference.InferenceError as error:
        raise GraphError(
            f"the network does not take windows of {tuple(window)}: {str(error).strip()}", where=where
        ) from error
    for mine, typed, old in zip(made.graph.output, found.graph.output, model.graph.output, strict=True):
        mine.CopyFrom(typed if typed.type.tensor_type.HasField("shape") else _free(old))
    return made


def _free(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    """A copy without sizes, for outputs whose shape inference does not tell."""
    made: onnx.ValueInfoProto = onnx.ValueInfoProto.FromString(value.SerializeToString())
    for dim in made.type.tensor_type.shape.dim:
        dim.Clear()
    return made
