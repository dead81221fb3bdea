"""Pooling over voxels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar, cast

import torch

from wetread.engines.cuda.operations.base import Arrays, Kernel, Operation, Target, Tensor, Work, store, wide
from wetread.engines.cuda.program import Program, Step

Ints = Sequence[int]
KERNEL_TYPES = ("float16", "bfloat16", "float32", "int8", "uint8", "float8_e4m3fn")
"""Types that the Triton kernels of pooling, resizing and pointwise chains read and write."""


def _fitted(x: Tensor, pads: Ints, need: Ints, value: float) -> Tensor:
    """Pads the spatial axes at their beginnings, and at their ends to at least `need` voxels."""
    rank = len(need)
    widths: list[int] = []
    for i in reversed(range(rank)):
        widths += [pads[i], max(pads[i + rank], need[i] - x.shape[x.ndim - rank + i] - pads[i])]
    return torch.nn.functional.pad(x, widths, value=value) if any(widths) else x


def _need(out: Ints, kernel: Ints, stride: Ints, dilation: Ints) -> list[int]:
    return [(n - 1) * s + (k - 1) * d + 1 for n, k, s, d in zip(out, kernel, stride, dilation, strict=True)]


def _windows(x: Tensor, out: Ints, kernel: Ints, stride: Ints, dilation: Ints) -> list[Tensor]:
    """For each offset in the kernel, the padded voxels that it meets."""
    found = []
    for at in itertools.product(*(range(k) for k in kernel)):
        index: list[slice] = []
        for a, n, s, d in zip(at, out, stride, dilation, strict=True):
            index.append(slice(a * d, a * d + (n - 1) * s + 1, s))
        found.append(x[(..., *index)])
    return found


def max_pool(x: Tensor, out: Ints, kernel: Ints, stride: Ints, dilation: Ints, pads: Ints) -> Tensor:
    """Largest value of each window; padding never wins.

    Args:
        x: (N, C, *space), any type.
        out: spatial sizes of the result, which say whether sizes are rounded up.
        kernel, stride, dilation: for each axis.
        pads: begins, then ends; ends grow where a window reaches beyond them.
    """
    low = -math.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
    windows = _windows(
        _fitted(x, pads, _need(out, kernel, stride, dilation), low), out, kernel, stride, dilation
    )
    found = windows[0]
    for each in windows[1:]:
        found = torch.maximum(found, each)
    return found


def average_pool(
    x: Tensor, out: Ints, kernel: Ints, stride: Ints, dilation: Ints, pads: Ints, count_pads: bool = False
) -> Tensor:
    """Mean of each window; `max_pool` has the arguments.

    With `count_pads` the given padding counts as voxels; what rounding sizes up adds never does.
    """
    need = _need(out, kernel, stride, dilation)
    ones = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
    if count_pads:
        ones = _fitted(_fitted(ones, pads, [0] * len(need), 1.0), [0] * len(pads), need, 0.0)
    else:
        ones = _fitted(ones, pads, need, 0.0)
    total, count = (
        _sum(_windows(v, out, kernel, stride, dilation)) for v in (_fitted(x, pads, need, 0.0), ones)
    )
    return total / count


def _sum(terms: Sequence[Tensor]) -> Tensor:
    total = terms[0].clone()
    for each in terms[1:]:
        total += each
    return total


class Pool(Operation):
    """x -> y: pooling over the spatial axes.

    Roles: x and y are (N, C, *space), y of the pooled size, which says whether sizes are rounded up.

    Attributes:
        mode: ``max``, ``average``, ``global_average`` or ``global_max``; the rest only for the first two.
        kernel, stride, dilation: for each axis.
        pads: begins, then ends.
        count_include_pad: whether padding counts in averages.
        inverse: an 8-bit y holds the result times it, 1 where absent; an 8-bit x is read as the integers it holds.
    """

    name: ClassVar[str] = "pool"

    def reference(self, step: Step, at: Arrays) -> None:
        """See the class."""
        self._run(step, at, wide(at.inputs["x"]))

    def library(self, step: Step, at: Arrays) -> None:
        """Torch's pooling in x's own type where it has one of this kind, else the reference."""
        x, y = at.inputs["x"], at.outputs["y"]
        a = step.attributes
        if x.dtype not in (torch.float16, torch.bfloat16, torch.float32):
            self.reference(step, at)
            return
        if (
            a["mode"] in ("max", "average")
            and x.ndim == 5
            and not (a["mode"] == "average" and max(a["dilation"]) > 1)
        ):
            found = _by_torch(step, x, y.shape[2:])
            if found is not None:
                store(found, y, float(a.get("inverse", 1.0)))
                return
        # torch adds half types in float32 where it takes the mean of a whole volume
        self._run(step, at, wide(x) if a["mode"] == "average" else x)

    @staticmethod
    def _run(step: Step, at: Arrays, x: Tensor) -> None:
        a, y = step.attributes, at.outputs["y"]
        space = tuple(range(2, x.ndim))
        if a["mode"] == "global_average":
            found = x.mean(space, keepdim=True)
        elif a["mode"] == "global_max":
            found = x.amax(space, keepdim=True)
        else:
            window = (y.shape[2:], a["kernel"], a["stride"], a["dilation"], a["pads"])
            if a["mode"] == "max":
                found = max_pool(x, *window)
            else:
                found = average_pool(x, *window, bool(a.get("count_include_pad", False)))
        store(found, y, float(a.get("inverse", 1.0)))

    def kernels(self, step: Step, program: Program, target: Target) -> list[Kernel]:
        """Tiles of rows of voxels by channels; several splits of the volume for global pooling."""
        x, y = (program.spec(n) for n in (step.inputs["x"], step.outputs["y"]))
        from wetread.kernels.pool import applies

        if (
            not target.triton
            or not applies(x.shape, x.strides, y.strides)
            or not kernel_types(target, x.dtype, y.dtype)
        ):
            return []
        if step.attributes["mode"].startswith("global"):
            return [
                {"family": "global", "rows": rows, "warps": warps}
                for rows, warps in ((32, 4), (128, 4), (256, 8))
            ]
        return [
            {"family": "pool", "box": list(box), "warps": warps}
            for box, warps in (
                ((2, 4, 8), 4),
                ((1, 4, 8), 4),
                ((1, 1, 32), 4),
                ((2, 4, 8), 8),
                ((4, 4, 8), 8),
                ((1, 2, 8), 2),
            )
        ]

    def scratch_bytes(self, step: Step, program: Program, kernel: Kernel | None) -> int:
        """The parts of a volume's sums or maxima, float32 [N, parts, C]."""
        if kernel is None or kernel["family"] != "global":
            return 0
        from wetread.kernels.pool import parts

        x = program.spec(step.inputs["x"])
        return 4 * x.shape[0] * x.shape[1] * parts(math.prod(x.shape[2:]), int(kernel["rows"]))

    def prepare(self, step: Step, kernel: Kernel, at: Arrays) -> Callable[[], None]:
        """See `wetread.kernels.pool`."""
        from wetread.kernels import pool

        x, y, a = at.inputs["x"], at.outputs["y"], step.attributes
        inverse, warps = float(a.get("inverse", 1.0)), int(kernel["warps"])
        largest = str(a["mode"]).endswith("max")
        if kernel["family"] == "global":
            return partial(
                pool.global_pool,
                x,
                y,
                at.scratch,
                largest=largest,
                inverse=inverse,
                rows=int(kernel["rows"]),
                warps=warps,
            )
        window = pool.Window(*(tuple(map(int, a[k])) for k in ("kernel", "stride", "dilation", "pads")))
        d, h, w = map(int, kernel["box"])
        return partial(
            pool.pool, x, y, window, largest=largest, count_pads=bool(a.get("count_include_pad", False)),
            inverse=inverse, box=(d, h, w), warps=warps,
        )  # fmt: skip

    def work(self, step: Step, program: Program) -> Work:
        """One operation for each voxel of each window, and each tensor once across the bus."""
        least = super().work(step, program)
        x, y = (program.spec(n) for n in (step.inputs["x"], step.outputs["y"]))
        if step.attributes["mode"].startswith("global"):
            return Work(math.prod(x.shape), least.bytes)
        return Work(math.prod(y.shape) * math.prod(step.attributes["kernel"]), least.bytes)


