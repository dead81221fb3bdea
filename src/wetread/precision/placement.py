"""Where quantise nodes go: which nodes compute in eight bits, and which tensors are rounded for them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wetread.graph import Graph
from wetread.graph.draft import Node, attributes
from wetread.graph.tensors import sizes_along

MOVING = frozenset({"MaxPool", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"})
"""Operators that move values without changing them: eight-bit values pass through them."""

MOST_PARTS = 4
"""Most tensors of a concatenation that a site reads one by one."""


@dataclass(frozen=True)
class Site:
    """A node that can compute in eight bits.

    Attributes:
        name, operator: of the node.
        weight: initialiser that it reads.
        axes: axes of the weight's output and input channels.
        parts: the tensors that it reads. One, or those that a concatenation joins for it.
        sizes: input channels of each part.
    """

    name: str
    operator: str
    weight: str
    axes: tuple[int, int]
    parts: tuple[str, ...]
    sizes: tuple[int, ...]

    @property
    def node_names(self) -> tuple[str, ...]:
        """Names of the nodes that read the parts in a quantised graph; the first keeps the site's own."""
        return (self.name, *(f"{self.name}/part{n}" for n in range(2, len(self.parts) + 1)))

    def part_weights(self, weight: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        """The weight, cut along its input channels: one piece for each part."""
        if len(self.parts) == 1:
            return (weight,)
        ends = np.cumsum(self.sizes)[:-1].tolist()
        return tuple(np.split(weight, ends, axis=self.axes[1]))


@dataclass(frozen=True)
class Placement:
    """Which tensors are rounded for which nodes.

    Attributes:
        sites: nodes that compute in eight bits.
        tensors: tensors that are rounded, in the graph's order; each once, for all who read it.
        sources: for each part of a site, the tensor whose rounded values it holds.
        moving: names of the nodes between these tensors and the sites, which carry eight-bit values.
        declined: names of nodes that cannot be quantised, and why.
    """

    sites: tuple[Site, ...]
    tensors: tuple[str, ...]
    sources: Mapping[str, str]
    moving: frozenset[str]
    declined: Mapping[str, str]


def quantisable(graph: Graph) -> tuple[str, ...]:
    """Names of the nodes that `quantise` would quantise: what a rollback releases."""
    return tuple(site.name for site in place(graph).sites)


def quantised_tensors(graph: Graph, released: Collection[str] = ()) -> tuple[str, ...]:
    """Names of the tensors whose ranges `quantise` needs."""
    return place(graph, released).tensors


def place(graph: Graph, released: Collection[str] = ()) -> Placement:
    """Decides where quantise nodes go.

    A site reads an activation and a constant float32 weight. Its activation is traced back through nodes that
    only move values to the tensor that they move; that is rounded, once for all who read it, so that pools work
    on eight-bit values too. A node outside reads the tensor unrounded.

    A site behind a concatenation along the channels reads its parts one by one, with its weight cut likewise:
    W · [a, b] = Wₐ · a + W_b · b. Each part then has its own scale, nothing is copied together, and a fault of
    OpenVINO is kept away from: its eight-bit convolutions give wrong values where a concatenation feeds them
    (2026.4; 20 to 50 % off, seen in tests/precision/test_openvino.py). Where that cannot be done the site stays
    as it is.

    Args:
        graph: the network.
        released: names of nodes that stay as they are.
    """
    makers = {name: node for node in graph.nodes for name in node.output if name}
    found: list[Site] = []
    declined: dict[str, str] = {}
    moving: set[str] = set()
    sources: dict[str, str] = {}
    for site in _sites(graph, makers):
        if isinstance(site, tuple):
            declined[site[0]] = site[1]
            continue
        traced = {part: _traced(part, makers, graph.weights) for part in site.parts}
        if any(_wrong_after_concat(at, makers) for at, _ in traced.values()):
            declined[site.name] = "reads a concatenation in a way that OpenVINO quantises wrongly"
        elif site.name not in released:
            found.append(site)
            for part, (at, path) in traced.items():
                sources[part] = at
                moving.update(path)
    order = {name: number for number, name in enumerate((*(e.name for e in graph.inputs), *makers))}
    tensors = tuple(sorted(set(sources.values()), key=order.__getitem__))
    return Placement(tuple(found), tensors, sources, frozenset(moving), declined)


def _sites(graph: Graph, makers: Mapping[str, Node]) -> Iterable[Site | tuple[str, str]]:
    """Sites in the graph's order; for what looks like one and is none, its name and the reason."""
    channels: dict[int, dict[str, int]] = {}
    for node in graph.nodes:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            continue
        weight = graph.weights.get(node.input[1])
        if weight is None or node.input[0] in graph.weights:
            yield node.name, "no constant weight"
            continue
        if weight.dtype != np.float32 or weight.ndim < 2:
            yield node.name, f"weight of type {weight.dtype} and {weight.ndim} axes"
            continue
        if node.op_type == "Gemm" and attributes(node).get("transA", 0):
            yield node.name, "reads its activation transposed"
            continue
        axes = weight_axes(node, weight.ndim)
        maker = makers.get(node.input[0])
        if maker is None or maker.op_type != "Concat":
            size = weight.shape[axes[1]]
            yield Site(node.name, node.op_type, node.input[1], axes, (node.input[0],), (size,))
            continue
        along = 1 if node.op_type in ("Conv", "ConvTranspose") else -1
        if along not in channels:
            channels[along] = sizes_along(graph, along)
        parts, sizes, reason = _parts(node, maker, makers, channels[along], weight.shape[axes[1]])
        if reason or any(part in graph.weights for part in parts):
            yield node.name, f"reads a concatenation that cannot be taken apart: {reason or 'of a constant'}"
        else:
            yield Site(node.name, node.op_type, node.input[1], axes, parts, sizes)


def weight_axes(node: Node, rank: int) -> tuple[int, int]:
    """Axes of output and input channels: Conv (out, in, …), ConvTranspose (in, out, …), MatMul (…, in, out)."""
    if node.op_type == "MatMul":
        return rank - 1, rank - 2
    if node.op_type == "Conv" or (node.op_type == "Gemm" and attributes(node).get("transB", 0)):
        return 0, 1
    return 1, 0


def _parts(
    node: Node, concat: Node, makers: Mapping[str, Node], channels: Mapping[str, int], expected: int
) -> tuple[tuple[str, ...], tuple[int, ...], str]:
    """The tensors of a concatenation, their channels, and why it cannot be taken apart (empty if it can)."""
    names = _joined(concat, makers)
    if len(names) > MOST_PARTS:
        return names, (), f"of {len(names)} tensors"
    channel_axes = {"Conv": (1,), "ConvTranspose": (1,), "Gemm": (1, -1)}.get(node.op_type, (-1,))
    if _axis(concat) not in channel_axes:
        return names, (), "along another axis than the channels"
    if attributes(node).get("group", 1) != 1:
        return names, (), "by a convolution with groups"
    sizes = tuple(channels.get(name, 0) for name in names)
    if 0 in sizes or sum(sizes) != expected:
        return names, (), "of unknown channels"
    return names, sizes, ""


def _joined(concat: Node, makers: Mapping[str, Node]) -> tuple[str, ...]:
    """The tensors that a concatenation joins, those of concatenations inside it along the same axis too."""
    names: list[str] = []
    for name in concat.input:
        maker = makers.get(name)
        if maker is not None and maker.op_type == "Concat" and _axis(maker) == _axis(concat):
            names.extend(_joined(maker, makers))
        else:
            names.append(name)
    return tuple(names)


def _axis(concat: Node) -> int:
    """The axis that it joins along; volumes have five, so −4 is the channels' 1."""
    axis = int(attributes(concat)["axis"])
    return 1 if axis == -4 else axis


def _traced(
    name: str, makers: Mapping[str, Node], weights: Mapping[str, NDArray[Any]]
) -> tuple[str, tuple[str, ...]]:
    """The tensor that `name` is moved from, and the names of the nodes between.

    It ends behind a concatenation: a rounding before that would bring back the fault that `place` speaks of.
    """
    path: list[str] = []
    at = name
    while at in makers and makers[at].op_type in MOVING and len(makers[at].output) == 1:
        path.append(makers[at].name)
        at = makers[at].input[0]
    if at in weights or (at in makers and makers[at].op_type == "Concat"):
        return name, ()
    return at, tuple(path)


def _wrong_after_concat(name: str, makers: Mapping[str, Node]) -> bool:
    """Whether a tensor is a concatenation or its ReLU: OpenVINO moves a rounding after these in front of them."""
    maker = makers.get(name)
    if maker is not None and maker.op_type == "Relu":
        maker = makers.get(maker.input[0])
    return maker is not None and maker.op_type == "Concat"
