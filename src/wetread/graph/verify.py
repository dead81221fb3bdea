"""The verifier that runs between stages: what holds of every graph that an engine gets to see."""

from __future__ import annotations

import re
from collections.abc import Collection

import numpy as np
import onnx
from onnx import numpy_helper, shape_inference

from wetread.errors import GraphError, UnsupportedOperatorError
from wetread.graph.graph import Graph, node_name
from wetread.graph.shapes import infer

OLDEST_OPSET = 11
_CONTROL = {"If", "Loop", "Scan", "SequenceMap"}
_RANDOM = {
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Bernoulli",
    "Multinomial",
}
_BY_CHANNEL = {"Conv", "ConvTranspose", "BatchNormalization", "InstanceNormalization"}
_DOMAINS = {"", "ai.onnx"}


def verify(graph: Graph, known: Collection[str] | None = None, engine: str = "this engine") -> None:
    """Checks that a graph is whole and typed.

    Operators of the standard domain only; every value is written once and before it is read; no control flow,
    no random numbers, no training mode; weights are finite (single numbers may be infinite: masks and limits
    use them); the ONNX checker accepts every node; types and shapes follow from the inputs and agree with
    what the graph declares.

    Functions of the domain ``wetread`` are verified as what they stand for.

    Args:
        graph: the network.
        known: operators that the engine can run; None asks nothing.
        engine: name of the engine in messages.

    Raises:
        UnsupportedOperatorError: operators outside `known`, all of them named.
        GraphError: anything else; the message names the node or the weight.
    """
    graph = graph.inlined()
    if known is not None and (missing := sorted(set(graph.operators) - set(known))):
        raise UnsupportedOperatorError(
            f"{engine} does not know the operators {', '.join(missing)}",
            where=graph.where,
            todo="export with other operators, or use another engine",
        )
    _check_opset(graph)
    _check_nodes(graph)
    _check_values(graph)
    _check_weights(graph)
    _check_onnx(graph)


def _check_opset(graph: Graph) -> None:
    newest = onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= graph.opset <= newest:
        raise GraphError(
            f"the operator set is {graph.opset}, supported are {OLDEST_OPSET} to {newest}",
            where=graph.where,
            todo="export with opset_version=18, or convert with onnx.version_converter",
        )


def _check_nodes(graph: Graph) -> None:
    for node in graph.nodes:
        where = f"{graph.where}: {node_name(node)}"
        if node.domain not in _DOMAINS:
            raise UnsupportedOperatorError(
                f"operator {node.op_type} is of domain {node.domain!r}, only standard ONNX operators are taken",
                where=where,
                todo="export without custom operators",
            )
        if node.op_type in _CONTROL or any(a.HasField("g") or a.graphs for a in node.attribute):
            raise GraphError(
                "control flow: which nodes run must not depend on data",
                where=where,
                todo="export by tracing, with fixed branches",
            )
        if node.op_type in _RANDOM:
            raise GraphError("random numbers: a reading must be repeatable", where=where)
        if node.op_type == "BatchNormalization" and any(
            a.name == "training_mode" and a.i for a in node.attribute
        ):
            raise GraphError(
                "is in training mode", where=where, todo="call .eval() on the network before exporting it"
            )


def _check_values(graph: Graph) -> None:
    """Every value is written once, before it is read; outputs exist."""
    weights = [tensor.name for tensor in graph.model.graph.initializer]
    known = {entry.name for entry in graph.inputs} | set(weights)
    if len(set(weights)) != len(weights):
        raise GraphError("two weights have the same name", where=graph.where)
    for node in graph.nodes:
        where = f"{graph.where}: {node_name(node)}"
        for name in node.input:
            if name and name not in known:
                raise GraphError(f"reads {name!r}, which nothing before it writes", where=where)
        for name in node.output:
            if name and name in known:
                raise GraphError(f"writes {name!r}, which exists already", where=where)
            known.add(name)
    for entry in graph.outputs:
        if entry.name not in known:
            raise GraphError("no node writes this output", where=f"{graph.where}: {entry.name}")


