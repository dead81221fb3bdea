"""Explicit quantisation: QuantizeLinear and DequantizeLinear nodes where a runtime shall compute in eight bits."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wetread.errors import GraphError, Notice
from wetread.graph import Graph
from wetread.graph.draft import Draft, Node, attributes
from wetread.precision.calibrate import Calibrator, threshold
from wetread.precision.placement import Placement, Site, place
from wetread.precision.ranges import Ranges
from wetread.precision.report import LayerPrecision, PrecisionReport

Kind = Literal["int8", "float8"]


@dataclass(frozen=True)
class _Format:
    """An eight-bit type: its largest value, and the operators' version that can quantise to it."""

    largest: float
    opset: int

    def rounded(self, values: NDArray[Any]) -> NDArray[Any]:
        """Values, already divided by their scale, in the type."""
        if self.largest == 255:
            return np.asarray(np.clip(np.rint(values), 0, 255), np.uint8)
        if self.largest == 127:
            return np.asarray(np.clip(np.rint(values), -127, 127), np.int8)
        import ml_dtypes  # a dependency of onnx

        return np.asarray(np.clip(values, -448, 448).astype(ml_dtypes.float8_e4m3fn))


_LEAST = 1e-30
"""Magnitudes up to this count as zero: the inverse of their scale would not be finite."""

_FORMATS: dict[str, _Format] = {"int8": _Format(127.0, 13), "float8": _Format(448.0, 19)}
_UNSIGNED = _Format(255.0, 13)

NEVER_NEGATIVE = frozenset({"Relu", "Sigmoid", "HardSigmoid", "Softmax", "Abs", "Exp", "Sqrt"})
"""Operators whose values are 0 or more, whatever they read."""


def quantise(
    graph: Graph,
    ranges: Ranges,
    *,
    kind: Kind = "int8",
    calibrator: Calibrator = "entropy",
    released: Collection[str] = (),
    unsigned: bool = False,
) -> tuple[Graph, PrecisionReport]:
    """Puts quantise nodes around convolutions and matrix products.

    Weights are stored in eight bits with a scale for each output channel (largest magnitude / 127, or / 448 for
    E4M3), activations are rounded with one scale a tensor, symmetric about zero. Biases and all other nodes stay
    as they are. A node that reads a concatenation becomes one node for each of its parts, and their sum.

    Args:
        graph: the network in float32.
        ranges: see `observe`; holds `quantised_tensors(graph)`.
        kind: ``int8``, or ``float8`` (E4M3), whose range is always the observed one: a float loses no digits to a
            wide range.
        calibrator: how a scale follows from the range.
        released: names of nodes that stay as they are.
        unsigned: what a ReLU or the like made, and no transposed convolution reads, becomes uint8 with zero point
            0: 256 levels for its values instead of 128. OpenVINO and ONNX Runtime take that, TensorRT does not.

    Returns:
        The quantised graph, whose other nodes keep their names, and the report.

    Raises:
        GraphError: a tensor was not observed, a weight is not finite, `released` names no such node, or the
            network's operators cannot be brought to a version that can quantise (13; 19 for E4M3).
    """
    if unknown := sorted(set(released) - {node.name for node in graph.nodes}):
        raise GraphError(f"there is no node {unknown[0]!r} to release", where=graph.where)
    form = _FORMATS[kind]
    placement = place(graph, released)
    forms = dict.fromkeys(placement.tensors, form)
    if unsigned and kind == "int8":
        forms |= dict.fromkeys(never_negative(graph, placement), _UNSIGNED)
    scales, notices = _scales(graph, ranges, forms, calibrator if kind == "int8" else "minmax")
    draft = Draft(graph)
    draft.raise_opset(form.opset)
    rounded = {name: _activation(draft, name, scale, forms[name]) for name, scale in scales.items()}
    nodes = {node.name: node for node in draft.nodes}
    for name in placement.moving:
        nodes[name].input[0] = rounded.get(nodes[name].input[0], nodes[name].input[0])
    stored: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for site in placement.sites:
        key = site.weight, site.sizes
        if key not in stored:
            stored[key] = [
                _weight(draft, site, (number, weight), form)
                for number, weight in enumerate(site.part_weights(draft.weights[site.weight]), start=1)
            ]
        parts = [rounded.get(part, part) for part in site.parts]
        _rewire(draft, site, nodes[site.name], list(zip(parts, stored[key], strict=True)))
    layers = _layers(graph, placement, (kind, released), scales)
    return draft.graph(), PrecisionReport(layers, tuple(notices), scales)