def kernel_types(target: Target, *names: str) -> bool:
    """Whether Triton's kernels take these types on the target (E4M3 from sm_89 on)."""
    eight = "float8_e4m3fn" not in names or target.interpreted or target.capability >= (8, 9)
    return eight and all(name in KERNEL_TYPES for name in names)


def _by_torch(step: Step, x: Tensor, out: Ints) -> Tensor | None:
    """Torch's own pooling of 3D maps, where padding is symmetric, at most half the kernel, and sizes agree."""
    a = step.attributes
    kernel, stride, dilation, pads = (list(a[k]) for k in ("kernel", "stride", "dilation", "pads"))
    if pads[:3] != pads[3:] or any(2 * p > k for p, k in zip(pads[:3], kernel, strict=True)):
        return None
    sizes = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(x.shape[2:], pads[:3], dilation, kernel, stride, strict=True)
    ]
    if sizes != list(out):
        return None
    f = torch.nn.functional
    if a["mode"] == "max":
        return cast(Tensor, f.max_pool3d(x, kernel, stride, pads[:3], dilation))
    return cast(
        Tensor,
        f.avg_pool3d(x, kernel, stride, pads[:3], count_include_pad=bool(a.get("count_include_pad", False))),
    )


OPERATIONS = (Pool(),)
