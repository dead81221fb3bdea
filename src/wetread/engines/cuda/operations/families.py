"""The families of kernels of a convolution: which apply to a step, in what sizes, and how each is prepared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from wetread.engines.cuda.operations import launching
from wetread.engines.cuda.operations.base import Arrays, Kernel, Target
from wetread.engines.cuda.operations.launching import Launch
from wetread.engines.cuda.operations.site import Site, chip
from wetread.engines.cuda.program import Program, Step
from wetread.errors import EngineError
from wetread.kernels.arguments import Tile
from wetread.kernels.candidates import pair_tiles, tiles
from wetread.kernels.hopper import march

_PREPARE: Mapping[str, Callable[[Step, Kernel, Arrays], Launch]] = {
    "gather": launching.prepare_tiled, "taps": launching.prepare_tiled,
    "strided": launching.prepare_tiled, "planes": launching.prepare_tiled,
    "pairs": launching.prepare_tiled, "march": launching.prepare_tiled, "few": launching.prepare_few,
    "head": launching.prepare_head, "depthwise": launching.prepare_depthwise,
    "march2": launching.prepare_march2, "first": launching.prepare_first, "point": launching.prepare_point,
}  # fmt: skip

FEW = 16  # input channels below which a product takes all taps as one K
BESIDE = 4  # tiles timed beside a Hopper kernel
MARCHED = 4096  # voxels below which Hopper's columns of 16 × 16 leave most of the chip idle


def prepare(step: Step, kernel: Kernel, at: Arrays) -> Launch:
    """The launches of a kernel of `conv_kernels`.

    Raises:
        EngineError: the plan names a family that this version does not have.
    """
    family = str(kernel["family"])
    if family not in _PREPARE:
        raise EngineError(
            f"there is no kernel family {family!r}", where=step.name, todo="build the plan again"
        )
    return _PREPARE[family](step, kernel, at)


def conv_kernels(step: Step, program: Program, target: Target) -> list[Kernel]:
    """Kernels of a conv step, likely winners first; none where only the library runs it."""
    site = Site.of(step, program, target) if target.triton else None
    if site is None:
        return []
    softmax = bool(step.attributes.get("softmax"))
    if site.head and "residual" not in step.inputs and "sums" not in step.outputs:
        plain = step.attributes.get("activation") is None and "scale" not in step.inputs
        own: list[Kernel] = [{"family": "point"}] if target.hopper and plain and site.point else []
        found = own + _head(site)
        tiled = not softmax and site.norm is None and site.y.strides[1] == 1
        return found + _tiled(site, target)[:4] if tiled else found
    if softmax or site.y.strides[1] != 1:
        return []
    if site.geometry.groups > 1:
        return _depthwise(site)
    if site.channels[0] < FEW and len(site.channels) == 1 and site.norm is None:
        firsts: list[Kernel] = [{"family": "first"}] if site.first else []
        return firsts + _few(site, int(step.attributes.get("border", 0)))
    return _tiled(site, target)


def _head(site: Site) -> list[Kernel]:
    return [{"family": "head", "rows": rows, "loop": loop, "warps": 4}
            for rows, loop in ((256, 1), (128, 1), (128, 4), (64, 1))
            if rows * max(16, site.channels[0]) <= 256 * 64 or rows == 64]  # fmt: skip


def _depthwise(site: Site) -> list[Kernel]:
    plain = len(site.channels) == 1 and site.norm is None
    if not plain or site.geometry.groups != site.channels[0]:
        return []
    return [{"family": "depthwise", "rows": rows, "bn": bn, "warps": warps}
            for rows, bn, warps in ((64, 32, 4), (128, 32, 4), (32, 64, 4), (64, 64, 8))]  # fmt: skip


def _few(site: Site, border: int) -> list[Kernel]:
    if site.geometry.dilation != (1, 1, 1):
        return []
    held = border >= max(site.geometry.before) and site.geometry.symmetric and border > 0
    bn = 64 if site.weight[0] % 64 == 0 else 32 if site.weight[0] > 16 else 16
    ways = [(256, False), (128, False), (64, False)]
    if held:
        ways[1:1] = [(128, True)]
    more = {"family": "few", "bn": bn, "border": held}
    return [
        {**more, "rows": rows, "across": across, "warps": 8 if rows == 256 else 4} for rows, across in ways
    ]


def _tiled(site: Site, target: Target) -> list[Kernel]:
    """Families that cut the output into tiles; with a norm on load march has it inside, the others apart.

    Where a Hopper kernel applies a few others are timed beside it: it won every such layer that was measured.
    """
    if site.geometry.groups != 1:
        return []
    fast = _hopper(site)
    if site.norm is None:
        if site.x.torch_dtype != site.operand and not site.unsigned:
            return fast
        return fast + [
            launching.tile_json(t) for t in tiles(site.layer, chip(target))[: BESIDE if fast else None]
        ]
    if not site.even:
        return fast
    device = chip(target)
    every = tiles(site.layer, device) + ([] if target.hopper else pair_tiles(site.layer, device))
    apart = {"rows": 8192 // max(16, min(64, 1 << (site.channels[0] - 1).bit_length())), "warps": 8}
    if replace(site, norm=None).marched() and site.layer.batch * site.layer.voxels >= MARCHED:
        every = [_march(site.weight[0]), *every]
    return fast + [{**launching.tile_json(t), "apart": apart} for t in every[: BESIDE if fast else None]]


def _march(co: int) -> Tile:
    return Tile("march", (1, 16, 16), march.outputs_of(co), 32)


def _hopper(site: Site) -> list[Kernel]:
    """Kernels of sm_90a that take the whole step."""
    if site.layer.batch * site.layer.voxels < MARCHED:
        return []
    found: list[Kernel] = [{"family": "march2", "outputs": n} for n in (64, 32) if site.marched_by_two(n)]
    counts = [n for n in (32, 48) if site.marched(n)]
    return found + [launching.tile_json(Tile("march", (1, 16, 16), n, 32)) for n in counts]
