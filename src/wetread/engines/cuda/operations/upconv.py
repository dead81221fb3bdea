"""Transposed convolution, with a norm on load, bias and activation."""

from __future__ import annotations

from typing import ClassVar

import torch

from wetread.engines.cuda.operations.base import Arrays, Operation, Tensor, Work, activate, store, wide
from wetread.engines.cuda.operations.conv import EIGHT, rounded
from wetread.engines.cuda.operations.geometry import Geometry, Three, convolve_transposed, lifted, rounding
from wetread.engines.cuda.operations.statistics import along_channels, normalised_narrow, on_load
from wetread.engines.cuda.program import Program, Step


class UpConv(Operation):
    """y = act(transposed_conv(v, weight) · scale + bias).

    Roles: x, weight [C, CO / groups, *kernel], scale and bias [CO] float32, sums, gamma, beta (a norm of x on load,
    as in conv); y. Attributes: stride, dilation, pads, output_padding (one for each axis), groups, activation,
    inverse, norm, tf32, as in conv.
    """

    name: ClassVar[str] = "upconv"

    def reference(self, step: Step, at: Arrays) -> None:
        """See `Operation.reference`."""
        x, weight, norm = at.inputs["x"], at.inputs["weight"], step.attributes.get("norm")
        value = wide(x)
        if norm is not None:
            value = on_load(x, at.inputs["sums"], at.inputs.get("gamma"), at.inputs.get("beta"), norm)
            value = rounded(value, x.dtype, weight.dtype, float(norm.get("inverse", 1.0)))
        with rounding(False):
            y = convolve_transposed(
                lifted(value), lifted(wide(weight)), None, Geometry.of(step, tuple(weight.shape)), _more(step)
            )
        _store(y, step, at)

    def library(self, step: Step, at: Arrays) -> None:
        """See `Operation.library`."""
        i, weight, norm = at.inputs, at.inputs["weight"], step.attributes.get("norm")
        eight, value = weight.dtype in EIGHT, i["x"]
        kind = torch.float32 if eight else value.dtype
        if norm is not None:
            value = normalised_narrow(value, i["sums"], i.get("gamma"), i.get("beta"), norm)
            value = activate(value, norm["activation"])
            if eight:
                value = rounded(value, kind, weight.dtype, float(norm.get("inverse", 1.0)))
        held = at.packs.get(
            ("library", step.inputs["weight"], str(kind)),
            lambda: lifted(weight.to(kind)).contiguous(memory_format=torch.channels_last_3d),
        )
        with rounding(eight or bool(step.attributes.get("tf32"))):
            y = convolve_transposed(
                lifted(value.to(kind)), held, None, Geometry.of(step, tuple(weight.shape)), _more(step)
            )
        _store(y, step, at)

    def work(self, step: Step, program: Program) -> Work:
        """See `Operation.work`."""
        weight, x = program.spec(step.inputs["weight"]), program.spec(step.inputs["x"])
        flop = 2 * weight.shape[1]
        for size in (*x.shape, *weight.shape[2:]):
            flop *= size
        return Work(flop, super().work(step, program).bytes)


def _more(step: Step) -> Three:
    given = [int(v) for v in step.attributes.get("output_padding", ())]
    a, b, c = [0] * (3 - len(given)) + given
    return a, b, c


def _store(value: Tensor, step: Step, at: Arrays) -> None:
    y, scale, bias = at.outputs["y"], at.inputs.get("scale"), at.inputs.get("bias")
    value = value.reshape(y.shape)
    if scale is not None:
        value = value * along_channels(scale, value).to(value.dtype)
    if bias is not None:
        value = value + along_channels(bias, value).to(value.dtype)
    store(activate(value, step.attributes.get("activation")), y, float(step.attributes.get("inverse", 1.0)))


OPERATIONS = (UpConv(),)
