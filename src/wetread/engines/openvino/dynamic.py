"""Networks compiled once for a range of window shapes."""

from __future__ import annotations

from typing import Any

from wetread.engines.base import TensorInfo
from wetread.engines.common import Shape3
from wetread.package import ShapeProfile

_WHERE_IT_STANDS = {
    "Relu", "PRelu", "Clamp", "Sigmoid", "Tanh", "Elu", "Gelu", "Swish", "Mish", "HSwish", "SoftPlus",
    "Add", "Subtract", "Multiply", "Divide", "FakeQuantize", "Convert", "Reshape", "Squeeze", "Unsqueeze",
}  # fmt: skip
"""Operators that OpenVINO computes in place, or inside the kernel of the node before."""


def reshape(ov: Any, model: Any, inputs: tuple[TensorInfo, ...], shape: Shape3) -> Any:
    """A copy of the model for one window of this shape.

    Raises:
        RuntimeError: the network does not take it, in OpenVINO's words.
    """
    return _reshaped(ov, model, inputs, list(shape))


def bounded(ov: Any, model: Any, inputs: tuple[TensorInfo, ...], shapes: ShapeProfile) -> Any:
    """A copy of the model for one window of any shape between the profile's smallest and largest.

    Raises:
        RuntimeError: the network does not take them, in OpenVINO's words.
    """
    sizes = [ov.Dimension(low, high) for low, high in zip(shapes.min, shapes.max, strict=True)]
    return _reshaped(ov, model, inputs, sizes)


def _reshaped(ov: Any, model: Any, inputs: tuple[TensorInfo, ...], sizes: list[Any]) -> Any:
    copy = model.clone()
    copy.reshape(
        {
            port: ov.PartialShape([1, info.shape[1], *sizes])
            for port, info in zip(copy.inputs, inputs, strict=True)
        }
    )
    return copy


def activation_estimate(model: Any) -> int:
    """Peak of live activations in bytes of a model with fixed shapes that has not been compiled.

    A tensor lives from the node that writes it to the last that reads it. Nodes that work in place write where
    their first input stood. What depends on weights alone is computed when the network is compiled and left out.
    """
    from wetread.graph.memory import peak_bytes

    ops = [op for op in model.get_ordered_ops() if op.get_output_size()]
    order = {op.get_friendly_name(): i for i, op in enumerate(ops)}
    passive: set[str] = set()
    home: dict[str, str] = {}  # node → the node whose memory it writes to
    size: dict[str, int] = {}
    last: dict[str, int] = {}
    for i, op in enumerate(ops):
        name, kind = op.get_friendly_name(), op.get_type_name()
        sources = [value.get_source_output().get_node().get_friendly_name() for value in op.inputs()]
        if kind in ("Constant", "ShapeOf") or (sources and passive.issuperset(sources)):
            passive.add(name)
            continue
        live = [home[source] for source in sources if source in home]
        for source in live:
            last[source] = i
        bytes_ = 0 if kind == "Parameter" else sum(_bytes(output) for output in op.outputs())
        home[name] = live[0] if kind in _WHERE_IT_STANDS and live and size[live[0]] >= bytes_ else name
        if home[name] == name:
            size[name], last[name] = bytes_, i
    return peak_bytes(size, {name: order[name] for name in size}, last)


def _bytes(output: Any) -> int:
    count = 1
    for axis in output.get_partial_shape().get_min_shape():
        count *= int(axis)
    return count * int(output.get_element_type().size)
