"""Where a network looks: the place `body` or `lungs` of a CT, in blocks of voxels.

Hounsfield units of source voxels are counted into blocks of about 8 mm (4 mm under `fitted`), anchored to
the lattice (under `fitted`, to the prepared grid). A voxel is *airy* with −950 < HU < −400: aerated lung,
down to the usual limit of emphysema; air around the patient and in the bowel lies at −1000, the foam of
mattresses and table tops about −950. A voxel is *soft* above −300 HU.

Under `lattice` the rule is local. A block is a candidate where at least half of its voxels are airy (lungs),
or airy or soft (body). A seed is a candidate that belongs to a cube of candidates of 24 mm (3×3×3 blocks):
thinner things (mattress, table top, rims of gas) are none. The place is every block within the margin of a
seed, where the margin is rounded up to whole blocks and measured along each axis (a box, not a ball). So the
place in a window depends on source voxels within the margin and one cube around it.

Under `fitted` the place comes from the whole image: the body is the largest component of soft blocks after
opening, holes filled in axial planes; the lungs are airy components of 10 ml or more inside it, after
opening. The margin is added as above.

A window runs where its box holds a block of the place; every voxel of the place so gets all its windows.
Outside the place the labels are cleared.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from wetread.errors import RecipeError
from wetread.geometry import axis_maps, lattice_index
from wetread.inference.windows import Window, WindowPlan
from wetread.recipe import Recipe
from wetread.volume import Grid

AIRY_HU = (-950.0, -400.0)
SOFT_HU = -300.0
PART = 0.5
_CUBE_MM = {True: 24.0, False: 8.0}  # lattice, fitted
_LUNG_ML = 10.0
Bools = NDArray[np.bool_]


class PlaceMap:
    """Finds the place as source slices come, and answers for windows and planes.

    Args:
        recipe: gives the place and the tiling.
        source: grid of the slices, in Hounsfield units.
        prepared: grid of the windows; same directions up to order and sign.
        plan: the windows.

    Raises:
        RecipeError: the grids' directions differ.
    """

    def __init__(self, recipe: Recipe, source: Grid, prepared: Grid, plan: WindowPlan) -> None:
        maps = axis_maps(prepared, source)
        if maps is None:
            raise RecipeError(f"place {recipe.place.kind!r} needs source and prepared grids of equal axes")
        self._kind = recipe.place.kind
        self._local = recipe.tiling.kind == "lattice"
        self._plan = plan
        first = np.round(lattice_index(prepared)).astype(int) if self._local else np.zeros(3, int)
        self._order = tuple(m.source_axis for m in maps)  # prepared axis along each source axis
        self._axial = next(i for i, code in enumerate(prepared.axis_codes) if code in "SI")
        edge = 8.0 if self._local else 4.0
        self._size = [0, 0, 0]
        self._blocks: list[NDArray[np.intp]] = [np.zeros(0, np.intp)] * 3
        bins = []
        for axis, m in enumerate(maps):
            along, spacing = m.source_axis, prepared.spacing_mm[m.source_axis]
            coarse = math.ceil(source.spacing_mm[axis] / spacing)
            self._size[along] = max(1, round(edge / spacing), coarse)
            number = (np.arange(prepared.shape[along]) + first[along]) // self._size[along]
            self._blocks[along] = number - number[0]
            place = np.floor((m.coordinates + 0.5 + first[along]) / self._size[along]) - number[0]
            bins.append(np.clip(place, 0, self._blocks[along][-1]).astype(np.intp))
        step = [max(1, int(edge / 4 // s)) for s in source.spacing_mm]
        self._slice_block = bins[0]
        self._take = (slice(None, None, step[1]), slice(None, None, step[2]))
        self._rows, self._columns = bins[1][self._take[0]], bins[2][self._take[1]]
        shape = [int(self._blocks[along][-1]) + 1 for along in self._order]
        self._airy = np.zeros(shape, np.int32)
        self._soft = np.zeros(shape, np.int32)
        in_plane = np.bincount(self._rows, minlength=shape[1])[:, None] * np.bincount(
            self._columns, minlength=shape[2]
        )
        self._all = np.bincount(bins[0], minlength=shape[0])[:, None, None] * in_plane
        self._missing = np.bincount(bins[0], minlength=shape[0])
        size_mm = [n * s for n, s in zip(self._size, prepared.spacing_mm, strict=True)]
        self._margin = [math.ceil(recipe.place.margin_mm / s - 1e-9) for s in size_mm]
        cube = _CUBE_MM[self._local]
        self._cube = [max(1, round(cube / s)) for s in size_mm]
        self._block_ml = float(np.prod(size_mm)) / 1000
        self._place: Bools | None = None
        self._planes: dict[int, Bools] = {}

    def add(self, index: int, plane: NDArray[Any]) -> None:
        """Counts one source slice (rows, columns) in Hounsfield units."""
        part = plane[self._take]
        block = self._slice_block[index]
        airy = (part > AIRY_HU[0]) & (part < AIRY_HU[1])
        self._airy[block] += _counted(airy, self._rows, self._columns, self._airy.shape[1:])
        if self._kind == "body" or not self._local:
            self._soft[block] += _counted(part > SOFT_HU, self._rows, self._columns, self._soft.shape[1:])
        self._missing[block] -= 1
        self._place = None

    def decided(self, window: Window) -> bool:
        """Whether all slices are in on which the place in this window depends."""
        if not self._local:
            return not self._missing.any()
        along = self._order[0]
        first, last = self._box(window)[along]
        reach = self._margin[along] + self._cube[along] - 1
        return not self._missing[max(0, first - reach) : last + reach].any()

    def near(self, window: Window) -> bool:
        """Whether the window holds part of the place; ask only where `decided`."""
        box = tuple(slice(first, last) for first, last in self._box(window))
        return bool(self._current()[box].any())

    def inside(self, z: int) -> Bools:
        """Which voxels of prepared plane z (along axis 0) belong to the place."""
        place, block = self._current(), int(self._blocks[0][z])
        if block not in self._planes:
            self._planes[block] = place[block][np.ix_(self._blocks[1], self._blocks[2])]
        return self._planes[block]

    def _box(self, window: Window) -> list[tuple[int, int]]:
        box = []
        for axis, number in enumerate(window.index):
            first, last = self._plan.axes[axis].span(number)
            box.append((int(self._blocks[axis][first]), int(self._blocks[axis][last - 1]) + 1))
        return box

    def _current(self) -> Bools:
        """The place in blocks, in the prepared grid's axis order, from what is known so far."""
        if self._place is None:
            self._planes.clear()
            order = tuple(self._order.index(axis) for axis in range(3))
            airy, soft, all_ = (x.transpose(order) for x in (self._airy, self._soft, self._all))
            some = all_ > 0
            lung = some & (airy >= PART * all_)
            flesh = some & (soft >= PART * all_)
            if self._local:
                seeds = _opened(lung if self._kind == "lungs" else lung | flesh, self._cube)
            else:
                seeds = _body(_opened(flesh, self._cube), self._axial)
                if self._kind == "lungs":
                    seeds = _lungs(_opened(lung & seeds, self._cube), self._block_ml)
            size = [2 * margin + 1 for margin in self._margin]
            self._place = ndimage.maximum_filter(seeds, size=size, mode="constant", cval=False)
        return self._place