def _check_weights(graph: Graph) -> None:
    tensors = [(tensor.name, tensor) for tensor in graph.model.graph.initializer]
    tensors += [(node_name(n), a.t) for n in graph.nodes for a in n.attribute if a.HasField("t")]
    for name, tensor in tensors:
        try:
            array = numpy_helper.to_array(tensor)
        except (ValueError, TypeError, KeyError) as error:
            raise GraphError(f"the weight's values do not fit its shape: {error}", where=name) from error
        if array.dtype.kind not in "fV" or array.dtype.itemsize < 2:
            continue
        with np.errstate(invalid="ignore"):
            values = array.astype(np.float64)
        bad = np.isnan(values) if array.size == 1 else ~np.isfinite(values)
        if bad.any():
            raise GraphError(
                f"{int(bad.sum())} of {array.size} weights are NaN or infinite",
                where=f"{graph.where}: {name}",
                todo="the training diverged or the checkpoint is damaged; no package is made of it",
            )


def _check_onnx(graph: Graph) -> None:
    """The ONNX checker, and strict inference of types and shapes."""
    try:
        onnx.checker.check_model(graph.model)
        inferred = infer(graph.model)
    except onnx.checker.ValidationError as error:
        found = re.search(r"Bad node spec for node\. Name: (.*?) OpType: (\S+)", str(error))
        reason = str(error).split("==> Context", 1)[0].strip()
        raise GraphError(reason, where=_place(graph, found[1] if found else "")) from error
    except shape_inference.InferenceError as error:
        text = str(error)
        found = re.search(r"\(op_type:\s*(\S+?),\s*node name:\s*(.*?)\)", text)
        reason = re.split(r"\[(?:Shape|Type)InferenceError\]", text)[-1].strip(" :\n")
        raise GraphError(
            f"types or shapes do not agree: {reason}", where=_place(graph, found[2] if found else "")
        ) from error
    except (ValueError, RuntimeError, TypeError) as error:  # garbage that the checker itself stumbles over
        raise GraphError(f"the ONNX checker fails on this network: {error}", where=graph.where) from error
    typed = {value.name for value in inferred.graph.value_info if value.type.tensor_type.elem_type}
    typed |= {entry.name for entry in (*graph.inputs, *graph.outputs)}
    for node in graph.nodes:
        for name in node.output:
            if name and name not in typed:
                raise GraphError(f"the type of {name!r} is not known", where=_place(graph, node_name(node)))

    _check_channels(graph, inferred)


def _check_channels(graph: Graph, inferred: onnx.ModelProto) -> None:
    """Channels of convolutions and norms against their weights, which ONNX's inference does not compare."""
    shapes: dict[str, list[int]] = {
        tensor.name: list(tensor.dims) for tensor in graph.model.graph.initializer
    }
    for value in (*inferred.graph.input, *inferred.graph.value_info):
        shapes.setdefault(value.name, [dim.dim_value for dim in value.type.tensor_type.shape.dim])
    for node in graph.nodes:
        if node.op_type not in _BY_CHANNEL or not all(shapes.get(name) for name in node.input[:2]):
            continue
        x, w = shapes[node.input[0]], shapes[node.input[1]]
        group = next((a.i for a in node.attribute if a.name == "group"), 1)
        if node.op_type.startswith("Conv") and len(w) < 3:
            raise GraphError(
                f"the weights {node.input[1]!r} have {len(w)} axes", where=_place(graph, node_name(node))
            )
        expected = w[1] * group if node.op_type == "Conv" else w[0]
        if len(x) > 1 and x[1] and expected and x[1] != expected:
            raise GraphError(
                f"{node.input[0]!r} has {x[1]} channels, the weights {node.input[1]!r} are for {expected}",
                where=_place(graph, node_name(node)),
            )
        out = {"Conv": w[0], "ConvTranspose": w[1] * group if len(w) > 1 else 0}.get(node.op_type, w[0])
        for name in node.input[2:]:
            if (b := shapes.get(name)) and out and b[0] != out:
                raise GraphError(
                    f"{name!r} has {b[0]} values, expected {out}", where=_place(graph, node_name(node))
                )


def _place(graph: Graph, node: str) -> str:
    return f"{graph.where}: {node}" if node else graph.where
