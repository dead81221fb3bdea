"""Operators that only move values: most become names or views of memory that is there already."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from wetread.engines.cuda.lower.lowering import Lowering, handles
from wetread.engines.cuda.program import row_major
from wetread.errors import GraphError
from wetread.graph.plain import Operation

_WIDE = frozenset(
    {
        "InstanceNormalization",
        "GroupNormalization",
        "wetread.GroupNormalization",
        "LayerNormalization",
        "Cast",
    }
)
"""Operators that compute in float32 whatever they read: a cast to it before them is nothing."""

_FLOATS = ("float16", "bfloat16", "float32", "float64")


@handles("Identity", "Dropout")
def identity(low: Lowering, node: Operation) -> None:
    """The same values under another name."""
    low.alias(node)


@handles("Cast")
def cast(low: Lowering, node: Operation) -> None:
    """A copy, unless the program does not tell the two types apart or all readers compute in float32 anyway."""
    x, value = low.value(node.inputs[0]), node.outputs[0]
    source, wanted = low.graph_dtype(node.inputs[0]), low.graph_dtype(value)
    floats = source in _FLOATS and wanted in _FLOATS
    wider = floats and _FLOATS.index(wanted) > _FLOATS.index(source)
    readers = low.readers(value)
    hidden = wider and readers and all(r.operator in _WIDE for r in readers) and not low.is_output(value)
    if low.spec(x).dtype == low.dtype(value) or hidden:
        low.alias(node)
        return
    low.step("copy", node, {"x": x}, {"y": low.output(node)})


@handles("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(low: Lowering, node: Operation) -> None:
    """A view where the memory allows it, else one of a row-major copy."""
    view_as(low, node, low.value(node.inputs[0]), low.shape(node.outputs[0]))


def view_as(low: Lowering, node: Operation, x: str, shape: Sequence[int]) -> None:
    """Lets the node's output be `x` in another shape."""
    if x in low.program.weights:
        low.program.weights[name := low.fresh(node.outputs[0])] = low.program.weights[x].reshape(tuple(shape))
        low.alias(node, name)
        return
    spec = low.spec(x)
    if math.prod(spec.shape) != math.prod(shape):
        raise GraphError(f"makes shape {tuple(shape)} of {spec.shape}", where=f"{low.where}: {node.name}")
    strides = reshaped(spec.shape, spec.strides, shape)
    if strides is None:
        x = low.dense(x, node)
        strides = row_major(shape)
    low.alias(node, low.view(x, node.outputs[0], shape, strides))


def reshaped(shape: Sequence[int], strides: Sequence[int], wanted: Sequence[int]) -> tuple[int, ...] | None:
    """Strides of the same memory in another shape; None where it cannot be had without moving values."""
    try:
        made = torch.empty_strided(tuple(shape), tuple(strides), device="meta").view(tuple(wanted))
    except RuntimeError:
        return None
    return tuple(made.stride())


@handles("Transpose")
def transpose(low: Lowering, node: Operation) -> None:
    """A view."""
    x = low.value(node.inputs[0])
    spec = low.spec(x)
    order = node.attributes.get("perm") or range(len(spec.shape))[::-1]
    low.alias(
        node,
        low.view(x, node.outputs[0], [spec.shape[i] for i in order], [spec.strides[i] for i in order]),
    )


@handles("Slice")
def slices(low: Lowering, node: Operation) -> None:
    """A view; backward slices, which no view can be, fall back."""
    x = low.value(node.inputs[0])
    spec = low.spec(x)
    given = [low.numbers(name) if name else None for name in node.inputs[1:]]
    if "starts" in node.attributes:  # operator sets before 10
        given = [
            list(node.attributes[k]) if k in node.attributes else None for k in ("starts", "ends", "axes")
        ]
    starts, ends, axes, steps = (*given, None, None, None)[:4]
    if (
        starts is None
        or ends is None
        or any(n and v is None for n, v in zip(node.inputs[1:], given, strict=False))
    ):
        low.fallback(node)
        return
    axes = axes if axes is not None else list(range(len(starts)))
    steps = steps if steps is not None else [1] * len(starts)
    if min(steps) < 1:
        low.fallback(node)
        return
    shape, strides, offset = list(spec.shape), list(spec.strides), 0
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        at = range(spec.shape[axis])[start:end:step]
        offset += at.start * spec.strides[axis] if len(at) else 0
        shape[axis], strides[axis] = len(at), spec.strides[axis] * step
    low.alias(node, low.view(x, node.outputs[0], shape, strides, offset))


@handles("Split")
def split(low: Lowering, node: Operation) -> None:
    """A view for each part."""
    x = low.value(node.inputs[0])
    spec = low.spec(x)
    axis, offset = int(node.attributes.get("axis", 0)), 0
    for name in node.outputs:
        if not name:
            low.fallback(node)
            return
        shape = low.shape(name)
        low.hold(name, low.view(x, name, shape, spec.strides, offset))
        offset += shape[axis] * spec.strides[axis]


@handles("Gather")
def gather(low: Lowering, node: Operation) -> None:
    """One index of an axis is a view; others fall back."""
    index = low.constant(node.inputs[1])
    if index is None or index.ndim != 0 or low.constant(node.inputs[0]) is not None:
        low.fallback(node)
        return
    x = low.value(node.inputs[0])
    spec = low.spec(x)
    axis = int(node.attributes.get("axis", 0)) % len(spec.shape)
    at = int(index) % spec.shape[axis]
    shape = [s for i, s in enumerate(spec.shape) if i != axis]
    strides = [s for i, s in enumerate(spec.strides) if i != axis]
    low.alias(node, low.view(x, node.outputs[0], shape, strides, at * spec.strides[axis]))


@handles("Concat")
def concat(low: Lowering, node: Operation) -> None:
    """A copy of each part into its slice; `concat.py` removes these copies where it can."""
    parts = [low.value(name) for name in node.inputs]
    y = low.output(node)
    spec = low.spec(y)
    axis, offset = int(node.attributes["axis"]), 0
    for number, part in enumerate(parts):
        shape = low.spec(part).shape
        if 0 in shape:
            continue
        piece = low.view(y, f"{node.outputs[0]}/part{number + 1}", shape, spec.strides, offset)
        low.step("copy", f"{node.name}/part{number + 1}", {"x": part}, {"y": piece}, {}, [node.name])
        offset += shape[axis] * spec.strides[axis]


@handles("Constant")
def constant(low: Lowering, node: Operation) -> None:
    """Left by graphs that were not folded."""
    found = next(iter(node.attributes.values()))
    low.set_constant(node.outputs[0], np.asarray(found))
