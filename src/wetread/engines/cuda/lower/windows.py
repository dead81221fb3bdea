"""Attention in shifted windows of a map, recognised from its first node to its last.

    Pad?, Roll*, WindowPartition, q k v of one projection, attention, projection, WindowReverse, Roll*, Slice*

becomes two linear layers on the whole map and one attention step between them that addresses windows in it. What
is padded is zero before the first projection, so its queries, keys and values are that projection's bias.
Where a node does not fit, its own handler takes it, and the windows are moved as the graph says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from wetread.engines.cuda.lower import simple  # noqa: F401 - its handlers are the ones that these stand before
from wetread.engines.cuda.lower.linear import Left, Tail, left_of, linear, rounded, sole_reader, tail_of
from wetread.engines.cuda.lower.lowering import HANDLERS, Handler, Lowering, handles
from wetread.engines.cuda.lower.transformer import Core
from wetread.engines.cuda.program import Shape, row_major
from wetread.graph.plain import Operation

_ATTENTION = ("wetread.Attention", "wetread.WindowAttention", "wetread.ShiftedWindowAttention")


@dataclass
class Site:
    """Attention in windows, as nodes.

    Attributes:
        x: value of the map (N, D, H, W, C).
        nodes: all of them in order.
        size, padded, shift: along D, H, W.
        projection: product to q, k and v, and its bias.
        attention: the call.
        back: product after it, and its bias.
        heads, features: of attention.
        last: value that the site gives.
    """

    x: str
    size: tuple[int, ...]
    padded: tuple[int, ...]
    shift: tuple[int, ...]
    projection: tuple[Operation, Tail]
    attention: Operation
    back: tuple[Operation, Tail]
    heads: int
    features: int
    last: str
    nodes: list[Operation] = field(default_factory=list)


class _Walk:
    """Follows a value from reader to reader, each its only one."""

    def __init__(self, low: Lowering, node: Operation) -> None:
        self.low, self.node, self.nodes = low, node, [node]

    @property
    def value(self) -> str:
        return self.node.outputs[0]

    def next(self, *operators: str) -> Operation | None:
        """Steps on to the only reader if it is one of these; None, and no step, where it is not."""
        found = sole_reader(self.low, self.value)
        if found is None or found.operator not in operators or found.inputs[0] != self.value:
            return None
        self.node = found
        self.nodes.append(found)
        return found

    def product(self) -> tuple[Operation, Tail] | None:
        """Steps over a product by a constant matrix and its bias."""
        node = self.next("MatMul")
        weight = None if node is None else self.low.constant(node.inputs[1])
        if node is None or weight is None or weight.ndim != 2:
            return None
        tail = tail_of(self.low, self.value, residual=False)
        if tail.activation is not None or tail.dtype is not None:
            return None
        self.nodes += tail.nodes
        self.node = tail.nodes[-1] if tail.nodes else node
        return node, tail


def find(low: Lowering, node: Operation) -> Site | None:
    """The site that begins with a node; None where it is another pattern."""
    x = node.inputs[0]
    if len(low.shape(x)) != 5 or not low.holds(x):
        return None
    walk, size = _Walk(low, node), low.shape(x)[1:4]
    padded, shift = size, [0, 0, 0]
    if node.operator == "Pad":
        ends = _ends(low, node)
        if ends is None:
            return None
        padded = tuple(s + e for s, e in zip(size, ends, strict=True))
    elif node.operator == "wetread.Roll" and not _shifted(low, node, shift, 1):
        return None
    while node.operator != "wetread.WindowPartition":
        found = walk.next("wetread.Roll", "wetread.WindowPartition")
        if found is None or (found.operator == "wetread.Roll" and not _shifted(low, found, shift, 1)):
            return None
        node = found
    split = low.numbers(node.inputs[1])
    if split is None or low.shape(node.outputs[0])[1:] != (split[2] * split[4] * split[6], split[7]):
        return None
    window = split[2], split[4], split[6]
    site = _inner(low, walk, x)
    if site is None:
        return None
    site = replace(
        site, size=window, padded=padded, shift=tuple(s % p for s, p in zip(shift, padded, strict=True))
    )
    return _closed(low, walk, site)


def _inner(low: Lowering, walk: _Walk, x: str) -> Site | None:
    """From the windows' tokens through attention to tokens again."""
    projection = walk.product()
    split = walk.next("Reshape") if projection else None
    turned = walk.next("Transpose") if split else None
    if projection is None or turned is None or list(turned.attributes["perm"]) != [2, 0, 3, 1, 4]:
        return None
    shape = low.shape(turned.outputs[0])
    parts = low.readers(turned.outputs[0])
    if shape[0] != 3 or len(parts) != 3 or any(p.operator != "Gather" for p in parts):
        return None
    if any(int(p.attributes.get("axis", 0)) or low.constant(p.inputs[1]) is None for p in parts):
        return None
    parts = sorted(parts, key=lambda p: int(low.scalar(p.inputs[1]) or 0) % 3)
    names = [p.outputs[0] for p in parts]
    walk.nodes += parts
    walk.node = parts[0]
    if any(sole_reader(low, name) is None for name in names):
        return None
    core = walk.next(*_ATTENTION)
    if (
        core is None
        or list(core.inputs[:3]) != names
        or [low.scalar(p.inputs[1]) for p in parts] != [0, 1, 2]
    ):
        return None
    back = walk.next("Transpose")
    if back is None or list(back.attributes["perm"]) != [0, 2, 1, 3] or walk.next("Reshape") is None:
        return None
    result = walk.product()
    if result is None:
        return None
    return Site(x, (), (), (), projection, core, result, shape[2], shape[4], "")


