"""Up- and downsampling: each axis is a short weighted sum of input planes, found once on the host."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch

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
)
from wetread.engines.cuda.operations.pool import kernel_types
from wetread.engines.cuda.operations.site import kernel_activation
from wetread.engines.cuda.program import Json, Program, Step


@dataclass(frozen=True)
class Axis:
    """How one axis is resized.

    Attributes:
        size, out: voxels of input and output.
        scale: output over input as the network states it, which rounding of `out` may differ from.
        crop: begin and end of a crop, as shares of the input (``tf_crop_and_resize`` alone).
    """

    size: int
    out: int
    scale: float
    crop: tuple[float, float] = (0.0, 1.0)

    @property
    def same(self) -> bool:
        """Whether the axis stays as it is."""
        return self.size == self.out and self.scale == 1.0 and self.crop == (0.0, 1.0)


def positions(axis: Axis, coordinates: str) -> Tensor:
    """Where each output voxel lies on the input axis, float64 [out] (coordinate_transformation_mode)."""
    i = torch.arange(axis.out, dtype=torch.float64)
    size, out = axis.size, axis.out
    if coordinates == "asymmetric":
        return i / axis.scale
    if coordinates == "align_corners":
        # the length before rounding, as ONNX's reference has it
        length = axis.scale * size
        return i * (size - 1) / (length - 1) if length > 1 else torch.zeros_like(i)
    if coordinates == "tf_crop_and_resize":
        begin, end = axis.crop
        if out > 1:
            return begin * (size - 1) + i * (end - begin) * (size - 1) / (out - 1)
        return torch.full_like(i, 0.5 * (begin + end) * (size - 1))
    if coordinates == "pytorch_half_pixel" and out == 1:
        return torch.zeros_like(i)
    found = (i + 0.5) / axis.scale - 0.5
    if coordinates == "half_pixel_symmetric":
        found += size / 2 * (1 - out / (axis.scale * size))
    return found


def _cubic(d: Tensor, a: float) -> Tensor:
    """Keys' cubic convolution kernel (IEEE ASSP 29, 1981) at distance d."""
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))


def _nearest(at: Tensor, mode: str) -> Tensor:
    at = (at * 1e5).round() / 1e5  # scales are stored in float32: 1.5 / 0.6 - 0.5 is meant to be 2.0
    if mode == "floor":
        return at.floor()
    if mode == "ceil":
        return at.ceil()
    return (at + 0.5).floor() if mode == "round_prefer_ceil" else (at - 0.5).ceil()


def table(axis: Axis, how: Mapping[str, Json]) -> tuple[Tensor, Tensor]:
    """Input voxels and weights of each output voxel along one axis.

    Args:
        axis: sizes and scale.
        how: mode (nearest, linear, cubic), coordinates, nearest_mode, cubic_a, exclude_outside, antialias: the
            attributes of `Resize`.

    Returns:
        int64 [out, taps] and float64 [out, taps]. Beyond the edge the edge voxel is repeated, or left out and the
        other weights raised, with exclude_outside.
    """
    at = positions(axis, str(how.get("coordinates", "half_pixel")))
    mode = how["mode"]
    if mode == "nearest":
        index = _nearest(at, str(how.get("nearest_mode", "round_prefer_floor")))
        return index.long().clamp(0, axis.size - 1)[:, None], torch.ones(axis.out, 1, dtype=torch.float64)
    shrink = min(axis.scale, 1.0) if how.get("antialias") else 1.0
    reach = 1.0 if mode == "linear" else 2.0
    base = at.floor()
    if shrink == 1.0:
        first, taps = (0, 2) if mode == "linear" else (-1, 4)
    else:  # the kernel widens as the image shrinks
        half = math.ceil(reach / shrink)
        first, taps = -half, 2 * half + 1
    index = base[:, None] + torch.arange(first, first + taps, dtype=torch.float64)
    d = (at[:, None] - index).abs() * shrink
    weight = (1 - d).clamp(min=0) if mode == "linear" else _cubic(d, float(how.get("cubic_a", -0.75)))
    if how.get("exclude_outside"):
        weight = weight * ((index >= 0) & (index < axis.size))
    if how.get("exclude_outside") or shrink < 1.0:
        weight = weight / weight.sum(1, keepdim=True)
    return index.long().clamp(0, axis.size - 1), weight


