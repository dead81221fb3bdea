"""Convolution with everything around it: norm on load, two inputs, scale, bias, residual, activation, sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch

from wetread.engines.cuda.operations import families, launching
from wetread.engines.cuda.operations.base import (
    Arrays,
    Kernel,
    Operation,
    Target,
    Tensor,
    Work,
    activate,
    store,
    wide,
)  # fmt: skip
from wetread.engines.cuda.operations.geometry import convolve, geometry_of, library_type, lifted, rounding
from wetread.engines.cuda.operations.site import EIGHT
from wetread.engines.cuda.operations.statistics import (
    add_sums,
    add_sums_narrow,
    along_channels,
    normalised_narrow,
    on_load,
)  # fmt: skip
from wetread.engines.cuda.program import Program, Step


class Conv(Operation):
    """y = softmax?(act(conv(v, weight) · scale + bias + residual)).

    Roles: x, x2 (channels after x's: a concat never made), weight [CO, C / groups, *kernel], scale and bias [CO]
    float32, residual (of y's shape); y, sums. With the roles sums, gamma, beta among the inputs v is the norm of x
    and its activation, cast to the weight's type where that has 8 bits; else v is x with x2 after it.
    The output sums gets the sum and the sum of squares of y for each channel, before y is rounded.

    Attributes: stride, dilation (one for each axis), pads (begins, then ends), groups, activation, softmax (over
    the channels, last of all), inverse (1 / scale of an 8-bit y), norm (None or {eps, groups, activation, inverse
    of the 8-bit operand}), tf32 (True: library kernels may round float32 operands to TF32).
    """

    name: ClassVar[str] = "conv"

    def reference(self, step: Step, at: Arrays) -> None:
        """See `Operation.reference`."""
        a, y = step.attributes, at.outputs["y"]
        weight = at.inputs["weight"]
        with rounding(False):
            value = convolve(
                lifted(_operand(step, at)), lifted(wide(weight)), None, geometry_of(step, tuple(weight.shape))
            )
        value = _finished(value.reshape(y.shape), step, at)
        if a.get("softmax"):
            value = value.softmax(1)
        if "sums" in at.outputs:
            add_sums(at.outputs["sums"], value)
        store(value, y, float(a.get("inverse", 1.0)))

    def library(self, step: Step, at: Arrays) -> None:
        """See `Operation.library`."""
        a, y = step.attributes, at.outputs["y"]
        value = self.product(step, at).reshape(y.shape)
        if a.get("softmax"):
            value = value.softmax(1)
        if "sums" in at.outputs:
            add_sums_narrow(at.outputs["sums"], value)
        store(value, y, float(a.get("inverse", 1.0)))

    def product(self, step: Step, at: Arrays) -> Tensor:
        """Everything up to the activation by library kernels, (N, CO, D, H, W).

        Operands of 8 bits, and integers held as half floats (they come with a scale), are float32: TF32 holds
        them, and a product's sum, which may pass what a half holds, before the scale makes it small.
        """
        weight, bias = at.inputs["weight"], at.inputs.get("bias")
        eight = weight.dtype in EIGHT or "scale" in at.inputs
        x = _operand(step, at) if eight else _narrow_operand(step, at)
        kind = torch.float32 if eight else library_type(x)
        held = at.packs.get(
            ("library", step.inputs["weight"], str(kind)),
            lambda: lifted(weight.to(kind)).contiguous(memory_format=torch.channels_last_3d),
        )
        inside = None if bias is None or eight else bias.to(kind)
        with rounding(eight or bool(step.attributes.get("tf32"))):
            value = convolve(lifted(x.to(kind)), held, inside, geometry_of(step, tuple(weight.shape)))
        return _finished(value, step, at, biased=inside is not None)

    def kernels(self, step: Step, program: Program, target: Target) -> list[Kernel]:
        """See `Operation.kernels`."""
        return families.conv_kernels(step, program, target)

    def scratch_bytes(self, step: Step, program: Program, kernel: Kernel | None) -> int:
        """See `Operation.scratch_bytes`."""
        return launching.scratch_bytes(step, program, kernel)

    def prepare(self, step: Step, kernel: Kernel, at: Arrays) -> Callable[[], None]:
        """See `Operation.prepare`."""
        return families.prepare(step, kernel, at)

    def work(self, step: Step, program: Program) -> Work:
        """See `Operation.work`."""
        floor = super().work(step, program)
        weight, y = program.spec(step.inputs["weight"]), program.spec(step.outputs["y"])
        each = 2 * weight.shape[1]
        for size in (*y.shape, *weight.shape[2:]):
            each *= size
        return Work(each, floor.bytes)


def _operand(step: Step, at: Arrays) -> Tensor:
    """What is multiplied, wide: x after its norm and the rounding to the weight's type, or x and x2."""
    x, norm = at.inputs["x"], step.attributes.get("norm")
    if norm is None:
        return torch.cat([wide(x), wide(at.inputs["x2"])], 1) if "x2" in at.inputs else wide(x)
    value = on_load(x, at.inputs["sums"], at.inputs.get("gamma"), at.inputs.get("beta"), norm)
    return rounded(value, x.dtype, at.inputs["weight"].dtype, float(norm.get("inverse", 1.0)))


def rounded(value: Tensor, given: torch.dtype, weight: torch.dtype, inverse: float) -> Tensor:
    """A normalised value as products take it: rounded to 8 bits where the weights are, else to x's own type."""
    held = torch.empty_like(value, dtype=weight if weight in EIGHT else given)
    store(value, held, inverse)
    return held.to(value.dtype)


def _narrow_operand(step: Step, at: Arrays) -> Tensor:
    """What is multiplied, in x's own type."""
    x, norm = at.inputs["x"], step.attributes.get("norm")
    if norm is not None:
        value = normalised_narrow(x, at.inputs["sums"], at.inputs.get("gamma"), at.inputs.get("beta"), norm)
        return activate(value, norm["activation"])
    return torch.cat([x, at.inputs["x2"]], 1) if "x2" in at.inputs else x


def _finished(value: Tensor, step: Step, at: Arrays, biased: bool = False) -> Tensor:
    """Scale, bias (unless it is in), residual, activation."""
    scale, bias, residual = (at.inputs.get(role) for role in ("scale", "bias", "residual"))
    if scale is not None:
        value = value * along_channels(scale, value).to(value.dtype)
    if bias is not None and not biased:
        value = value + along_channels(bias, value).to(value.dtype)
    if residual is not None:
        value = value + residual.reshape(value.shape).to(value.dtype)
    return activate(value, step.attributes.get("activation"))


OPERATIONS = (Conv(),)
