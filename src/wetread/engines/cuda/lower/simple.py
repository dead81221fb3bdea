"""Handlers of elementwise operators, pooling and resizing."""

from __future__ import annotations

import numpy as np

from wetread.engines.cuda.lower.lowering import Lowering, handles
from wetread.engines.cuda.lower.torch_step import fallback
from wetread.engines.cuda.operations.fallback.network import window
from wetread.engines.cuda.operations.fallback.sampling import resize_targets
from wetread.engines.cuda.program import Json, Shape
from wetread.graph.plain import Operation

__all__ = ["fallback"]

_UNARY = {
    "Relu": "relu", "Sigmoid": "sigmoid", "Tanh": "tanh", "Mish": "mish", "HardSwish": "hard_swish", "Neg": "neg",
    "Abs": "abs", "Exp": "exp", "Log": "log", "Sqrt": "sqrt", "Reciprocal": "reciprocal", "Erf": "erf",
    "Floor": "floor", "Ceil": "ceil", "Round": "round", "Sin": "sin", "Cos": "cos", "Softplus": "softplus",
    "wetread.Swish": "silu", "wetread.Mish": "mish",
}  # fmt: skip
_BINARY = {
    "Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div", "Min": "min", "Max": "max", "Pow": "pow", "Sum": "add",
}  # fmt: skip
_FLOATS = ("float16", "bfloat16", "float32")


def _floating(low: Lowering, node: Operation) -> bool:
    """Whether all that a node reads and writes are floating numbers that are computed in float32."""
    names = [name for name in (*node.inputs, *node.outputs) if name]
    return all(low.dtype(name) in _FLOATS for name in names)


def _activation(low: Lowering, node: Operation) -> Json | None:
    """The instruction of an operator with one input, without its operand; None where it is another operator."""
    a, name = node.attributes, node.operator
    if name in _UNARY:
        return [_UNARY[name]]
    if name == "LeakyRelu":
        return ["leaky", {"slope": float(a.get("alpha", 0.01))}]
    if name == "Elu":
        return ["elu", {"alpha": float(a.get("alpha", 1.0))}]
    if name in ("Gelu", "wetread.Gelu", "wetread.GeluTanh"):
        tanh = name == "wetread.GeluTanh" or a.get("approximate") == "tanh"
        return ["gelu", {"approximate": "tanh" if tanh else "none"}]
    if name == "HardSigmoid":
        return ["hard_sigmoid", {"alpha": float(a.get("alpha", 0.2)), "beta": float(a.get("beta", 0.5))}]
    if name == "Swish" and float(a.get("alpha", 1.0)) == 1.0:
        return ["silu"]
    if name == "Clip":
        return _clip(low, node)
    return None


def _clip(low: Lowering, node: Operation) -> Json | None:
    bounds: list[float | None] = []
    for number in (1, 2):
        name = node.inputs[number] if number < len(node.inputs) else ""
        bounds.append(low.scalar(name) if name else None)
        if name and bounds[-1] is None:
            return None
    return ["relu"] if bounds == [0.0, None] else ["clip", {"low": bounds[0], "high": bounds[1]}]


@handles(
    *_UNARY, "LeakyRelu", "Elu", "Gelu", "wetread.Gelu", "wetread.GeluTanh", "HardSigmoid", "Swish", "Clip"
)
def unary(low: Lowering, node: Operation) -> None:
    """A pointwise step of one instruction."""
    instruction = _activation(low, node)
    if instruction is None or not _floating(low, node):
        low.fallback(node)
        return
    if instruction == ["clip", {"low": None, "high": None}]:
        low.alias(node)
        return
    name, *parameters = instruction
    program = [[name, 0, *parameters]]
    low.step(
        "pointwise", node, {"0": low.value(node.inputs[0])}, {"y": low.output(node)}, {"program": program}
    )


def _operand(low: Lowering, value: str, roles: dict[str, str]) -> Json:
    """A constant number, or the register of an input that is added to the roles; other constants are float32."""
    number = low.scalar(value)
    if number is not None:
        return {"value": number}
    array = low.constant(value)
    name = low.value(value) if array is None else low.weight(f"{value}/float32", array, "float32")
    for role, known in roles.items():
        if known == name:
            return int(role)
    roles[str(len(roles))] = name
    return len(roles) - 1


@handles(*_BINARY, "Mean")
def binary(low: Lowering, node: Operation) -> None:
    """Arithmetic of two or more values, which broadcast, as a pointwise step."""
    if not _floating(low, node) or len(node.inputs) < 2:
        low.fallback(node)
        return
    roles: dict[str, str] = {}
    operands = [_operand(low, value, roles) for value in node.inputs]
    name, program = _BINARY.get(node.operator, "add"), []
    last = operands[0]
    for operand in operands[1:]:
        program.append([name, last, operand])
        last = len(roles) + len(program) - 1
    if node.operator == "Mean":
        program.append(["mul", last, {"value": 1.0 / len(operands)}])
    low.step(
        "pointwise", node, roles, {"y": low.output(node, strides=_strides(low, node))}, {"program": program}
    )


def _strides(low: Lowering, node: Operation) -> Shape | None:
    """Strides as of the input that has the output's shape; None where the first one has it, or none."""
    shape = low.shape(node.outputs[0])
    for value in node.inputs:
        if low.constant(value) is None and low.shape(value) == shape:
            return low.like(low.value(value), shape)
    return None


