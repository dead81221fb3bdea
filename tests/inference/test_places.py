"""Where a network looks: lungs and body found, air, table, foam and bowel gas left out."""

import time

import numpy as np
import pytest

from wetread.geometry import lattice_grid
from wetread.inference.places import PlaceMap
from wetread.inference.prepare import prepared_grid
from wetread.inference.windows import plan_windows


def chest(shape=(90, 128, 128), spacing=(3.0, 3.2, 3.2), seed=0):
    """HU of a body with two lungs, trachea, a gas bubble, a table with a foam core, and outside air."""
    z, y, x = (np.arange(n) * s for n, s in zip(shape, spacing, strict=True))
    z, y, x = z[:, None, None], y[None, :, None], x[None, None, :]

    def ellipsoid(centre, radii):
        return sum(((a - c) / r) ** 2 for a, c, r in zip((z, y, x), centre, radii, strict=True)) < 1

    hu = np.full(shape, -1000.0)
    table = (y > 330) & (y < 375) & (x > 40) & (x < 370) & (z > -1)
    hu[np.broadcast_to(table, shape)] = 150
    hu[np.broadcast_to((y > 334) & (y < 371) & (x > 44) & (x < 366) & (z > -1), shape)] = -965
    body = ellipsoid((135, 190, 205), (900, 125, 165))
    hu[body] = 40
    lungs = np.zeros(shape, bool)
    for centre in (130, 280):
        lungs |= ellipsoid((160, 185, centre), (90, 75, 45))
    hu[lungs] = -850
    hu[ellipsoid((240, 150, 205), (200, 9, 9))] = -1000
    bubble = ellipsoid((25, 130, 210), (12, 12, 12))
    hu[bubble] = -1000
    bubble |= ellipsoid((25, 130, 240), (7, 7, 7))
    hu[ellipsoid((25, 130, 240), (7, 7, 7))] = -700
    hu += np.random.default_rng(seed).normal(0, 15, shape)
    return np.clip(hu, -1000, 3000).astype(np.int16), body, lungs, bubble, table


def place_of(make_recipe, make_grid, kind, tiling, voxels, margin=16, order=None):
    grid = make_grid(voxels.shape, (3.0, 3.2, 3.2), (-200, -180, -130))
    recipe = make_recipe(
        steps=[{"step": "resample", "spacing_mm": [2, 2, 2]}],
        tiling={"kind": tiling, "window": [32, 32, 32], "stride": [32, 32, 32]},
        place={"kind": kind, "margin_mm": margin},
    )
    prepared = lattice_grid(grid, "SPL", (2, 2, 2)) if tiling == "lattice" else prepared_grid(recipe, grid)
    plan = plan_windows(recipe, prepared)
    place = PlaceMap(recipe, grid, prepared, plan)
    for index in order if order is not None else range(len(voxels)):
        place.add(index, voxels[index])
    return place, plan, prepared, grid


def on_source(place, prepared, grid):
    """The place at the source's voxels, by nearest prepared voxel."""
    index = [np.arange(n) for n in grid.shape]
    near = [
        np.clip(
            np.rint(prepared.index(grid.world(np.eye(3)[a] * i[:, None]))[:, a]), 0, prepared.shape[a] - 1
        )
        for a, i in enumerate(index)
    ]
    inside = np.stack([place.inside(z) for z in range(prepared.shape[0])])
    return inside[np.ix_(*(n.astype(int) for n in near))]


@pytest.mark.parametrize("tiling", ["lattice", "fitted"])
def test_lungs_are_found_and_little_else(make_recipe, make_grid, tiling):
    voxels, _, lungs, bubble, table = chest()
    place, plan, prepared, grid = place_of(make_recipe, make_grid, "lungs", tiling, voxels)
    found = on_source(place, prepared, grid)
    assert found[lungs].all()
    assert not found[bubble].any()
    assert not found[:10].any()  # 90 mm below the lungs' lowest point
    assert not found[np.broadcast_to(table, found.shape)].any()
    assert found.mean() < 3.5 * lungs.mean()
    run = [window for window in plan if place.near(window)]
    assert 0 < len(run) < 0.5 * len(plan)


