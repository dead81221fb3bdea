"""A convolution and the norm of its output in one step, for small volumes."""

from __future__ import annotations

from typing import ClassVar

import torch

from wetread.engines.cuda.operations.base import Arrays, Operation, Tensor, Work, activate, store
from wetread.engines.cuda.operations.conv import Conv
from wetread.engines.cuda.operations.statistics import (
    add_sums,
    add_sums_narrow,
    normalised,
    normalised_narrow,
)
from wetread.engines.cuda.program import SUMS_REPLICAS, Program, Step

_CONV = Conv()


class ConvNorm(Operation):
    """y = act(norm(conv(x, weight) · scale + bias)), the norm's statistics its own.

    Roles: x, x2, weight, scale, bias as in conv; gamma, beta [C] float32; y. Attributes: stride, dilation, pads,
    groups, inverse as in conv; norm {eps, groups, activation}.
    """

    name: ClassVar[str] = "conv_norm"

    def reference(self, step: Step, at: Arrays) -> None:
        """See `Operation.reference`."""
        y = at.outputs["y"]
        first = convolution(step)
        value = torch.empty(y.shape, dtype=_wide_type(at), device=y.device)
        _CONV.reference(first, Arrays(at.inputs, {"y": value}))
        sums = _sums_like(value)
        add_sums(sums, value)
        norm = step.attributes["norm"]
        value = normalised(value, sums, at.inputs.get("gamma"), at.inputs.get("beta"), norm)
        store(activate(value, norm["activation"]), y, float(step.attributes.get("inverse", 1.0)))

    def library(self, step: Step, at: Arrays) -> None:
        """See `Operation.library`."""
        y, norm = at.outputs["y"], step.attributes["norm"]
        value = _CONV.product(convolution(step), Arrays(at.inputs, at.outputs, packs=at.packs)).reshape(
            y.shape
        )
        sums = _sums_like(value)
        add_sums_narrow(sums, value)
        value = normalised_narrow(value, sums, at.inputs.get("gamma"), at.inputs.get("beta"), norm)
        store(activate(value, norm["activation"]), y, float(step.attributes.get("inverse", 1.0)))

    def work(self, step: Step, program: Program) -> Work:
        """See `Operation.work`."""
        return _CONV.work(step, program)


def convolution(step: Step) -> Step:
    """The step's convolution alone, its result neither normalised nor quantised."""
    kept = {k: v for k, v in step.attributes.items() if k not in ("norm", "inverse")}
    inputs = {k: v for k, v in step.inputs.items() if k not in ("gamma", "beta")}
    return Step(step.name, "conv", inputs, step.outputs, kept, step.nodes, step.kernel)


def _wide_type(at: Arrays) -> torch.dtype:
    return torch.float64 if at.inputs["x"].dtype == torch.float64 else torch.float32


def _sums_like(value: Tensor) -> Tensor:
    return torch.zeros(SUMS_REPLICAS, *value.shape[:2], 2, dtype=torch.float64, device=value.device)


OPERATIONS = (ConvNorm(),)