def _counted(
    voxels: Bools, rows: NDArray[np.intp], columns: NDArray[np.intp], shape: tuple[int, ...]
) -> NDArray[np.int32]:
    """Number of True voxels in each in-plane block; rows and columns name each index's block."""
    row_starts = np.concatenate(([0], np.flatnonzero(np.diff(rows)) + 1))
    column_starts = np.concatenate(([0], np.flatnonzero(np.diff(columns)) + 1))
    sums = np.add.reduceat(voxels.view(np.uint8), row_starts, axis=0, dtype=np.uint8)  # a few rows each
    sums = np.add.reduceat(sums, column_starts, axis=1, dtype=np.int32)
    counts = np.zeros(shape, np.int32)
    counts[np.ix_(rows[row_starts], columns[column_starts])] = sums
    return counts


def _opened(blocks: Bools, cube: list[int]) -> Bools:
    """Union of all cubes of True blocks; along an axis shorter than the cube, of its whole length."""
    sizes = [min(n, count) for n, count in zip(cube, blocks.shape, strict=True)]
    return np.asarray(ndimage.binary_opening(blocks, np.ones(sizes, bool)))


def _body(flesh: Bools, axial: int) -> Bools:
    """Largest component, holes filled in each axial plane."""
    labels, count = ndimage.label(flesh)
    if count == 0:
        return np.zeros_like(flesh)
    sizes = np.bincount(labels.ravel())
    body = labels == 1 + int(sizes[1:].argmax())
    for plane in np.moveaxis(body, axial, 0):
        plane[...] = ndimage.binary_fill_holes(plane)
    return np.asarray(body)


def _lungs(air: Bools, block_ml: float) -> Bools:
    """Components that hold 10 ml or more."""
    labels, count = ndimage.label(air)
    if count == 0:
        return np.zeros_like(air)
    large = np.bincount(labels.ravel()) * block_ml >= _LUNG_ML
    large[0] = False
    return np.asarray(large[labels])
