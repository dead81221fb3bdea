"""Launches of convolution steps: weights packed once, scratch carved, one function that runs the kernels in order."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch

from wetread.engines.cuda.operations.base import Arrays, Kernel, Tensor
from wetread.engines.cuda.operations.geometry import geometry_of, last
from wetread.engines.cuda.operations.site import EIGHT, HALVES, kernel_activation
from wetread.engines.cuda.program import Json, Program, Step
from wetread.errors import EngineError
from wetread.kernels import launch, weights
from wetread.kernels.arguments import Epilogue, Family, Norm, Three, Tile
from wetread.kernels.hopper import first, march, march2, point

Launch = Callable[[], None]
ALIGNED = 256  # bytes


def in_order(launches: Sequence[Launch]) -> Launch:
    """One function that runs them all."""
    if len(launches) == 1:
        return launches[0]
    kept = tuple(launches)

    def run() -> None:
        for each in kept:
            each()

    return run


def tile_json(tile: Tile) -> dict[str, Json]:
    """A tile as a plan's data."""
    return {
        "family": tile.family, "shape": list(tile.shape), "bn": tile.bn, "bk": tile.bk, "warps": tile.warps,
        "stages": tile.stages, "splits": tile.splits,
    }  # fmt: skip


def tile_of(kernel: Kernel) -> Tile:
    """A tile from a plan's data."""
    d, h, w = (int(v) for v in kernel["shape"])
    family = cast(Family, kernel["family"])
    return Tile(family, (d, h, w), *(int(kernel[k]) for k in ("bn", "bk", "warps", "stages", "splits")))


class Carver:
    """Hands out parts of a step's scratch, one after the other."""

    def __init__(self, scratch: Tensor | None) -> None:
        self.scratch, self.used = scratch, 0

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A contiguous tensor.

        Raises:
            EngineError: the scratch is too small.
        """
        size = math.prod(shape) * dtype.itemsize
        if self.scratch is None or self.used + size > self.scratch.numel():
            raise EngineError(f"a kernel's scratch does not hold {tuple(shape)} of {dtype}")
        part = self.scratch[self.used : self.used + size].view(dtype).view(*shape)
        self.used += aligned(size)
        return part


def aligned(size: int) -> int:
    """The next multiple of what tensors start at."""
    return -(-size // ALIGNED) * ALIGNED


def apart_shape(n: int, size: Three, c: int, family: str) -> tuple[int, int, int, int, int]:
    """Storage of an input normalised before its convolution; rows of family pairs have a voxel at both ends."""
    d, h, w = size
    return n, d, h, w + 2 * (family == "pairs"), c


def scratch_bytes(step: Step, program: Program, kernel: Kernel | None) -> int:
    """Scratch of a conv or conv_norm step."""
    if kernel is None:
        return 0
    total = 0
    if "apart" in kernel:
        x, weight = program.spec(step.inputs["x"]), program.spec(step.inputs["weight"])
        width = weight.torch_dtype.itemsize if weight.torch_dtype in EIGHT else x.torch_dtype.itemsize
        size = cast(Three, (1,) * (5 - len(x.shape)) + tuple(x.shape[2:]))
        total += aligned(math.prod(apart_shape(x.shape[0], size, x.shape[1], str(kernel["family"]))) * width)
    splits = int(kernel.get("splits", 1))
    if splits > 1 or "reduce" in kernel:
        total += aligned(splits * math.prod(program.spec(step.outputs["y"]).shape) * 4)
    return total


def norm_of(
    at: Arrays, channels: int, norm: Mapping[str, Json], names: Sequence[str] = ("sums", "gamma", "beta")
) -> Norm:
    """The norm whose tensors have these roles, as kernels take it; absent gamma is one, absent beta zero."""
    sums, gamma, beta = (at.inputs.get(n) for n in names)
    device = at.outputs["y"].device
    name, slope = kernel_activation(norm.get("activation")) or ("", 0.0)

    def constant(value: float) -> Tensor:
        key = ("constant", value, channels, str(device))
        made: Tensor = at.packs.get(key, lambda: torch.full((channels,), value, device=device))
        return made

    groups = int(norm["groups"])
    return Norm(
        at.outputs["y"] if sums is None else sums, constant(1.0) if gamma is None else gamma.float(),
        constant(0.0) if beta is None else beta.float(), float(norm["eps"]), slope,
        0 if groups == channels else groups, name,
    )  # fmt: skip


def epilogue_of(step: Step, at: Arrays, *, split: bool = False, shifted: bool = False) -> Epilogue:
    """What follows the product.

    Args:
        step: of a convolution.
        at: its tensors.
        split: the scale was multiplied in before.
        shifted: a uint8 input was taken as value − 128.
    """
    name, slope = kernel_activation(step.attributes.get("activation")) or ("", 0.0)
    residual = at.inputs.get("residual")
    bias, scale = at.inputs.get("bias"), None if split else at.inputs.get("scale")
    if shifted and at.inputs["x"].dtype == torch.uint8:
        given = at.inputs.get("scale"), bias
        key = (
            step.inputs["weight"],
            "unsigned bias",
            *(step.inputs.get(r) for r in ("scale", "bias")),
            str(bias is None),
        )
        bias = at.packs.get(key, lambda: weights.unsigned_bias(at.inputs["weight"], *given))
    return Epilogue(
        None if scale is None else scale.float(), None if bias is None else bias.float(), slope,
        at.outputs.get("sums"), float(step.attributes.get("inverse", 1.0)),
        None if residual is None else last(residual), name,
    )  # fmt: skip


def operand_of(step: Step, at: Arrays) -> torch.dtype:
    """The type of the product's operands."""
    weight, x, y = at.inputs["weight"], at.inputs["x"], at.outputs["y"]
    if weight.dtype in EIGHT:
        return weight.dtype
    return y.dtype if x.dtype not in HALVES and y.dtype in HALVES else x.dtype


