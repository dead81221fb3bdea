"""Eight bits: products of what was rounded, rounding on the way out of producers, parts of a concatenation joined.

A graph says what is rounded by pairs of quantise and dequantise nodes. A layer that reads a dequantised tensor and
has a weight that is stored in eight bits reads both in eight bits; its scale is the product of theirs.

In three places a program rounds less than its graph: layers of a few input channels and heads behind a norm, which
are bound by memory, so that eight bits would cost digits and a pass of their own and gain nothing; and matrix products,
which are fused in half precision (`quantised.unrounded_products`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from wetread.engines.cuda.lower.edit import (
    EIGHT,
    FLOATS,
    Uses,
    bare,
    is_add,
    merged,
    put,
    remove_dead,
    repeat,
)
from wetread.engines.cuda.lower.fuse_epilogue import is_head
from wetread.engines.cuda.lower.lowering import Stored, tensor_of
from wetread.engines.cuda.program import Program, Step

FEW = 16
"""Input channels below which a convolution is not worth eight bits: it reads what was to be rounded."""

PART_ERROR = 0.02
"""Largest relative L2 error where two parts of a layer get one scale for each output: of their weights, each times the
step of its activations, over both together. Rounding them apart costs 0.01, and so does what is rounded to begin with;
a part with small products may lose more of itself, since it is as little of the sum."""

_LARGEST = {"int8": 127.0, "float8_e4m3fn": 448.0}
_PRODUCERS = ("conv", "norm", "upconv", "resize", "pointwise", "pool")


def operands(program: Program, stored: Mapping[str, Stored]) -> None:
    """Convolutions read rounded tensors and stored weights as they are."""
    repeat(program, lambda p, uses, step: _operands(p, uses, step, stored))
    remove_dead(program)  # else what was dequantised for them would count as read


def _operands(program: Program, uses: Uses, step: Step, stored: Mapping[str, Stored]) -> bool:
    if step.op not in ("conv", "upconv") or "scale" in step.inputs or "x2" in step.inputs:
        return False
    held, back = stored.get(step.inputs["weight"]), uses.maker(step.inputs["x"])
    if held is None or back is None or back.op != "dequantise" or step.attributes["norm"] is not None:
        return False
    scale = _scales(step, held, float(back.attributes["scale"]))
    x = back.inputs["x"]
    if scale is None or program.spec(x).dtype not in EIGHT:
        return False
    values, kind = tensor_of(held.values), program.spec(x).dtype
    if (kind == "float8_e4m3fn") != (values.dtype == torch.float8_e4m3fn) or values.dtype == torch.uint8:
        return False
    if step.op == "conv" and values.shape[1] < FEW:
        return _unrounded(program, uses, step, back)
    weight = f"{step.inputs['weight']}/8"
    program.weights[weight] = values.contiguous()
    program.weights[f"{step.name}/scale"] = scale
    inputs = {**step.inputs, "x": x, "weight": weight, "scale": f"{step.name}/scale"}
    put(program, merged(step, back, inputs=inputs), step)
    return True


def _scales(step: Step, held: Stored, of_input: float) -> torch.Tensor | None:
    """Scale of each output channel; None where the weight's scales lie along another axis."""
    groups = int(step.attributes["groups"])
    axis, each = (0, 1) if step.op == "conv" else (1, groups)
    channels = held.values.shape[axis] * each
    if held.axis not in (-1, axis):
        return None
    scale = np.broadcast_to(held.scale, (channels // each,)) * np.float64(of_input)
    return torch.from_numpy(np.tile(scale, each).astype(np.float32))


def _unrounded(program: Program, uses: Uses, step: Step, back: Step) -> bool:
    """Lets a layer of few channels read the tensor that was rounded; its weights stay those of the graph."""
    rounded = uses.maker(back.inputs["x"])
    if rounded is None or rounded.op != "quantise" or program.spec(rounded.inputs["x"]).dtype not in FLOATS:
        return False
    put(program, merged(step, back, inputs={**step.inputs, "x": rounded.inputs["x"]}), step)
    return True


def producers(program: Program) -> None:
    """What computes a tensor that is only read rounded writes it rounded."""
    repeat(program, _producers)


def _producers(program: Program, uses: Uses, step: Step) -> bool:
    if step.op != "quantise":
        return False
    x = step.inputs["x"]
    maker = uses.maker(x)
    if maker is None or maker.op not in _PRODUCERS or maker.outputs["y"] != x or not uses.only(x, step):
        return False
    if not bare(maker, activation=True) or "sums" in maker.outputs:
        return False
    outputs = {**maker.outputs, "y": step.outputs["y"]}
    put(program, merged(maker, step, outputs=outputs, inverse=step.attributes["inverse"]), maker, [step])
    return True


def parts(program: Program) -> None:
    """W · [a, b] was written as Wa · a + Wb · b; it is one convolution of two inputs again.

    In eight bits each part has weights and a scale of its own. Joined, an output channel has one scale for all its
    weights; those of the part with the smaller products are rounded once more, and the layer stays in two parts where
    that would cost more than `PART_ERROR`.
    """
    repeat(program, _parts)


def _parts(program: Program, uses: Uses, add: Step) -> bool:
    if not is_add(add) or add.inputs["0"] == add.inputs["1"]:
        return False
    pair = [uses.maker(add.inputs[r]) for r in ("0", "1")]
    a, b = pair
    if a is None or b is None or not all(uses.only(n, add) for n in add.inputs.values()):
        return False
    if (
        not (_part(a) and _part(b))
        or a.attributes != b.attributes
        or ("scale" in a.inputs) != ("scale" in b.inputs)
    ):
        return False
    x, x2 = (program.spec(s.inputs["x"]) for s in (a, b))
    if x.dtype != x2.dtype or x.shape[2:] != x2.shape[2:]:
        return False
    weights = [program.weights[s.inputs["weight"]] for s in (a, b)]
    inputs = {"x": a.inputs["x"], "x2": b.inputs["x"], "weight": f"{a.name}/joined"}
    if "scale" in a.inputs:
        if (
            weights[0].dtype != weights[1].dtype
            or str(weights[0].dtype).removeprefix("torch.") not in _LARGEST
        ):
            return False
        joined = _joined(
            [(w, program.weights[s.inputs["scale"]]) for w, s in zip(weights, (a, b), strict=True)]
        )
        if joined is None:
            return False
        program.weights[inputs["weight"]], program.weights[f"{a.name}/joined/scale"] = joined
        inputs["scale"] = f"{a.name}/joined/scale"
    else:
        program.weights[inputs["weight"]] = torch.cat(weights, 1)
    biases = [program.weights[s.inputs["bias"]] for s in (a, b) if "bias" in s.inputs]
    if biases:
        program.weights[f"{a.name}/joined/bias"] = torch.stack(biases).sum(0)
        inputs["bias"] = f"{a.name}/joined/bias"
    step = merged(a, b, inputs=inputs, outputs={"y": add.outputs["y"]})
    put(program, replace(step, nodes=(*step.nodes, *add.nodes)), add, [a, b])
    return True


def _part(step: Step) -> bool:
    a = step.attributes
    roles = set(step.inputs) <= {"x", "weight", "scale", "bias"} and set(step.outputs) == {"y"}
    return step.op == "conv" and roles and bare(step) and a["groups"] == 1 and a["norm"] is None


def _joined(pieces: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Weight [CO, C1 + C2, ...] and scale [CO] of two eight-bit weights with scales; None where rounding costs much."""
    kind = pieces[0][0].dtype
    largest = _LARGEST[str(kind).removeprefix("torch.")]
    real = [w.double() * s.double().reshape(-1, 1, 1, 1, 1) for w, s in pieces]
    top = torch.cat(real, 1).flatten(1).abs().amax(1)
    scale = torch.where(top > 0, top / largest, torch.ones_like(top)).float()
    divisor = scale.double().reshape(-1, 1, 1, 1, 1)
    found, lost = [], 0.0
    for values in real:
        ratio = values / divisor
        rounded = ratio.round() if kind == torch.int8 else ratio
        stored = rounded.clamp(-largest, largest).to(torch.float32).to(kind)
        lost += float((stored.double() * divisor - values).square().sum())
        found.append(stored)
    if lost > PART_ERROR**2 * sum(float(values.square().sum()) for values in real):
        return None
    return torch.cat([w.view(torch.int8) for w in found], 1).view(kind).contiguous(), scale


def heads(program: Program) -> None:
    """A head that alone reads a rounded norm reads it unrounded, and so normalises on load."""
    repeat(program, _heads)


def _heads(program: Program, uses: Uses, step: Step) -> bool:
    if step.op != "conv" or "scale" not in step.inputs or not is_head(program, step):
        return False
    x, scale = step.inputs["x"], program.weights[step.inputs["scale"]]
    norm = uses.maker(x)
    if norm is None or norm.op != "norm" or not uses.only(x, step) or program.spec(x).dtype not in EIGHT:
        return False
    inverse = float(norm.attributes["inverse"])
    weight = (
        program.weights[step.inputs["weight"]].double() * scale.double().reshape(-1, 1, 1, 1, 1) * inverse
    )
    program.weights[f"{step.name}/unrounded"] = weight.float()
    program.tensors[x] = replace(program.tensors[x], dtype=program.spec(norm.inputs["x"]).dtype)
    put(program, merged(norm, norm, inverse=1.0), norm)
    inputs = {k: v for k, v in step.inputs.items() if k != "scale"} | {"weight": f"{step.name}/unrounded"}
    put(program, merged(step, step, inputs=inputs), step)
    return True


def leftovers(program: Program) -> None:
    """What is rounded, or turned back, in a step of its own becomes a pointwise step, which has a kernel."""
    for step in list(program.steps):
        if step.op not in ("quantise", "dequantise"):
            continue
        shapes = [program.spec(n).shape for n in (step.inputs["x"], step.outputs["y"])]
        if shapes[0] != shapes[1]:
            continue
        same = [["mul", 0, {"value": 1.0}]]
        attributes = {"program": same} | (
            {"inverse": step.attributes["inverse"]}
            if step.op == "quantise"
            else {"inverse": 1.0, "scales": [step.attributes["scale"]]}
        )
        put(
            program,
            Step(step.name, "pointwise", {"0": step.inputs["x"]}, step.outputs, attributes, step.nodes),
            step,
        )
