"""Float16 where its range allows: the typed graph is cast, and what would overflow stays in float32."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wetread.errors import GraphError, Notice
from wetread.graph import Graph
from wetread.graph.draft import Draft, Node, attributes
from wetread.graph.types import HalfPlaces, element_types, half_places
from wetread.precision.ranges import Ranges, TensorRange
from wetread.precision.report import LayerPrecision, PrecisionReport

LARGEST = 65504.0
"""Largest finite float16."""

MARGIN = 2.0
"""How much larger values may be in a case that did not calibrate."""

VANISHING = 0.01
"""Share of values other than 0 that may become 0 before a tensor stays in float32."""

SQUARES = frozenset(
    {
        "InstanceNormalization",
        "GroupNormalization",
        "LayerNormalization",
        "RMSNormalization",
        "LpNormalization",
        "ReduceSumSquare",
        "ReduceL2",
    }
)
"""Operators that add up squares of what they read."""

SUMS = frozenset({"ReduceSum", "ReduceMean", "ReduceL1", "GlobalAveragePool", "AveragePool", "CumSum"})
"""Operators that add up what they read."""

EXPONENTIALS = frozenset({"Softmax", "LogSoftmax", "ReduceLogSumExp", "ReduceLogSum"})
"""Operators that add up exponentials."""

_END = "float16 ends at 65504 and a margin of 2 is kept"

TRAINING = (
    "Trained in mixed precision (autocast, loss scaling) or fine-tuned in it for an epoch a network keeps within "
    "float16; so it does with weight decay or a norm before this layer; quantisation-aware fine-tuning bounds "
    "activations for INT8"
)


@dataclass(frozen=True)
class _Keep:
    """Why a node stays in float32; `overflow` where it would not hold its values, which is a notice."""

    reason: str
    overflow: bool = False


def to_half(graph: Graph, ranges: Ranges, *, kept: Collection[str] = ()) -> tuple[Graph, PrecisionReport]:
    """Casts a float32 network to float16 where observed ranges allow.

    A node stays in float32 where: a value that it reads or writes comes within a factor of 2 of float16's largest
    (65504); the squares (norms) or values (means, sums) that it adds up do; more than 1 % of its non-zero values
    would become 0; one of its weights does not fit; it was not observed; or its operator takes no float16. Constants
    that are only added, such as a bias, may become 0. Casts stand only where float16 and float32 meet; inputs and
    outputs of the network stay float32.

    Convolutions and matrix products add up in float32 on every device that has float16 units, so only what they
    write is judged. An average over a few voxels (AveragePool) is judged like a whole channel's: on the safe side.

    Args:
        graph: the network in float32, before or after `quantise` (nodes at quantise nodes then stay as they are).
        ranges: see `observe`, of all its tensors.
        kept: names of nodes that stay in float32 whatever their range.

    Returns:
        The float16 graph, and the report: precision of each node with the reason, and as notices the nodes whose
        values would overflow, with what can be done about it in training.

    Raises:
        GraphError: `kept` names no node.
    """
    if unknown := sorted(set(kept) - {node.name for node in graph.nodes}):
        raise GraphError(f"there is no node {unknown[0]!r} to keep in float32", where=graph.where)
    types = element_types(graph)
    places: dict[str, HalfPlaces] = {}
    layers, notices, norms = [], [], []
    for node in graph.nodes:
        place = half_places(node, graph.opset)
        if not any(types.get(name) == "float32" for name in (*node.input, *node.output)):
            first = next((types[name] for name in node.output if name in types), "")
            layers.append(LayerPrecision(node.name, node.op_type, first or "unknown", "no floating point"))
            continue
        keep = _Keep("asked for") if node.name in kept else _judge(graph, node, place, ranges)
        if keep is None and place is not None:
            places[node.name] = place
            layers.append(LayerPrecision(node.name, node.op_type, "float16", "within range"))
            continue
        keep = keep or _Keep("its operator takes no float16")
        layers.append(LayerPrecision(node.name, node.op_type, "float32", keep.reason))
        if keep.overflow and node.op_type in SQUARES | SUMS | EXPONENTIALS:
            norms.append((node.name, keep.reason))
        elif keep.overflow:
            notices.append(Notice("HALF_RANGE", f"{keep.reason}; stays in float32. {TRAINING}", node.name))
    if norms:
        text = f"{len(norms)} norms or sums would overflow in float16 and stay in float32 ({norms[0][1]}). "
        where = ", ".join(name for name, _ in norms)
        notices.append(Notice("HALF_NORMS", text + TRAINING, where))
    cast = _cast(graph, places, types)
    return cast, PrecisionReport(tuple(layers), tuple(notices))


def _judge(graph: Graph, node: Node, place: HalfPlaces | None, ranges: Ranges) -> _Keep | None:
    """Why a node stays in float32, or None."""
    if place is None:
        quantised = node.op_type in ("QuantizeLinear", "DequantizeLinear")
        return _Keep("scales are float32" if quantised else "its operator takes no float16")
    for number in sorted(place.inputs):
        weight = graph.weights.get(node.input[number])
        if weight is not None and weight.dtype == np.float32:
            reason = unfit_weight(node.input[number], weight, vanishing=not _added(node, number))
            if reason:
                return _Keep(reason, True)
    makers = {name: other.op_type for other in graph.nodes for name in other.output}
    values = [
        node.input[n] for n in sorted(place.inputs) if node.input[n] and node.input[n] not in graph.weights
    ]
    if any(makers.get(name) == "DequantizeLinear" for name in (*values, *node.input)):
        return _Keep("reads eight-bit values, whose scales are float32")
    names = [*values, *(node.output[n] for n in sorted(place.outputs) if node.output[n])]
    if missing := [name for name in names if name not in ranges]:
        return _Keep(f"{missing[0]!r} was not observed")
    for name in names:
        reason, overflow = unfit_range(name, ranges[name])
        if reason:
            return _Keep(reason, overflow)
    return _sum_unfit(node, ranges[values[0]]) if values else None


def _added(node: Node, number: int) -> bool:
    """Whether a constant is only added to what the node writes.

    One that becomes 0 is then off by at most 2^-25, which is what rounding the result to float16 may cost anyway.
    Biases before an instance norm are such: nothing trains them, and decay takes them to 1e-9.
    """
    return node.op_type == "Add" or (number == 2 and node.op_type in ("Conv", "ConvTranspose", "Gemm"))


def unfit_weight(name: str, weight: NDArray[np.float32], *, vanishing: bool = True) -> str:
    """Why a weight does not fit into float16; empty where it does.

    Args:
        name: for the reason.
        weight: its values.
        vanishing: whether values that become 0 count.
    """
    magnitudes = np.abs(weight)
    largest = float(magnitudes.max(initial=0.0))
    if largest > LARGEST:
        return f"weight {name!r} reaches {largest:.3g}, float16 ends at 65504"
    nonzero = int(np.count_nonzero(magnitudes))
    lost = int(np.count_nonzero(magnitudes <= 2.0**-25)) - (magnitudes.size - nonzero)
    if vanishing and lost > VANISHING * nonzero:
        return f"{100 * lost / nonzero:.0f} % of weight {name!r} would become 0 in float16"
    return ""


def unfit_range(name: str, found: TensorRange) -> tuple[str, bool]:
    """Why a tensor does not fit into float16 (empty where it does), and whether it is too large."""
    if found.absmax * MARGIN > LARGEST:
        return f"{name!r} reaches {found.absmax:.3g}, {_END}", True
    nonzero = found.count - found.zeros
    if nonzero and found.tiny > VANISHING * nonzero:
        return f"{100 * found.tiny / nonzero:.0f} % of {name!r} would become 0 in float16", False
    return "", False


def _sum_unfit(node: Node, found: TensorRange) -> _Keep | None:
    """Why what a node adds up does not fit, by the largest sums over a channel of a window that were seen."""
    squares = found.square_sum
    if node.op_type == "GroupNormalization":  # a group is several channels
        squares *= len(found.channel_absmax) / int(attributes(node)["num_groups"])
    if node.op_type in SQUARES and squares * MARGIN > LARGEST:
        return _Keep(f"sums of squares reach {squares:.3g}, {_END}", True)
    if node.op_type in SUMS:
        # |Σ x| ≤ √(n Σ x²), Cauchy and Schwarz
        bound = math.sqrt(found.summands * found.square_sum)
        if bound * MARGIN > LARGEST:
            return _Keep(f"sums may reach {bound:.3g}, {_END}", True)
    if node.op_type in EXPONENTIALS:
        spread = found.maximum - found.minimum
        if node.op_type != "Softmax" and spread > math.log(LARGEST):
            return _Keep(f"exponentials span {spread:.3g}, float16 holds {math.log(LARGEST):.3g}", True)
        if len(found.channel_absmax) > 2048:  # from there on adding 1 is lost to rounding in float16
            return _Keep(f"adds up {len(found.channel_absmax)} exponentials, float16 counts to 2048", True)
    return None


def _cast(graph: Graph, places: Mapping[str, HalfPlaces], types: Mapping[str, str]) -> Graph:
    """The graph with the nodes of `places` in float16 and casts where they meet others."""
    draft = Draft(graph)
    nodes = list(draft.nodes)
    half = {node.output[n] for node in nodes if node.name in places for n in places[node.name].outputs} - {""}
    casts: dict[tuple[str, str], str] = {}

    def as_type(name: str, dtype: str) -> str:
        """The value in another type, cast once for all who read it."""
        if (name, dtype) not in casts:
            label = f"{name}/{dtype}"
            if name in graph.weights:
                casts[name, dtype] = draft.add_weight(label, _narrowed(graph.weights[name]))
            else:
                casts[name, dtype] = draft.cast(name, dtype, label)
        return casts[name, dtype]

    for node in nodes:
        place = places.get(node.name)
        for number, name in enumerate(node.input):
            wanted = place is not None and number in place.inputs
            if wanted and name and name not in half and types.get(name) == "float32":
                node.input[number] = as_type(name, "float16")
            elif not wanted and name in half and node.op_type != "Cast":
                node.input[number] = as_type(name, "float32")
    _keep_interface(graph, draft, half, casts)
    return draft.graph()


def _keep_interface(
    graph: Graph, draft: Draft, half: Collection[str], casts: Mapping[tuple[str, str], str]
) -> None:
    """Gives the network's outputs their float32 type and their names back."""
    for entry in graph.outputs:
        if entry.name not in half:
            continue
        inner = draft.fresh(f"{entry.name}/half")
        known = casts.get((entry.name, "float32"))
        for node in draft.nodes:
            for number, name in enumerate(node.output):
                if name == entry.name:
                    draft.rename_output(node, number, inner)
            for number, name in enumerate(node.input):
                if name == entry.name:
                    node.input[number] = inner
        if known is None:
            cast = draft.cast(inner, "float32", f"{entry.name}/float32")
            draft.rename_output(next(n for n in draft.nodes if n.name == cast), 0, entry.name)
            continue
        for node in draft.nodes:  # a node reads the output in float32 already: one cast serves both
            for number, name in enumerate(node.output):
                if name == known:
                    draft.rename_output(node, number, entry.name)
            for number, name in enumerate(node.input):
                if name == known:
                    node.input[number] = entry.name


def _narrowed(weight: NDArray[np.float32]) -> NDArray[np.float16]:
    """A weight in float16, rounded to nearest; it fits, or it would not be asked for."""
    return weight.astype(np.float16)