def _rewire(draft: Draft, site: Site, node: Node, pairs: Sequence[tuple[str, str]]) -> None:
    """Lets a node read (activation, weight); of several pairs, one node each reads one, and they are summed."""
    node.input[0], node.input[1] = pairs[0]
    if len(pairs) == 1:
        return
    output, settings = node.output[0], dict(attributes(node))
    total = draft.fresh(f"{node.name}/part1")
    draft.rename_output(node, 0, total)
    for name, pair in zip(site.node_names[1:], pairs[1:], strict=True):
        part = draft.add(node.op_type, pair, name, **settings)
        total = draft.add("Add", [total, part], f"{name}/sum")
    draft.rename_output(draft.nodes[-1], 0, output)


def never_negative(graph: Graph, placement: Placement) -> tuple[str, ...]:
    """Tensors that hold no negative value by construction, and that no transposed convolution reads.

    OpenVINO runs transposed convolutions in eight bits on signed activations only.
    """
    makers = {name: node.op_type for node in graph.nodes for name in node.output}
    signed = {
        placement.sources[part]
        for site in placement.sites
        for part in site.parts
        if site.operator == "ConvTranspose"
    }
    return tuple(
        name for name in placement.tensors if makers.get(name) in NEVER_NEGATIVE and name not in signed
    )


def _scales(
    graph: Graph, ranges: Ranges, forms: Mapping[str, _Format], calibrator: Calibrator
) -> tuple[dict[str, float], list[Notice]]:
    """Scale of each tensor that is quantised."""
    scales: dict[str, float] = {}
    notices: list[Notice] = []
    for name, form in forms.items():
        if name not in ranges:
            raise GraphError(
                f"the range of tensor {name!r} was not observed",
                where=graph.where,
                todo="observe the graph that is quantised, with quantised_tensors(graph)",
            )
        largest = threshold(ranges[name], calibrator)
        if largest == 0.0:
            text = f"held nothing but zeros in {ranges.windows} windows; its scale is a guess (1)"
            notices.append(Notice("RANGE_EMPTY", text, name))
        scales[name] = float(np.float32(largest / form.largest)) if largest > _LEAST else 1.0
    return scales, notices


def _activation(draft: Draft, name: str, scale: float, form: _Format) -> str:
    """Adds the pair of nodes that rounds a tensor; the name of the rounded one."""
    step = draft.add_weight(f"{name}/scale", np.array(scale, np.float32))
    zero = draft.add_weight(f"{name}/zero", form.rounded(np.zeros(())))
    quantised = draft.add("QuantizeLinear", [name, step, zero], f"{name}/quantised")
    return draft.add("DequantizeLinear", [quantised, step, zero], f"{name}/rounded")


def _weight(draft: Draft, site: Site, part: tuple[int, NDArray[Any]], form: _Format) -> str:
    """Stores the weight of a part (its number, its values) in eight bits; the name of what stands for it."""
    number, weight = part
    name = site.weight if number == 1 else f"{site.weight}/part{number}"
    out = site.axes[0]
    if not np.isfinite(weight).all():
        raise GraphError(f"weight {site.weight!r} holds NaN or infinite values", where=site.name)
    scale = weight_scales(weight, out, form.largest)
    shape = [1] * weight.ndim
    shape[out] = -1
    stored = form.rounded(weight.astype(np.float64) / scale.reshape(shape))
    inputs = [
        draft.add_weight(f"{name}/stored", stored),
        draft.add_weight(f"{name}/scale", scale),
        draft.add_weight(f"{name}/zero", form.rounded(np.zeros(len(scale)))),
    ]
    return draft.add("DequantizeLinear", inputs, f"{name}/rounded", axis=out)


def weight_scales(weight: NDArray[Any], axis: int, largest: float = 127.0) -> NDArray[np.float32]:
    """Scale of each slice along an axis: its largest magnitude / `largest`; 1 where it is all zeros.

    A transposed convolution with groups has its output channels along axis 1 once for each group; the groups
    share a scale, as the standard operator wants it.
    """
    absmax = np.abs(weight).max(axis=tuple(a for a in range(weight.ndim) if a != axis))
    scale = (absmax.astype(np.float64) / largest).astype(np.float32)
    return np.where(absmax > _LEAST, scale, np.float32(1))


def _layers(
    graph: Graph, placement: Placement, how: tuple[Kind, Collection[str]], scales: Mapping[str, float]
) -> tuple[LayerPrecision, ...]:
    kind, released = how
    chosen = {site.name: site for site in placement.sites}
    layers = []
    for node in graph.nodes:
        if node.name in chosen:
            parts = chosen[node.name].parts
            reason = "quantised" if len(parts) == 1 else f"quantised in {len(parts)} parts"
            scale = scales[placement.sources[parts[0]]]
            layers.append(LayerPrecision(node.name, node.op_type, kind, reason, scale))
        elif node.name in placement.moving:
            layers.append(LayerPrecision(node.name, node.op_type, kind, "moves eight-bit values"))
        else:
            reason = placement.declined.get(node.name, "no product with a weight")
            reason = "released" if node.name in released else reason
            layers.append(LayerPrecision(node.name, node.op_type, "float32", reason))
    return tuple(layers)