def packed(
    step: Step, at: Arrays, how: str, make: Callable[[Tensor], Any], *constants: object, half: bool = False
) -> Any:
    """The step's weight in the operand's type, packed by `make`; made once for an engine.

    With `half` the weight of an 8-bit input becomes float16, which holds the integers exactly.
    """
    kind = operand_of(step, at)
    if half and at.inputs["x"].dtype in EIGHT:
        kind = torch.float16
    weight = at.inputs["weight"]
    while weight.ndim < 5:
        weight = weight.unsqueeze(2)
    key = (step.inputs["weight"], how, str(kind), str(weight.device), *constants)
    return at.packs.get(key, lambda: make(weight.to(kind)))


def inverse_of(step: Step) -> float:
    """1 / scale of the 8-bit operand that a norm on load makes."""
    norm = step.attributes.get("norm") or {}
    return float(norm.get("inverse", 1.0))


def prepare_tiled(step: Step, kernel: Kernel, at: Arrays) -> Launch:
    """Families gather, taps, planes, pairs and march, with a norm apart or K split where the kernel says so."""
    tile, carver, launches = tile_of(kernel), Carver(at.scratch), list[Launch]()
    x, norm = inputs_of(step, kernel, at, carver, launches)
    y = last(at.outputs["y"])
    epilogue = epilogue_of(step, at, split=tile.splits > 1, shifted=tile.family != "march")
    if tile.splits > 1:
        parts = carver.take((tile.splits, *y.shape), torch.float32)
        launches.append(product(step, at, tile, x, parts, Epilogue(at.inputs.get("scale"))))
        launches.append(partial(launch.reduce_parts, parts, y, epilogue))
    else:
        launches.append(product(step, at, tile, x, y, epilogue, norm=norm))
    return in_order(launches)


def inputs_of(
    step: Step, kernel: Kernel, at: Arrays, carver: Carver, launches: list[Launch]
) -> tuple[list[Tensor], Norm | None]:
    """The inputs of the product; a norm on load becomes a launch before it where the kernel has it apart."""
    x = [last(at.inputs[role]) for role in ("x", "x2") if role in at.inputs]
    given = step.attributes.get("norm") if step.op == "conv" else None
    if given is None:
        return x, None
    n, d, h, w, c = x[0].shape
    norm = norm_of(at, c, given)
    if "apart" not in kernel:
        return x, norm
    family, apart = str(kernel["family"]), kernel["apart"]
    held = carver.take(apart_shape(n, (d, h, w), c, family), operand_of(step, at))
    if family == "pairs":
        held = held[:, :, :, 1:-1]
    launches.append(
        partial(
            launch.norm_apply, x[0], norm, held, inverse=inverse_of(step), rows=int(apart["rows"]),
            warps=int(apart["warps"]),
        )
    )  # fmt: skip
    return [held], None


