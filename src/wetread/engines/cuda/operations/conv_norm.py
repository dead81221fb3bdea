"""A convolution and the norm of its output in one step, for small volumes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import ClassVar

import torch

from wetread.engines.cuda.operations import launching
from wetread.engines.cuda.operations.base import (
    Arrays,
    Kernel,
    Operation,
    Target,
    Tensor,
    Work,
    activate,
    store,
)
from wetread.engines.cuda.operations.conv import Conv
from wetread.engines.cuda.operations.geometry import last
from wetread.engines.cuda.operations.site import Site, boxed_inputs, chip, kernel_activation
from wetread.engines.cuda.operations.statistics import (
    add_sums,
    add_sums_narrow,
    normalised,
    normalised_narrow,
)
from wetread.engines.cuda.program import SUMS_REPLICAS, Program, Step
from wetread.kernels import launch
from wetread.kernels.arguments import Epilogue
from wetread.kernels.candidates import tiles

_CONV = Conv()
MOST = 4096 * 16  # values of a channel block that one program holds in registers


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

    def kernels(self, step: Step, program: Program, target: Target) -> list[Kernel]:
        """See `Operation.kernels`: a product whose K may be split, then one program for a few channels."""
        site = Site.of(convolution(step), program, target) if target.triton else None
        norm = step.attributes["norm"]
        if site is None or kernel_activation(norm["activation"]) is None or site.y.strides[1] != 1:
            return []
        group, voxels = site.weight[0] // int(norm["groups"]), site.layer.voxels
        bc = max(4, group)
        if site.geometry.groups > 1 or group & (group - 1) or bc * voxels > MOST or not site.layer.splits:
            return []
        if site.x.torch_dtype != site.operand and not site.unsigned:
            return []
        warps = 8 if bc * voxels >= 4096 else 4
        # parts are dense, whatever y is; what an instance norm takes away (a bias) may be left out of them
        layer = replace(
            site.layer, boxes=boxed_inputs(convolution(step), program),
            splits=group == 1 or ("bias" not in step.inputs and not site.unsigned),
        )  # fmt: skip
        found = [
            launching.tile_json(t)
            for t in tiles(layer, chip(target))
            if t.family in ("taps", "strided", "gather")
        ]
        every = [{**kernel, "reduce": {"bc": bc, "warps": warps}} for kernel in found]
        return every + [{**kernel, "reduce": {"bc": bc, "warps": 16}} for kernel in found[:2] if warps == 8]

    def scratch_bytes(self, step: Step, program: Program, kernel: Kernel | None) -> int:
        """See `Operation.scratch_bytes`."""
        return launching.scratch_bytes(step, program, kernel)

    def prepare(self, step: Step, kernel: Kernel, at: Arrays) -> Callable[[], None]:
        """See `Operation.prepare`."""
        norm, y = step.attributes["norm"], last(at.outputs["y"])
        tile, carver = launching.tile_of(kernel), launching.Carver(at.scratch)
        parts = carver.take((tile.splits, *y.shape), torch.float32)
        x, _ = launching.inputs_of(step, kernel, at, carver, [])
        epilogue = launching.epilogue_of(convolution(step), at, shifted=True)
        epilogue = Epilogue(epilogue.scale, epilogue.bias if tile.splits == 1 else None)
        product = launching.product(
            convolution(step), at, tile, x, parts if tile.splits > 1 else parts[0], epilogue,
        )  # fmt: skip
        reduce = partial(
            launch.norm_reduce, parts, launching.norm_of(at, y.shape[-1], norm), y,
            inverse=float(step.attributes.get("inverse", 1.0)), bc=int(kernel["reduce"]["bc"]),
            warps=int(kernel["reduce"]["warps"]),
        )  # fmt: skip
        return launching.in_order([product, reduce])

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
