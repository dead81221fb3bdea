"""How tensors lie in memory: weights' types, channels filled up to what kernels take, a border for the first layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from wetread.engines.cuda.lower.edit import EIGHT, FLOATS, Uses, merged, put
from wetread.engines.cuda.program import Program, Step, TensorSpec, channels_last

_LAYERS = ("conv", "conv_norm", "upconv")
_KEEP_ZERO = ("relu", "leaky", "elu", "tanh", "silu", "mish", "gelu")
"""Activations that leave a channel of zeros as it is."""


def weight_types(program: Program) -> None:
    """Floating weights of layers get the type of what they multiply."""
    made: dict[tuple[str, str], str] = {}
    for step in list(program.steps):
        if step.op not in _LAYERS:
            continue
        name, dtype = step.inputs["weight"], program.spec(step.inputs["x"]).dtype
        held = program.spec(name).dtype
        if held in EIGHT or dtype in EIGHT or held == dtype or dtype not in FLOATS:
            continue
        if (name, dtype) not in made:
            made[name, dtype] = f"{name}/{dtype}"
            program.weights[made[name, dtype]] = program.weights[name].to(getattr(torch, dtype))
        inputs = {**step.inputs, "weight": made[name, dtype]}
        program.steps = [replace(s, inputs=inputs) if s.name == step.name else s for s in program.steps]


def padded_channels(program: Program) -> None:
    """Fills channels up with zeros to a multiple of 16 (32 in eight bits), where every step keeps them zero.

    MeshNet's 26 channels become 32: kernels load whole rows of channels, and a program that is ready for any number
    would be slower than these products with zero.
    """
    for name in list(program.tensors):
        if name in program.tensors:
            _pad(program, name)


def _pad(program: Program, name: str) -> None:
    spec = program.tensors[name]
    if spec.base or len(spec.shape) != 5 or spec.zeroed or spec.dtype not in (*EIGHT, "float16", "bfloat16"):
        return
    multiple, channels = 32 if spec.dtype in EIGHT else 16, spec.shape[1]
    more = -channels % multiple
    uses = Uses(program)
    maker = uses.maker(name)
    if channels < multiple or not more or uses.is_output(name) or maker is None:
        return
    if maker.op != "conv" or not _keeps_zero(maker) or set(maker.outputs) != {"y"}:
        return
    if any(each.base == name for each in program.tensors.values()):
        return
    readers = uses.readers(name)
    if not all(
        step.op == "conv" and role == "x" and step.attributes["groups"] == 1 and "x2" not in step.inputs
        and step.attributes.get("norm") is None
        for step, role in readers
    ):  # fmt: skip
        return
    shape = (spec.shape[0], channels + more, *spec.shape[2:])
    program.tensors[name] = replace(spec, shape=shape, strides=channels_last(shape))
    _widen(program, maker, 0, more)
    for step, _ in readers:
        _widen(program, next(s for s in program.steps if s.name == step.name), 1, more)


def _keeps_zero(step: Step) -> bool:
    a = step.attributes
    plain = not a.get("softmax") and "residual" not in step.inputs and a["groups"] == 1
    return plain and (a["activation"] is None or a["activation"]["name"] in _KEEP_ZERO)


def _widen(program: Program, step: Step, axis: int, more: int) -> None:
    """Adds zeros to a layer's weight along its outputs (0) or inputs (1); outputs also to scale and bias."""
    inputs = dict(step.inputs)
    for role in ("weight", "scale", "bias") if axis == 0 else ("weight",):
        if role in inputs:
            w = program.weights[inputs[role]]
            shape = list(w.shape)
            shape[axis] = more
            zeros = torch.zeros(shape, dtype=torch.uint8).repeat_interleave(w.element_size(), -1)
            raw = torch.cat([w.contiguous().view(torch.uint8), zeros], axis).contiguous()
            inputs[role] = f"{step.name}/{role}/filled{axis}"
            program.weights[inputs[role]] = raw.view(w.dtype)
    put(program, merged(step, step, inputs=inputs), step)


def border(program: Program) -> None:
    """The first layer's input lies inside a volume with zeros around it, so that its kernel needs no masks."""
    for step in list(program.steps):
        if step.op == "conv" and _wants_border(program, step):
            width = int(step.attributes["pads"][0])
            _surround(program, step.inputs["x"], width)
            put(program, merged(step, step, border=width), step)


def _wants_border(program: Program, step: Step) -> bool:
    a, x = step.attributes, step.inputs["x"]
    kernel = program.spec(step.inputs["weight"]).shape[2:]
    spec = program.tensors.get(x)
    if spec is None or spec.base or len(spec.shape) != 5 or spec.dtype not in ("float16", "bfloat16"):
        return False
    if "x2" in step.inputs or a["norm"] is not None or a["groups"] != 1 or list(a["dilation"]) != [1] * 3:
        return False
    k = kernel[0]
    same = set(kernel) == {k} and k % 2 == 1 and k > 1 and set(a["pads"]) == {k // 2}
    writers = [s for s in program.steps if x in s.outputs.values()]
    given = x in program.inputs or all(s.op in ("copy", "quantise") for s in writers)
    if not same or spec.shape[1] >= 16 or not given or x in program.outputs:
        return False
    views = [view for view in program.tensors.values() if view.base == x]
    return all(_relaid(view, spec, spec) is not None for view in views)


def _surround(program: Program, name: str, width: int) -> None:
    old = program.tensors[name]
    n, c, *space = old.shape
    shape: Sequence[int] = (n, c, *(size + 2 * width for size in space))
    strides = channels_last(shape)
    base = f"{name}/bordered"
    program.tensors[base] = TensorSpec(tuple(shape), old.dtype, strides, zeroed=True)
    offset = sum(width * stride for stride in strides[2:])
    new = program.tensors[name] = TensorSpec((n, c, *space), old.dtype, strides, base, offset)
    for key, view in list(program.tensors.items()):
        if view.base == name:
            moved = _relaid(view, old, new)
            assert moved is not None  # `_wants_border` has seen it
            program.tensors[key] = moved


def _relaid(view: TensorSpec, old: TensorSpec, new: TensorSpec) -> TensorSpec | None:
    """A view of a tensor that gets other strides; None where it merges axes, or has another element type."""
    at = _indices(view.offset, old)
    ends, strides = list(at), []
    for size, stride in zip(view.shape, view.strides, strict=True):
        steps = _indices(stride, old) if size > 1 else (0,) * len(at)
        ends = [end + (size - 1) * step for end, step in zip(ends, steps, strict=True)]
        strides.append(sum(step * s for step, s in zip(steps, new.strides, strict=True)))
    if view.dtype != old.dtype or any(end >= size for end, size in zip(ends, old.shape, strict=True)):
        return None
    offset = new.offset + sum(i * s for i, s in zip(at, new.strides, strict=True))
    return replace(view, base=new.base, strides=tuple(strides), offset=offset)


def _indices(elements: int, spec: TensorSpec) -> tuple[int, ...]:
    """A distance in memory as one along each axis."""
    found = [0] * len(spec.shape)
    for axis in sorted(range(len(spec.shape)), key=lambda i: -spec.strides[i]):
        if spec.shape[axis] > 1:
            found[axis], elements = divmod(elements, spec.strides[axis])
    return tuple(found)
