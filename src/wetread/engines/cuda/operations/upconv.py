"""Transposed convolution, with a norm on load, bias and activation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
    wide,
)  # fmt: skip
from wetread.engines.cuda.operations.conv import rounded
from wetread.engines.cuda.operations.geometry import (
    convolve_transposed,
    geometry_of,
    last,
    library_type,
    lifted,
    rounding,
)
from wetread.engines.cuda.operations.site import (
    EIGHT,
    HALVES,
    boxed,
    channels_inside,
    even_voxels,
    kernel_activation,
    runs,
)
from wetread.engines.cuda.operations.statistics import along_channels, normalised_narrow, on_load
from wetread.engines.cuda.program import Program, Shape, Step, TensorSpec
from wetread.kernels import launch, weights
from wetread.kernels.arguments import Three, Tile
from wetread.kernels.hopper import parts, point


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
                lifted(value), lifted(wide(weight)), None, geometry_of(step, tuple(weight.shape)), _more(step)
            )
        _store(y, step, at)

    def library(self, step: Step, at: Arrays) -> None:
        """See `Operation.library`."""
        i, weight, norm = at.inputs, at.inputs["weight"], step.attributes.get("norm")
        eight, value = weight.dtype in EIGHT, i["x"]
        exact = eight or "scale" in i  # sums of integers may pass what a half holds
        kind = torch.float32 if exact else library_type(value)
        if norm is not None:
            value = normalised_narrow(value, i["sums"], i.get("gamma"), i.get("beta"), norm)
            value = activate(value, norm["activation"])
            if eight:
                value = rounded(value, kind, weight.dtype, float(norm.get("inverse", 1.0)))
        held = at.packs.get(
            ("library", step.inputs["weight"], str(kind)),
            lambda: lifted(weight.to(kind)).contiguous(memory_format=torch.channels_last_3d),
        )
        with rounding(exact or bool(step.attributes.get("tf32"))):
            y = convolve_transposed(
                lifted(value.to(kind)), held, None, geometry_of(step, tuple(weight.shape)), _more(step)
            )
        _store(y, step, at)

    def kernels(self, step: Step, program: Program, target: Target) -> list[Kernel]:
        """See `Operation.kernels`: kernel and stride 1 or 2 along D and H, 2 along W."""
        specs = {role: program.spec(name) for role, name in (*step.inputs.items(), *step.outputs.items())}
        x, y, weight, norm = specs["x"], specs["y"], specs["weight"], step.attributes.get("norm")
        if not target.triton or not _doubles(step, weight.shape):
            return []
        operand = weight.torch_dtype if weight.torch_dtype in EIGHT else x.torch_dtype
        applied = [step.attributes.get("activation"), *([] if norm is None else [norm["activation"]])]
        known = all(kernel_activation(a) is not None for a in applied)
        given = x.torch_dtype in HALVES if norm is not None else x.torch_dtype in (operand, torch.uint8)
        inside = channels_inside(x) and y.strides[1] == 1
        if not (known and given and inside and runs(operand, target)) or y.torch_dtype == torch.float64:
            return []
        c, co = weight.shape[:2]
        # one block of K where the input's norm would be computed anew in each
        bk = max(16, 1 << (c - 1).bit_length()) if c <= 128 else 64
        bk = max(bk, 32 // operand.itemsize)
        found = list[Kernel]([{"family": "point"}] if target.hopper and _point(step, specs, operand) else [])
        for rows, bn, taps, warps in (
            (128, 64, 4, 4), (128, 64, 4, 8), (128, 64, 1, 4), (64, 64, 4, 4), (64, 64, 1, 4), (64, 128, 1, 4),
            (256, 64, 4, 8), (128, 64, 2, 4), (128, 128, 4, 8),
        ):  # fmt: skip
            if bn <= max(64, 2 * co):
                found.append(
                    {"family": "upconv", "rows": rows, "bn": bn, "bk": bk, "taps": taps, "warps": warps}
                )
        return found

    def prepare(self, step: Step, kernel: Kernel, at: Arrays) -> Callable[[], None]:
        """See `Operation.prepare`."""
        x, given = last(at.inputs["x"]), step.attributes.get("norm")
        applied = None if given is None else launching.norm_of(at, x.shape[-1], given)
        if kernel["family"] == "point":
            held = launching.packed(step, at, "up point", point.pack_up)
            return partial(
                point.upconv_point, x, held, last(at.outputs["y"]), launching.epilogue_of(step, at), applied
            )
        tile = Tile(
            "gather",
            (1, 1, int(kernel["rows"])),
            int(kernel["bn"]),
            int(kernel["bk"]),
            int(kernel["warps"]),
            2,
        )
        held = launching.packed(step, at, "up", weights.pack_up, half=at.inputs["x"].dtype == torch.uint8)
        return partial(
            launch.upconv, x, held, last(at.outputs["y"]),
            launching.epilogue_of(step, at), norm=applied,
            in_inverse=launching.inverse_of(step), tile=tile, taps=int(kernel["taps"]),
        )  # fmt: skip

    def work(self, step: Step, program: Program) -> Work:
        """See `Operation.work`."""
        weight, x = program.spec(step.inputs["weight"]), program.spec(step.inputs["x"])
        flop = 2 * weight.shape[1]
        for size in (*x.shape, *weight.shape[2:]):
            flop *= size
        return Work(flop, super().work(step, program).bytes)


def _doubles(step: Step, weight: Shape) -> bool:
    """Whether kernel upconv takes it: no two outputs share an input."""
    geometry, size = geometry_of(step, weight), weight[2:]
    plain = geometry.groups == 1 and geometry.dilation == (1, 1, 1) and not any(_more(step))
    padded = any((*geometry.before, *geometry.after))
    return (
        plain and not padded and geometry.stride == geometry.kernel and size[-1] == 2
        and all(k in (1, 2) for k in geometry.kernel)
    )  # fmt: skip


def _point(step: Step, specs: Mapping[str, TensorSpec], operand: torch.dtype) -> bool:
    """Whether Hopper's kernel takes it: float16, 2×2×2, leaky ReLUs."""
    x, y, weight, norm = specs["x"], specs["y"], specs["weight"].shape, step.attributes.get("norm")
    applied = [step.attributes.get("activation"), *([] if norm is None else [norm["activation"]])]
    leaky = all((kernel_activation(a) or ("", 0))[0] == "leaky" for a in applied)
    placed = boxed(x) and even_voxels(x) and boxed(y) and y.torch_dtype in parts.OUTPUTS
    half = x.torch_dtype == operand and weight[2:] == (2, 2, 2) and len(x.shape) == 5
    return leaky and placed and half and point.applies_up(weight[0], weight[1], operand)


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