@pytest.mark.parametrize("tiling", ["lattice", "fitted"])
def test_the_body_holds_the_lungs_inside(make_recipe, make_grid, tiling):
    voxels, body, _, _, _ = chest()
    place, _, prepared, grid = place_of(make_recipe, make_grid, "body", tiling, voxels)
    found = on_source(place, prepared, grid)
    assert found[body].all()
    assert not found[:, :8].any() and not found[:, :, :4].any()  # air well away from the skin
    if tiling == "fitted":
        assert not found[:, 123:].any()  # below the table


@pytest.mark.parametrize("kind", ["lungs", "body"])
def test_the_order_of_slices_does_not_matter(make_recipe, make_grid, kind):
    voxels = chest()[0]
    first, *_ = place_of(make_recipe, make_grid, kind, "lattice", voxels)
    order = np.random.default_rng(0).permutation(len(voxels))
    other, *_ = place_of(make_recipe, make_grid, kind, "lattice", voxels, order=order)
    assert np.array_equal(first._current(), other._current())


def test_under_lattice_a_window_is_decided_by_slices_within_the_margin(make_recipe, make_grid):
    voxels = chest()[0]
    whole, plan, prepared, grid = place_of(make_recipe, make_grid, "lungs", "lattice", voxels)
    other = voxels.copy()
    changed = np.random.default_rng(1).integers(-1000, 500, other[60:].shape)
    other[60:] = np.where(changed > 0, -850, 40)
    part, *_ = place_of(make_recipe, make_grid, "lungs", "lattice", other, order=range(60))
    full, *_ = place_of(make_recipe, make_grid, "lungs", "lattice", other)
    decided = [window for window in plan if part.decided(window)]
    assert 0 < len(decided) < len(plan)
    for window in decided:
        assert part.near(window) == whole.near(window) == full.near(window)
        z = max(0, window.start[0])
        last = min(prepared.shape[0], window.start[0] + 32) - 1
        for plane in (z, last):
            assert np.array_equal(part.inside(plane), whole.inside(plane))
    reach = 16 + 3 * 8 + 8  # margin, cube, rounding to blocks, in mm
    bound = grid.world((60, 0, 0))[2] - reach
    for window in plan:
        end = prepared.world((window.start[0] + 32, 0, 0))[2]
        assert part.decided(window) or end > bound


def test_thick_slices_have_blocks_of_a_slice_at_least(make_recipe, make_grid):
    voxels, _, lungs, _, _ = chest()
    thick, lung = voxels[::5], lungs[::5]
    grid = make_grid(thick.shape, (15.0, 3.2, 3.2), (-200, -180, -130))
    recipe = make_recipe(
        steps=[{"step": "resample", "spacing_mm": [2, 2, 2]}], place={"kind": "lungs", "margin_mm": 16}
    )
    prepared = lattice_grid(grid, "SPL", (2, 2, 2))
    place = PlaceMap(recipe, grid, prepared, plan_windows(recipe, prepared))
    for index, plane in enumerate(thick):
        place.add(index, plane)
    found = on_source(place, prepared, grid)
    assert found[lung].all() and found.mean() < 0.5


@pytest.mark.parametrize("tiling", ["lattice", "fitted"])
def test_a_chest_ct_takes_well_below_a_second(make_recipe, make_grid, tiling):
    voxels = np.repeat(np.repeat(np.repeat(chest()[0], 3, 0), 4, 1), 4, 2)  # 270×512×512
    grid = make_grid(voxels.shape, (1.0, 0.8, 0.8), (-200, -180, -130))
    recipe = make_recipe(
        tiling={"kind": tiling, "window": [64, 128, 128], "stride": [64, 64, 64]}, place={"kind": "lungs"}
    )
    prepared = lattice_grid(grid, "SPL", (1, 1, 1)) if tiling == "lattice" else prepared_grid(recipe, grid)
    plan = plan_windows(recipe, prepared)
    began = time.process_time()
    place = PlaceMap(recipe, grid, prepared, plan)
    for index, plane in enumerate(voxels):
        place.add(index, plane)
    count = sum(place.near(window) for window in plan)
    assert 0 < count < len(plan)
    assert time.process_time() - began < 2.0  # 0.2 s when alone; CI machines are shared