def _closed(low: Lowering, walk: _Walk, site: Site) -> Site | None:
    """From windows back to the map."""
    if walk.next("wetread.WindowReverse") is None:
        return None
    shift = [0, 0, 0]
    while (node := walk.next("wetread.Roll")) is not None:
        if not _shifted(low, node, shift, -1):
            return None
    if tuple(s % p for s, p in zip(shift, site.padded, strict=True)) != site.shift:
        return None
    while _crops(low, walk.value, low.shape(site.x)):  # also slices that cut nothing off
        walk.next("Slice")
    if low.shape(walk.value)[1:4] != low.shape(site.x)[1:4]:
        return None
    return replace(site, last=walk.value, nodes=walk.nodes)


def _ends(low: Lowering, node: Operation) -> list[int] | None:
    """Zeros that a Pad puts after D, H and W; None where it does anything else."""
    pads = low.numbers(node.inputs[1]) if len(node.inputs) > 1 else None
    value = low.scalar(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else 0.0
    if pads is None or len(pads) != 10 or len(node.inputs) > 3 or value != 0.0:
        return None
    if node.attributes.get("mode", "constant") != "constant" or any(pads[:6]) or pads[9] or min(pads) < 0:
        return None
    return pads[6:9]


def _shifted(low: Lowering, node: Operation, shift: list[int], sign: int) -> bool:
    """Adds a Roll to the shift; False where it is along another axis."""
    begin, axis = low.numbers(node.inputs[1]), int(node.attributes["axis"])
    if begin is None or not 1 <= axis <= 3:
        return False
    shift[axis - 1] += sign * begin[0]
    return True


def _crops(low: Lowering, value: str, wanted: Shape) -> bool:
    """Whether the only reader of a value is a Slice that cuts off the end of axes alone, down to no less than this."""
    node = sole_reader(low, value)
    if node is None or node.operator != "Slice":
        return False
    starts, axes = low.numbers(node.inputs[1]), low.numbers(node.inputs[3]) if len(node.inputs) > 3 else None
    steps = low.numbers(node.inputs[4]) if len(node.inputs) > 4 and node.inputs[4] else [1]
    if starts is None or any(starts) or axes is None or steps is None or set(steps) != {1}:
        return False
    return all(size >= least for size, least in zip(low.shape(node.outputs[0]), wanted, strict=True))


def emit(low: Lowering, site: Site) -> bool:
    """Adds the three steps of a site; False, and nothing added, where its masks are computed."""
    core = Core.of(low, site.attention)
    if core is None or (core.bias is not None and core.bias.reshape(-1, *core.bias.shape[-3:]).shape[0] != 1):
        return False
    low.done(*site.nodes)
    space, channels = low.shape(site.x)[:4], site.heads * site.features
    node, tail = site.projection
    left = left_of(low, site.x)
    dtype = low.dtype(tail.value)
    qkv = low.tensor(f"{node.name}/map", (*space, 3 * channels), dtype)
    linear(low, node, left, np.asarray(low.constant(node.inputs[1])), tail, qkv)
    shape = (*space, site.heads, site.features)
    strides = row_major((*space, 3 * channels))[:4]
    inputs = {
        role: low.view(
            qkv, f"{site.attention.name}/{role}", shape, (*strides, site.features, 1), i * channels
        )
        for i, role in enumerate(("q", "k", "v"))
    }
    inputs |= core.weights(low, site.attention.name, dtype)
    if tail.bias is not None and site.padded != space[1:]:
        inputs["fill"] = low.weight(f"{site.attention.name}/fill", tail.bias.reshape(-1), "float32")
    tokens = low.tensor(f"{site.attention.name}/map", (*space, channels), dtype)
    y = low.view(tokens, f"{site.attention.name}/heads", shape, row_major(shape))
    windows = {"size": list(site.size), "padded": list(site.padded), "shift": list(site.shift)}
    low.step("attention", site.attention, inputs, {"y": y},
             {"scale": core.scale, "windows": windows, "apart": core.apart, **rounded(low)},
             nodes=tuple(each.name for each in site.nodes))  # fmt: skip
    node, tail = site.back
    more = tail_of(low, site.last, bias=False)
    last = more.nodes[-1] if more.nodes else site.nodes[-1]
    out = low.output(last, dtype=more.dtype, strides=row_major(low.shape(last.outputs[0])))
    tail = replace(more, bias=tail.bias)
    linear(low, node, Left(tokens), np.asarray(low.constant(node.inputs[1])), tail, out)
    return True


def _first(operator: str, other: Handler) -> Handler:
    """A handler that takes whole sites, and leaves the rest to another one."""

    def handler(low: Lowering, node: Operation) -> None:
        site = find(low, node)
        if site is None or not emit(low, site):
            other(low, node)

    return handles(operator)(handler)


def roll(low: Lowering, node: Operation) -> None:
    """A cyclic shift along one axis: two copies."""
    x, axis = low.value(node.inputs[0]), int(node.attributes["axis"])
    begin = low.numbers(node.inputs[1])
    if begin is None:
        raise low.unsupported(node, "its shift is computed")
    y = low.output(node)
    size = low.spec(x).shape[axis]
    at = begin[0] % size
    for number, (source, target, count) in enumerate(((at, 0, size - at), (0, size - at, at)), 1):
        if count:
            parts = [
                low.view(t, f"{node.name}/part", _cut(low, t, axis, count), low.spec(t).strides,
                         low.spec(t).strides[axis] * start)
                for t, start in ((x, source), (y, target))
            ]  # fmt: skip
            low.step("copy", f"{node.name}/part{number}", {"x": parts[0]}, {"y": parts[1]}, {}, [node.name])


def _cut(low: Lowering, name: str, axis: int, count: int) -> list[int]:
    shape = list(low.spec(name).shape)
    shape[axis] = count
    return shape


def rearrange(low: Lowering, node: Operation) -> None:
    """Windows of a map, or the map of windows: one copy in another order of axes."""
    split = [int(s) for s in low.numbers(node.inputs[1]) or ()]
    order = (0, 1, 3, 5, 2, 4, 6, 7) if node.operator.endswith("Partition") else (0, 1, 4, 2, 5, 3, 6, 7)
    if len(split) != 8:
        raise low.unsupported(node, "its shape is computed")
    x = low.value(node.inputs[0])
    if -1 in split:
        known = -math.prod(split)
        split[split.index(-1)] = math.prod(low.spec(x).shape) // known
    x = low.dense(x, node)
    strides = row_major(split)
    view = low.view(x, f"{node.name}/split", [split[i] for i in order], [strides[i] for i in order])
    y = low.output(node, strides=row_major(low.shape(node.outputs[0])))
    shape = low.spec(view).shape
    whole = low.view(y, f"{node.name}/parts", shape, row_major(shape))
    low.step("copy", node, {"x": view}, {"y": whole})


_first("Pad", HANDLERS.get("Pad", Lowering.fallback))
_first("wetread.Roll", roll)
_first("wetread.WindowPartition", rearrange)
handles("wetread.WindowReverse")(rearrange)
