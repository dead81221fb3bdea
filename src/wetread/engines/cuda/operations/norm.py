"""Instance and group norms from their sums, and the sums of a tensor whose producer does not take them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import torch

from wetread.engines.cuda.operations.base import Arrays, Kernel, Operation, Target, activate, store, wide
from wetread.engines.cuda.operations.geometry import last
from wetread.engines.cuda.operations.launching import norm_of
from wetread.engines.cuda.operations.site import EIGHT, channels_inside, even_rows, kernel_activation, runs
from wetread.engines.cuda.operations.statistics import (
    add_sums,
    add_sums_narrow,
    normalised,
    normalised_narrow,
)  # fmt: skip
from wetread.engines.cuda.program import Program, Step, TensorSpec
from wetread.kernels import launch


class Norm(Operation):
    """y = act(norm(x) + residual), or + norm(residual) where the residual has sums of its own.

    Roles: x, sums [replicas, N, C, 2] float64, gamma, beta [C] float32, residual, residual_sums, residual_gamma,
    residual_beta; y. Attributes: eps, groups (C for an instance norm), activation, inverse (1 / scale of an 8-bit
    y). Both norms have the same eps and groups.
    """

    name: ClassVar[str] = "norm"

    def reference(self, step: Step, at: Arrays) -> None:
        """See `Operation.reference`."""
        i, a = at.inputs, step.attributes
        value = normalised(i["x"], i["sums"], i.get("gamma"), i.get("beta"), a)
        if "residual_sums" in i:
            value = value + normalised(
                i["residual"], i["residual_sums"], i.get("residual_gamma"), i.get("residual_beta"), a
            )
        elif "residual" in i:
            value = value + wide(i["residual"])
        store(activate(value, a.get("activation")), at.outputs["y"], float(a.get("inverse", 1.0)))

    def library(self, step: Step, at: Arrays) -> None:
        """See `Operation.library`."""
        i, a = at.inputs, step.attributes
        value = normalised_narrow(i["x"], i["sums"], i.get("gamma"), i.get("beta"), a)
        if "residual_sums" in i:
            value += normalised_narrow(
                i["residual"], i["residual_sums"], i.get("residual_gamma"), i.get("residual_beta"), a
            )
        elif "residual" in i:
            value += i["residual"].to(value.dtype)
        store(activate(value, a.get("activation")), at.outputs["y"], float(a.get("inverse", 1.0)))

    def kernels(self, step: Step, program: Program, target: Target) -> list[Kernel]:
        """See `Operation.kernels`: values and warps of a program's step, and steps."""
        specs = {role: program.spec(name) for role, name in (*step.inputs.items(), *step.outputs.items())}
        maps = [specs[role] for role in ("x", "residual", "y") if role in specs]
        known = kernel_activation(step.attributes.get("activation")) is not None
        if not target.triton or not known or not all(_takes(spec, target) for spec in maps):
            return []
        block = _block(specs["x"].shape[1])
        return [{"family": "norm_apply", "rows": values // block, "loop": loop, "warps": warps}
                for values, loop, warps in ((8192, 1, 8), (4096, 1, 8), (4096, 1, 4), (2048, 1, 4))]  # fmt: skip

    def prepare(self, step: Step, kernel: Kernel, at: Arrays) -> Callable[[], None]:
        """See `Operation.prepare`."""
        x, a, residual = last(at.inputs["x"]), step.attributes, at.inputs.get("residual")
        c = x.shape[-1]
        roles = ("residual_sums", "residual_gamma", "residual_beta")
        second = {"eps": a["eps"], "groups": a["groups"]}
        return partial(
            launch.norm_apply, x, norm_of(at, c, a), last(at.outputs["y"]),
            residual=None if residual is None else last(residual),
            residual_norm=norm_of(at, c, second, roles) if "residual_sums" in at.inputs else None,
            inverse=float(a.get("inverse", 1.0)), rows=int(kernel["rows"]), loop=int(kernel["loop"]),
            warps=int(kernel["warps"]),
        )  # fmt: skip


class Stats(Operation):
    """sums += (sum, sum of squares) of x for each window and channel. Roles: x; sums."""

    name: ClassVar[str] = "stats"

    def reference(self, step: Step, at: Arrays) -> None:
        """See `Operation.reference`."""
        add_sums(at.outputs["sums"], wide(at.inputs["x"]))

    def library(self, step: Step, at: Arrays) -> None:
        """See `Operation.library`."""
        add_sums_narrow(at.outputs["sums"], at.inputs["x"])

    def kernels(self, step: Step, program: Program, target: Target) -> list[Kernel]:
        """See `Operation.kernels`: values and warps of a program's tile, and tiles."""
        x = program.spec(step.inputs["x"])
        if not target.triton or not _takes(x, target) or x.torch_dtype in EIGHT:
            return []
        block = _block(x.shape[1])
        return [{"family": "norm_sums", "rows": values // block, "parts": parts, "warps": warps}
                for values, parts, warps in ((2048, 4, 4), (4096, 4, 8), (4096, 1, 4))]  # fmt: skip

    def prepare(self, step: Step, kernel: Kernel, at: Arrays) -> Callable[[], None]:
        """See `Operation.prepare`."""
        return partial(
            launch.norm_sums, last(at.inputs["x"]), at.outputs["sums"], rows=int(kernel["rows"]),
            parts=int(kernel["parts"]), warps=int(kernel["warps"]),
        )  # fmt: skip


def _block(channels: int) -> int:
    """Channels of a program: a power of two from 16 to 64."""
    return max(16, min(64, 1 << (channels - 1).bit_length()))


def _takes(spec: TensorSpec, target: Target) -> bool:
    if spec.torch_dtype in (torch.float64, torch.bool) or not 3 <= len(spec.shape) <= 5:
        return False
    eight = spec.torch_dtype == torch.float8_e4m3fn
    return channels_inside(spec) and even_rows(spec) and (not eight or runs(spec.torch_dtype, target))


OPERATIONS = (Norm(), Stats())