def interpolate(
    x: Tensor, axes: Sequence[tuple[int, Tensor, Tensor]],
) -> Tensor:  # fmt: skip
    """Applies tables on x's device: axis, index [out, taps], weight [out, taps]; in x's type."""
    for axis, index, weight in axes:
        shape = [-1 if k == axis % x.ndim else 1 for k in range(x.ndim)]
        parts = [
            x.index_select(axis, index[:, t]) * weight[:, t].to(x.dtype).reshape(shape)
            for t in range(index.shape[1])
        ]
        if len(parts) == 1:
            x = x.index_select(axis, index[:, 0])
            continue
        x = parts[0]
        for each in parts[1:]:
            x = x + each
    return x


class Resize(Operation):
    """x, [residual] -> y, [sums]: y = act(resize(x) + residual), over the spatial axes.

    Roles: x (N, C, *space), y (N, C, *resized), residual as y; sums as `program.sums_spec`: sum and sum of squares of
    y per (n, c) before rounding.

    Attributes:
        mode: ``nearest``, ``linear`` or ``cubic``, over each axis in turn.
        scales: output over input for each spatial axis, as the network states it; y's size over x's where absent.
        coordinates: ONNX's coordinate_transformation_mode (tf_crop_and_resize goes to the torch step).
        nearest_mode, cubic_a, exclude_outside, antialias: as in ONNX.
        activation: of `base.activate`.
        inverse: of an 8-bit y; an 8-bit x is read as the integers it holds.
    """

    name: ClassVar[str] = "resize"

    def reference(self, step: Step, at: Arrays) -> None:
        """See the class."""
        self._run(step, at, wide(at.inputs["x"]))

    def library(self, step: Step, at: Arrays) -> None:
        """Torch's interpolation where it is the same function, else gathers along each axis."""
        x, y = at.inputs["x"], at.outputs["y"]
        found = None
        if x.dtype in (torch.float16, torch.bfloat16, torch.float32) and x.ndim == 5:
            found = _by_torch(step, x, y)
        if found is None:
            self._run(step, at, wide(x))
        else:
            self._finish(step, at, wide(found))

    def _run(self, step: Step, at: Arrays, x: Tensor) -> None:
        tables = self.tables(step, at)
        self._finish(step, at, interpolate(x, [(k + 2, *t) for k, t in enumerate(tables) if t is not None]))

    @staticmethod
    def _finish(step: Step, at: Arrays, value: Tensor) -> None:
        if "residual" in at.inputs:
            value = value + at.inputs["residual"].to(value.dtype)
        value = activate(value, step.attributes.get("activation"))
        if "sums" in at.outputs:
            v = value.double().flatten(2)
            at.outputs["sums"][0] += torch.stack([v.sum(2), (v * v).sum(2)], -1)
        store(value, at.outputs["y"], float(step.attributes.get("inverse", 1.0)))

    @staticmethod
    def tables(step: Step, at: Arrays) -> list[tuple[Tensor, Tensor] | None]:
        """`table` of each spatial axis on x's device; None where the axis stays as it is. Made once for an engine."""
        x, y = at.inputs["x"], at.outputs["y"]
        scales = step.attributes.get("scales") or [
            o / s for s, o in zip(x.shape[2:], y.shape[2:], strict=True)
        ]
        found: list[tuple[Tensor, Tensor] | None] = []
        for size, out, scale in zip(x.shape[2:], y.shape[2:], scales, strict=True):
            axis = Axis(int(size), int(out), float(scale))
            found.append(None if axis.same else device_table(at, axis, step.attributes, x.device))
        return found

    def kernels(self, step: Step, program: Program, target: Target) -> list[Kernel]:
        """Doubling by its constant weights where it applies; else tables; several tiles of each."""
        from wetread.kernels.resize import applies

        names = [
            step.inputs["x"],
            step.outputs["y"],
            *([step.inputs["residual"]] if "residual" in step.inputs else []),
        ]
        specs = [program.spec(n) for n in names]
        a = step.attributes
        if (
            not target.triton
            or kernel_activation(a.get("activation")) is None
            or not applies([s.shape for s in specs], [s.strides for s in specs])
            or not kernel_types(target, *(s.dtype for s in specs))
            or a.get("antialias")
        ):  # fmt: skip
            return []
        found: list[Kernel] = []
        if doubles(step, specs[0].shape, specs[1].shape):
            found += [{"family": "double", "rows": r, "warps": w} for r, w in ((32, 4), (64, 8), (16, 2))]
        return found + [
            {"family": "table", "rows": r, "warps": w} for r, w in ((32, 4), (64, 4), (16, 2), (128, 8))
        ]

    def prepare(self, step: Step, kernel: Kernel, at: Arrays) -> Callable[[], None]:
        """See `wetread.kernels.resize`."""
        from wetread.kernels import resize

        x, y, a = at.inputs["x"], at.outputs["y"], step.attributes
        name, slope = kernel_activation(a.get("activation")) or ("leaky", 1.0)
        finish = resize.Finish(
            at.inputs.get("residual"), at.outputs.get("sums"), name, slope, float(a.get("inverse", 1.0))
        )
        rows, warps = int(kernel["rows"]), int(kernel["warps"])
        if kernel["family"] == "double":
            linear = a["mode"] == "linear"
            return lambda: resize.double(x, y, finish, linear=linear, rows=rows, warps=warps)
        packed = self._kernel_tables(step, at)
        return lambda: resize.by_table(x, y, packed, finish, rows=rows, warps=warps)

    def _kernel_tables(self, step: Step, at: Arrays) -> Any:
        """Index int32 and weight float32, [taps, out] for each axis, as the kernel reads them."""
        x, y = at.inputs["x"], at.outputs["y"]
        found = []
        for k, each in enumerate(self.tables(step, at)):
            if each is None:
                n = x.shape[k + 2]
                index, weight = torch.arange(n, device=x.device)[:, None], torch.ones(n, 1, device=x.device)
            else:
                index, weight = each
            key = (
                "resize",
                "kernel",
                k,
                x.shape[2:],
                y.shape[2:],
                repr(sorted(step.attributes.items())),
                x.device,
            )
            made = (index.T.int().contiguous(), weight.T.float().contiguous())
            found.append(at.packs.get(key, partial(_same, made)))
        return found

    def work(self, step: Step, program: Program) -> Work:
        """Two operations for each tap of each output voxel, one axis after the other would need less."""
        taps = {"nearest": 0, "linear": 2, "cubic": 4}[step.attributes["mode"]]
        y = program.spec(step.outputs["y"])
        return Work(2 * taps * math.prod(y.shape), super().work(step, program).bytes)