def product(
    step: Step, at: Arrays, tile: Tile, x: list[Tensor], out: Tensor, epilogue: Epilogue, *,
    norm: Norm | None = None,
) -> Launch:  # fmt: skip
    """The launch of the convolution itself into y or into parts."""
    geometry = geometry_of(step, tuple(at.inputs["weight"].shape))
    channels = tuple(t.shape[-1] for t in x)
    if tile.family == "march":
        held = packed(step, at, "march", lambda w: [march.pack(w, channels, tile.bn)], channels, tile.bn)
    else:
        each = weights.pack_pairs if tile.family == "pairs" else weights.pack_rows
        held = packed(
            step,
            at,
            each.__name__,
            lambda w: [each(p.contiguous()) for p in w.split(list(channels), 1)],
            channels,
        )
    flat = geometry.point and tile.shape[0] == tile.shape[1] == 1
    if flat and all(_even(t) for t in (*x, out, *([] if epilogue.residual is None else [epilogue.residual]))):
        x, out = [_one_row(t) for t in x], _one_row(out)
        residual = None if epilogue.residual is None else _one_row(epilogue.residual)
        epilogue = replace(epilogue, residual=residual)
    return partial(
        launch.conv3d, x, held, out, tile, epilogue, geometry=geometry, norm=norm, in_inverse=inverse_of(step)
    )


def _even(x: Tensor) -> bool:
    size, strides = x.shape[-4:-1], x.stride()[-4:-1]
    return all(strides[i] == size[i + 1] * strides[i + 1] or size[i] == 1 for i in range(2))


def _one_row(x: Tensor) -> Tensor:
    """[.., D, H, W, C] of evenly spaced voxels as [.., 1, 1, D·H·W, C]."""
    *rest, d, h, w, c = x.shape
    v, step = d * h * w, x.stride(-2)
    return torch.as_strided(
        x, (*rest, 1, 1, v, c), (*x.stride()[:-4], v * step, v * step, step, x.stride(-1)), x.storage_offset()
    )


def prepare_few(step: Step, kernel: Kernel, at: Arrays) -> Launch:
    """Family few: the first layer."""
    geometry = geometry_of(step, tuple(at.inputs["weight"].shape))
    return partial(
        launch.conv_few, last(at.inputs["x"]), packed(step, at, "few", weights.pack_few, half=True),
        last(at.outputs["y"]), epilogue_of(step, at), rows=int(kernel["rows"]), bn=int(kernel["bn"]), geometry=geometry,
        border=bool(kernel["border"]), across=bool(kernel["across"]), warps=int(kernel["warps"]),
    )  # fmt: skip


def prepare_march2(step: Step, kernel: Kernel, at: Arrays) -> Launch:
    """Family march2: 3×3×3 at stride 2 on Hopper."""
    outputs = int(kernel["outputs"])
    held = packed(step, at, "march2", lambda w: march2.pack(w, outputs), outputs)
    return partial(
        march2.conv3d_march2,
        last(at.inputs["x"]),
        held,
        last(at.outputs["y"]),
        epilogue_of(step, at),
        outputs,
    )


def prepare_first(step: Step, kernel: Kernel, at: Arrays) -> Launch:
    """Family first: 3×3×3 of one channel on Hopper."""
    return partial(
        first.conv3d_first, last(at.inputs["x"]), packed(step, at, "first", first.pack), last(at.outputs["y"]),
        epilogue_of(step, at),
    )  # fmt: skip


def prepare_point(step: Step, kernel: Kernel, at: Arrays) -> Launch:
    """Family point: a head on Hopper."""
    x, given, y = last(at.inputs["x"]), step.attributes.get("norm"), at.outputs["y"]
    while y.ndim < 5:
        y = y.unsqueeze(2)
    return partial(
        point.head_point, x, packed(step, at, "point", point.pack_head), epilogue_of(step, at).bias, y,
        None if given is None else norm_of(at, x.shape[-1], given), bool(step.attributes.get("softmax")),
    )  # fmt: skip


def prepare_depthwise(step: Step, kernel: Kernel, at: Arrays) -> Launch:
    """Family depthwise."""
    geometry = geometry_of(step, tuple(at.inputs["weight"].shape))
    return partial(
        launch.conv_depthwise, last(at.inputs["x"]), packed(step, at, "depthwise", weights.pack_depthwise),
        last(at.outputs["y"]), epilogue_of(step, at), geometry=geometry, rows=int(kernel["rows"]), bn=int(kernel["bn"]),
        warps=int(kernel["warps"]),
    )  # fmt: skip


def prepare_head(step: Step, kernel: Kernel, at: Arrays) -> Launch:
    """Family head: 1×1×1 to few classes, in any layout."""
    x, given = last(at.inputs["x"]), step.attributes.get("norm")
    epilogue = epilogue_of(step, at)
    y = at.outputs["y"]
    while y.ndim < 5:
        y = y.unsqueeze(2)
    return partial(
        launch.head, x, packed(step, at, "head", weights.pack_head, half=True), epilogue.bias, y,
        norm=None if given is None else norm_of(at, x.shape[-1], given), softmax=bool(step.attributes.get("softmax")),
        rows=int(kernel["rows"]), loop=int(kernel["loop"]), epilogue=epilogue, in_inverse=inverse_of(step),
        warps=int(kernel["warps"]),
    )  # fmt: skip
