"""Two linear layers after each other, of few features and many rows, are one step: what lies between stays inside."""

from __future__ import annotations

import math

from wetread.engines.cuda.lower.edit import Uses, merged, put, repeat
from wetread.engines.cuda.program import Program, Step
from wetread.kernels.matmul import ACTIVATIONS
from wetread.kernels.mlp import WIDEST

MANY = 8192
"""Rows from which one program for both layers has work for a whole device."""


def mlp(program: Program) -> None:
    """A LayerNorm, a linear layer with its activation, and a linear layer with its residual."""
    repeat(program, _mlp)


def _mlp(program: Program, uses: Uses, second: Step) -> bool:
    if (
        second.op != "matmul"
        or not _plain(program, second)
        or second.attributes.get("activation") is not None
    ):
        return False
    between = second.inputs["a"]
    first = uses.maker(between)
    if first is None or first.op != "matmul" or not uses.only(between, second) or not _plain(program, first):
        return False
    activation = first.attributes.get("activation")
    if second.attributes.get("norm") or "residual" in first.inputs or activation is None:
        return False
    if activation["name"] not in ACTIVATIONS or first.attributes.get("inverse", 1.0) != 1.0:
        return False
    a, y = program.spec(first.inputs["a"]), program.spec(second.outputs["y"])
    wide = max(a.shape[-1], y.shape[-1]) > WIDEST or math.prod(a.shape[:-1]) < MANY
    if wide or a.strides[-1] != 1 or y.strides[-1] != 1:
        return False
    inputs = {"a": first.inputs["a"], "b1": first.inputs["b"], "b2": second.inputs["b"]}
    given = {"bias1": (first, "bias"), "gamma": (first, "gamma"), "beta": (first, "beta"),
             "bias2": (second, "bias"), "residual": (second, "residual")}  # fmt: skip
    inputs |= {new: step.inputs[role] for new, (step, role) in given.items() if role in step.inputs}
    made = Step(
        second.name, "mlp", inputs, dict(second.outputs),
        {"norm": first.attributes.get("norm"), "activation": activation, "inverse": second.attributes["inverse"]},
        merged(first, second).nodes,
    )  # fmt: skip
    put(program, made, second, [first])
    return True


def _plain(program: Program, step: Step) -> bool:
    """Whether a product is a linear layer of a half type, one axis contracted."""
    if step.inputs["b"] not in program.weights or program.weights[step.inputs["b"]].ndim != 2:
        return False
    if step.attributes.get("contract", 1) != 1 or "scale" in step.inputs:
        return False
    return program.spec(step.inputs["a"]).dtype in ("float16", "bfloat16")