def _same(made: Any) -> Any:
    return made


def device_table(
    at: Arrays, axis: Axis, how: Mapping[str, Json], device: torch.device
) -> tuple[Tensor, Tensor]:
    """`table` on a device, kept among the engine's packs so that a captured run finds it there."""
    known = ("mode", "coordinates", "nearest_mode", "cubic_a", "exclude_outside", "antialias")
    key = ("resize", axis, tuple((k, how.get(k)) for k in known), str(device))

    def make() -> tuple[Tensor, Tensor]:
        index, weight = table(axis, how)
        return index.to(device), weight.to(device)

    made: tuple[Tensor, Tensor] = at.packs.get(key, make)
    return made


def doubles(step: Step, size: Sequence[int], out: Sequence[int]) -> bool:
    """Whether each axis doubles with the weights (1/4, 3/4), or with plain repetition."""
    a = step.attributes
    if len(size) != 5 or any(o != 2 * s for s, o in zip(size[2:], out[2:], strict=True)):
        return False
    if any(float(s) != 2.0 for s in a.get("scales") or ()):
        return False
    coordinates = a.get("coordinates", "half_pixel")
    if a["mode"] == "linear":
        return coordinates in ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric") and not a.get(
            "exclude_outside"
        )
    index, _ = table(Axis(5, 10, 2.0), a)
    return bool(a["mode"] == "nearest") and index[:, 0].tolist() == [i // 2 for i in range(10)]


def _by_torch(step: Step, x: Tensor, y: Tensor) -> Tensor | None:
    """Torch's own interpolation of 3D maps, where it is the same function."""
    a = step.attributes
    exact = all(
        float(s) == o / n for s, o, n in zip(a.get("scales") or (), y.shape[2:], x.shape[2:], strict=False)
    )
    f = torch.nn.functional.interpolate
    size = list(y.shape[2:])
    if a["mode"] == "linear" and exact and not a.get("exclude_outside") and not a.get("antialias"):
        coordinates = a.get("coordinates", "half_pixel")
        if coordinates == "align_corners":
            return f(x, size, mode="trilinear", align_corners=True)
        if coordinates in ("half_pixel", "half_pixel_symmetric") or (
            coordinates == "pytorch_half_pixel" and min(size) > 1
        ):
            return f(x, size, mode="trilinear", align_corners=False)
    if a["mode"] == "nearest" and doubles(step, x.shape, y.shape):
        return f(x, size, mode="nearest")
    return None


OPERATIONS = (Resize(),)