@handles("PRelu")
def prelu(low: Lowering, node: Operation) -> None:
    """One slope is a leaky ReLU; slopes of channels are a chain of instructions."""
    if not _floating(low, node):
        low.fallback(node)
        return
    slope, x = low.constant(node.inputs[1]), low.value(node.inputs[0])
    if slope is not None and (slope == slope.reshape(-1)[0]).all():
        program: Json = [["leaky", 0, {"slope": float(slope.reshape(-1)[0])}]]
        low.step("pointwise", node, {"0": x}, {"y": low.output(node)}, {"program": program})
        return
    roles = {"0": x}
    by = _operand(low, node.inputs[1], roles)
    program = [["mul", 0, by], ["less", 0, {"value": 0.0}], ["where", 3, 2, 0]]
    low.step("pointwise", node, roles, {"y": low.output(node)}, {"program": program})


@handles("BatchNormalization")
def batch_norm(low: Lowering, node: Operation) -> None:
    """A factor and an addend for each channel, where it stands behind no convolution that took it in."""
    parameters = [low.constant(name) for name in node.inputs[1:5]]
    if (
        any(p is None for p in parameters)
        or node.attributes.get("training_mode", 0)
        or not _floating(low, node)
    ):
        low.fallback(node)
        return
    scale, bias, mean, var = (np.asarray(p, np.float64).reshape(-1) for p in parameters)
    factor = scale / np.sqrt(var + float(node.attributes.get("epsilon", 1e-5)))
    shape = (-1, *[1] * (len(low.shape(node.inputs[0])) - 2))
    roles = {"0": low.value(node.inputs[0])}
    for role, values in (("1", factor), ("2", bias - mean * factor)):
        roles[role] = low.weight(f"{node.outputs[0]}/{role}", values.reshape(shape), "float32")
    program = [["mul", 0, 1], ["add", 3, 2]]
    low.step("pointwise", node, roles, {"y": low.output(node)}, {"program": program})


@handles("MaxPool", "AveragePool")
def pool(low: Lowering, node: Operation) -> None:
    """Pooling of 1 to 3 spatial axes; places of maxima come from torch."""
    shape = low.shape(node.inputs[0])
    indices = len(node.outputs) > 1 and bool(node.outputs[1])
    if indices or len(shape) > 5 or low.dtype(node.inputs[0]) not in _FLOATS:
        low.fallback(node)
        return
    kernel = [int(k) for k in node.attributes["kernel_shape"]]
    stride, dilation, pads = window(node.attributes, shape, kernel)
    attributes = {
        "mode": "max" if node.operator == "MaxPool" else "average", "kernel": kernel, "stride": stride,
        "dilation": dilation, "pads": pads, "count_include_pad": bool(node.attributes.get("count_include_pad", 0)),
    }  # fmt: skip
    low.step("pool", node, {"x": low.value(node.inputs[0])}, {"y": low.output(node)}, attributes)


@handles("GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax")
def global_pool(low: Lowering, node: Operation) -> None:
    """Mean or largest over all spatial axes; other reductions come from torch."""
    shape = low.shape(node.inputs[0])
    axes: list[int] = list(range(2, len(shape)))
    if node.operator.startswith("Reduce"):
        given = node.attributes.get("axes")
        given = (
            low.numbers(node.inputs[1])
            if given is None and len(node.inputs) > 1 and node.inputs[1]
            else given
        )
        axes = sorted(int(a) % len(shape) for a in given or ())
    if axes != list(range(2, len(shape))) or len(shape) < 3 or low.dtype(node.inputs[0]) not in _FLOATS:
        low.fallback(node)
        return
    whole = (*shape[:2], *[1] * (len(shape) - 2))
    mode = "global_average" if node.operator.endswith(("AveragePool", "Mean")) else "global_max"
    x, value = low.value(node.inputs[0]), node.outputs[0]
    if low.shape(value) == whole:
        y = low.output(node)
    else:  # without the axes of one element
        y = low.tensor(f"{value}/whole", whole, low.dtype(value))
        low.hold(value, low.view(y, value, shape[:2], (shape[1], 1)))
    low.step("pool", node, {"x": x}, {"y": y}, {"mode": mode})


@handles("Resize")
def resize(low: Lowering, node: Operation) -> None:
    """Resizing of the spatial axes; crops and resized channels come from torch."""
    shape, out, a = low.shape(node.inputs[0]), low.shape(node.outputs[0]), node.attributes
    given = [low.constant(name) if name else None for name in (*node.inputs, "", "", "")[2:4]]
    scales, sizes = (None if g is None or not g.size else g.reshape(-1) for g in given)
    coordinates = a.get("coordinate_transformation_mode", "half_pixel")
    if (
        (scales is None and sizes is None)
        or coordinates == "tf_crop_and_resize"
        or low.dtype(node.inputs[0]) not in _FLOATS
    ):
        low.fallback(node)
        return
    axes = [int(i) % len(shape) for i in a.get("axes") or range(len(shape))]
    targets = resize_targets(
        shape, axes, None if scales is None else [float(s) for s in scales],
        None if sizes is None else [int(s) for s in sizes], str(a.get("keep_aspect_ratio_policy", "stretch")),
    )  # fmt: skip
    factors = dict(zip(axes, (factor for factor, _ in targets), strict=True))
    if any(factors.get(i, 1.0) != 1.0 for i in (0, 1)) or out[:2] != shape[:2]:
        low.fallback(node)
        return
    attributes = {
        "mode": a.get("mode", "nearest"), "scales": [factors.get(i, 1.0) for i in range(2, len(shape))],
        "coordinates": coordinates, "nearest_mode": a.get("nearest_mode", "round_prefer_floor"),
        "cubic_a": float(a.get("cubic_coeff_a", -0.75)), "exclude_outside": bool(a.get("exclude_outside", 0)),
        "antialias": bool(a.get("antialias", 0)),
    }  # fmt: skip
    low.step("resize", node, {"x": low.value(node.inputs[0])}, {"y": low.output(node)}, attributes)
