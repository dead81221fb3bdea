"""Tiles worth timing for a convolution, likely winners first: few enough to compile them all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from wetread.kernels.arguments import Geometry, Three, Tile

SHARED_BYTES = 225_000  # of a Hopper multiprocessor, where the device is not asked


@dataclass(frozen=True)
class Chip:
    """What tiles depend on of a device.

    Attributes:
        processors: multiprocessors.
        shared_bytes: largest shared memory of a block.
    """

    processors: int = 132
    shared_bytes: int = SHARED_BYTES


@dataclass(frozen=True)
class Layer:
    """A convolution as tiles see it.

    Attributes:
        batch: windows.
        channels: of each input.
        co: output channels.
        dtype: of the product's operands.
        geometry: of one group.
        out_size: D, H, W of the output.
        boxes: whether descriptors take the tensors (strides and start multiples of 16 bytes).
        flat: whether voxels are evenly spaced, so that a 1×1×1 kernel sees one row of them.
        evens: whether family strided takes the input: alone, H and W even, rows dense, planes evenly spaced.
        splits: whether K may be split, parts being added afterwards.
    """

    batch: int
    channels: tuple[int, ...]
    co: int
    dtype: torch.dtype
    geometry: Geometry
    out_size: Three
    boxes: bool = True
    flat: bool = True
    evens: bool = False
    splits: bool = True

    @property
    def voxels(self) -> int:
        """Of one window's output."""
        d, h, w = self.out_size
        return d * h * w

    @property
    def rows(self) -> Three:
        """The output as tiles cut it: a 1×1×1 kernel cuts one row of voxels."""
        return (1, 1, self.voxels) if self.geometry.point and self.flat else self.out_size


def _power(n: int) -> int:
    return 1 << (max(n, 1) - 1).bit_length()


def tiles(layer: Layer, chip: Chip) -> list[Tile]:
    """Tiles of families taps (or gather, where descriptors or stride forbid it), and planes for large volumes.

    Each is checked against the chip's shared memory and the registers of a program.
    """
    taps = layer.boxes and layer.geometry.stride == (1, 1, 1)
    found = list(_plain(layer, chip, taps))
    if any(tile.family == "strided" for tile in found):
        found = [t for t in found if t.family == "strided"][:8] + list(
            _plain(replace(layer, evens=False), chip, taps)
        )[:4]
    big = layer.batch * layer.voxels >= 64 * 128 * chip.processors // 4
    return found + _planes(layer, chip) if taps and layer.geometry.spread and big else found


