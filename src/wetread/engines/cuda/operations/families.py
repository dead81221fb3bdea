"""The families of kernels of a convolution: which apply to a step, in what sizes, and how each is prepared."""

from __future__ import annotations

from collections.abc import Callable, Mapping

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
    "gather": launching.prepare_tiled, "taps": launching.prepare_tiled, "planes": launching.prepare_tiled,
    "pairs": launching.prepare_tiled, "march": launching.prepare_tiled, "few": launching.prepare_few,
    "head": launching.prepare_head, "depthwise": launching.prepare_depthwise,
}  # fmt: skip

FEW = 16  # input channels below which a product takes all taps as one K
APART = {"rows": 128, "warps": 8}  # of a norm before its convolution, for blocks of 64 channels


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
        found = _head(site)
        return found if softmax or site.norm is not None else found + _tiled(site, target)[:4]
    if softmax or site.y.strides[1] != 1:
        return []
    if site.geometry.groups > 1:
        return _depthwise(site)
    if site.channels[0] < FEW and len(site.channels) == 1 and site.norm is None and not site.only_march:
        return _few(site, int(step.attributes.get("border", 0)))
    return _tiled(site, target)


def _head(site: Site) -> list[Kernel]:
    return [{"family": "head", "rows": rows, "loop": loop, "warps": 4}
            for rows, loop in ((256, 1), (128, 1), (128, 4), (64, 1))
            if rows * max(16, site.channels[0]) <= 256 * 64 or rows == 64]  # fmt: skip


def _depthwise(site: Site) -> list[Kernel]:
    plain = len(site.channels) == 1 and site.norm is None and not site.only_march
    if not plain or site.geometry.groups != site.channels[0] or site.x.torch_dtype != site.operand:
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
    """Families that cut the output into tiles; with a norm on load march has it inside, the others apart."""
    if site.geometry.groups != 1:
        return []
    device, found = chip(target), list[Kernel]()
    if site.norm is None:
        if site.x.torch_dtype != site.operand and not site.only_march:
            return []
        every = tiles(site.layer, device)
        return [launching.tile_json(t) for t in every if t.family == "march" or not site.only_march]
    marched = target.hopper and site.geometry.cube and site.x.dtype == "float16"
    if marched and march.applies(site.channels, site.weight[0], site.operand, True):
        found.append(launching.tile_json(Tile("march", (1, 16, 16), march.outputs_of(site.weight[0]), 32)))
    if site.even:
        every = tiles(site.layer, device)
        every += [] if target.hopper else pair_tiles(site.layer, device)
        rows = {**APART, "rows": 8192 // max(16, min(64, 1 << (site.channels[0] - 1).bit_length()))}
        found += [{**launching.tile_json(t), "apart": rows} for t in every[: 4 if found else None]]
    return found
