"""A check of every quantised layer: does its scale fit what was observed, does its weight read back as it was?

A wrong scale does not stop a network from running, and norms may hide it from the output. So each layer is
compared by itself, before the gate: the message names the node.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wetread.errors import GraphError
from wetread.graph import Graph
from wetread.precision import Ranges
from wetread.precision.placement import place

LARGEST_CLIPPED = 0.05
"""Share of values beyond the scale's range from which a small scale counts as wrong."""
LEAST_REACH = 0.6
"""Part of the observed range from which on clipping is the calibrator's own decision, however much it clips."""
_SLACK = 1.01
_LEVELS = {"int8": 127, "uint8": 255}


def check_scales(
    graph: Graph, lowered: Graph, ranges: Ranges, calibrator: str, released: frozenset[str] = frozenset()
) -> int:
    """Checks the scales of a graph that was quantised to INT8; returns how many there are.

    - A quantise node and the dequantise node behind it have the same scale.
    - An activation's range (127 × scale, 255 × scale in uint8) does not exceed what was observed on it; with
      ``minmax`` it is not smaller either, with others not below 0.6 of it where more than 5 % of the values would
      be clipped.
    - A weight reads back to within half a step.

    Args:
        graph: the network before it was quantised.
        lowered: after.
        ranges: what was observed on `graph`.
        calibrator: how the scales were found.
        released: nodes that were left in floating point.

    Raises:
        GraphError: names the node that reads the tensor, and both numbers.
    """
    makers = {name: node for node in lowered.nodes for name in node.output}
    placement = place(graph, released)
    shared = {name: (name,) for name in placement.tensors}
    count = 0
    for node in lowered.nodes:
        if node.op_type == "QuantizeLinear" and node.input[0] in shared:
            scale = _scale(lowered, node)
            _check_pair(lowered, node, scale)
            _check_range(lowered, node, scale, ranges, shared[node.input[0]], calibrator)
            count += 1
    nodes = {node.name: node for node in lowered.nodes}
    for site in placement.sites:
        out = site.axes[0]
        for name, weight in zip(site.node_names, site.part_weights(graph.weights[site.weight]), strict=True):
            stored = makers.get(nodes[name].input[1])
            if stored is None or stored.op_type != "DequantizeLinear":
                raise GraphError("has no quantised weight", where=f"{graph.where}: {name}")
            _check_weight(lowered, name, stored, weight, out)
            count += 1
    return count


def _scale(graph: Graph, node: Any) -> float:
    return float(np.asarray(graph.weights[node.input[1]]).reshape(-1)[0])


def _readers(graph: Graph, name: str) -> str:
    """Names of the nodes that read a tensor."""
    return ", ".join(node.name for node in graph.nodes if name in node.input) or "no node"


def _check_pair(graph: Graph, node: Any, scale: float) -> None:
    for back in graph.nodes:
        if back.op_type == "DequantizeLinear" and back.input[0] == node.output[0]:
            found = _scale(graph, back)
            if found != scale:
                raise GraphError(
                    f"{node.input[0]!r} is quantised with scale {scale:g} and read back with {found:g}, "
                    f"{found / scale:.3g} times as large",
                    where=f"{graph.where}: {back.name}, read by {_readers(graph, back.output[0])}",
                    todo="quantise again; do not edit scales by hand",
                )


def _check_range(
    graph: Graph, node: Any, scale: float, ranges: Ranges, group: tuple[str, ...], calibrator: str
) -> None:
    seen = max(ranges[name].absmax for name in group)
    reach = scale * _LEVELS[graph.weights[node.input[2]].dtype.name]
    if not seen:
        return
    clipped = _clipped(ranges, group, reach)
    too_small = (
        reach * _SLACK < seen
        if calibrator == "minmax"
        else clipped > LARGEST_CLIPPED and reach < LEAST_REACH * seen
    )
    if reach <= seen * _SLACK and not too_small:
        return
    end = next((b.output[0] for b in graph.nodes if node.output[0] in b.input), node.output[0])
    raise GraphError(
        f"the scale {scale:g} of {node.input[0]!r} reaches to {reach:g}, the values observed to {seen:g} "
        f"({reach / seen:.3g} times; {100 * clipped:.1f} % would be clipped)",
        where=f"{graph.where}: {node.name}, read by {_readers(graph, end)}",
        todo="calibrate again; the scale does not fit the ranges",
    )


def _clipped(ranges: Ranges, group: tuple[str, ...], reach: float) -> float:
    """Largest share of a tensor's values, zeros left out, that lie beyond the reach."""
    worst = 0.0
    for name in group:
        histogram = ranges[name].histogram
        if histogram is None or not histogram.counts.sum():
            continue
        first = min(int(np.ceil(reach / histogram.width)), len(histogram.counts))
        worst = max(worst, float(histogram.counts[first:].sum() / histogram.counts.sum()))
    return worst


def _check_weight(graph: Graph, name: str, stored: Any, weight: NDArray[Any], axis: int) -> None:
    """Compares a stored weight, read back, with the original: rounding leaves at most half a step."""
    values = graph.weights[stored.input[0]].astype(np.float64)
    scale = np.asarray(graph.weights[stored.input[1]], np.float64)
    shape = [1] * values.ndim
    shape[axis] = -1
    step = scale.reshape(shape)
    off = np.abs(values * step - weight) / step
    if off.max() > 0.5 + 1e-3:
        channel = int(np.argmax(off.max(axis=tuple(a for a in range(off.ndim) if a != axis))))
        raise GraphError(
            f"the weight of output channel {channel} is off by {off.max():.3g} steps of its scale "
            f"{scale.reshape(-1)[channel]:g} when read back, rounding explains 0.5",
            where=f"{graph.where}: {name}",
            todo="quantise again; the weight's scale is wrong",
        )