def _plain(layer: Layer, chip: Chip, taps: bool) -> Iterator[Tile]:
    width = layer.dtype.itemsize
    most = max(32, _power(min(layer.channels)))
    bks = [b for b in (32, 64, 128) if b <= most and b * width <= 256][-2:]
    if min(layer.channels) <= 16 and width == 2:
        bks = [16]
    most = max(32, _power(layer.co))
    bns = [b for b in (32, 64, 128) if b <= most and (layer.co % b == 0 or b == 32)]
    if layer.co % 32 and layer.co > 32:
        bns.append(min(128, most))
    bns = [16] if layer.co <= 16 else sorted(set(bns))[-2:]
    steps = (
        sum(layer.channels) * layer.geometry.kernel[0] * layer.geometry.kernel[1] * layer.geometry.kernel[2]
    )
    shapes = [(64, 4, bn, bk) for bk in reversed(bks) for bn in reversed(bns)]
    shapes += [(128, 8, bns[-1], bk) for bk in bks] + [(128, 4, min(64, bns[-1]), bk) for bk in bks]
    seen: set[Tile] = set()
    h, w = layer.out_size[1:]
    strided = layer.boxes and layer.evens and layer.geometry.stride[1:] == (2, 2) and min(h, w) >= 8
    for rows, warps, bn, bk in shapes:
        box = _box(layer.rows, rows) if taps else None
        if strided and (layer.channels[0] % bk == 0):
            box = (1, 8, rows // 8)
        programs = layer.batch * -(-layer.voxels // rows) * -(-layer.co // bn)
        for s in _splits(programs, steps // bk, chip) if layer.splits else [1]:
            tile = (
                Tile("gather", (1, 1, rows), bn, bk, warps, 3 if warps == 8 else 4, s)
                if box is None
                else Tile("taps" if taps else "strided", box, bn, bk, warps, 4, s)
            )
            # eight warps gave values that moved where two inputs' loops are split (seen on a Hopper GPU)
            moves = warps == 8 and s > 1 and len(layer.channels) == 2
            fitted = None if moves else _fitted(tile, width, chip)
            if fitted is not None and fitted not in seen:
                seen.add(fitted)
                yield fitted


def _planes(layer: Layer, chip: Chip) -> list[Tile]:
    width = layer.dtype.itemsize
    bn = min(64 if layer.co % 64 == 0 else 32, max(16, _power(layer.co)))
    bk = max(b for b in (16, 32, 64, 128) if b <= max(16, _power(min(layer.channels))) and b * width <= 256)
    shapes: list[tuple[Three, int, int]] = [
        ((2, 8, 16), 4, 2), ((2, 8, 16), 8, 3), ((4, 8, 16), 8, 2), ((4, 8, 8), 4, 3),
    ]  # fmt: skip
    made = [_fitted(Tile("planes", s, bn, bk, warps, stages), width, chip) for s, warps, stages in shapes]
    return [t for t in made if t is not None]


def pair_tiles(layer: Layer, chip: Chip) -> list[Tile]:
    """Tiles of family pairs, for inputs whose rows have a zero voxel at both ends."""
    w, bn = layer.out_size[2], 2 * layer.co
    if (
        not layer.geometry.cube
        or not layer.boxes
        or w % 16
        or sum(layer.channels) > 128
        or layer.co not in (16, 32, 64)
    ):
        return []
    bk = min(128 // layer.dtype.itemsize, 4 * min(layer.channels))
    shapes: list[tuple[Three, int]] = [((2, 8, 16), 8), ((1, 8, 16), 4), ((4, 8, 8), 4)]
    made = [_fitted(Tile("pairs", s, bn, bk, warps, 2), layer.dtype.itemsize, chip) for s, warps in shapes]
    return [t for t in made if t is not None]


def _fitted(tile: Tile, width: int, chip: Chip) -> Tile | None:
    """The tile with as many stages as fit shared memory; None where two do not, or registers overflow."""
    d, h, w = tile.shape
    rows = d * h * w
    if rows * tile.bn // (tile.warps * 32) > 160:
        return None
    deep = tile.family in ("planes", "pairs")
    loaded = ((d + 2) * h * w + 3 * tile.bn) if deep else rows + tile.bn
    stages = min(tile.stages, chip.shared_bytes // (loaded * tile.bk * width))
    return replace(tile, stages=stages) if stages >= 2 else None


def _splits(programs: int, steps: int, chip: Chip) -> list[int]:
    """Parts of K that make one or two waves of programs, four steps or more in each; also none where near."""
    waves = (chip.processors, 2 * chip.processors)
    return sorted({max(1, min(wave // programs, steps // 4, 32)) for wave in waves}, reverse=True)


def _box(size: Sequence[int], rows: int) -> Three | None:
    """A box of `rows` voxels (a power of two), at most twice as large as the volume along any axis."""
    if size[0] == size[1] == 1:
        return (1, 1, rows)
    w = min(8, _power(size[2]))
    h = min(8, _power(size[1]), rows // w)
    d = rows // (w * h)
    if d > _power(size[0]):  # flat volumes: wider boxes
        d = min(d, _power(size[0]))
        h = min(rows // (w * d), _power(size[1]))
        w = rows // (d * h)
    return (d, h, w) if w <= max(16, _power(size[2])) and w <= 256 else None
