"""Windows: where they lie, and that their weights are a partition of unity."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wetread.geometry import lattice_grid, lattice_index, shifted_grid
from wetread.inference.blend import Blender
from wetread.inference.windows import clamped_starts, even_starts, lattice_starts, plan_windows
from wetread.recipe import Tiling

axis = st.integers(1, 24).flatmap(lambda w: st.tuples(st.just(w), st.integers(1, w), st.integers(1, 70)))


@given(st.integers(-200, 200), axis)
@settings(max_examples=200, deadline=None)
def test_lattice_windows_cover_the_grid_and_none_is_spare(first, sizes):
    window, stride, count = sizes
    starts = lattice_starts(first, count, window, stride)
    assert all((start + first) % stride == 0 for start in starts)
    covered = np.zeros(count, int)
    for start in starts:
        covered[max(0, start) : start + window] += 1
    assert covered.min() >= 1
    if len(starts) > 1:  # without either end, something would be bare
        for spare in (starts[0], starts[-1]):
            some = covered.copy()
            some[max(0, spare) : spare + window] -= 1
            assert some.min() == 0


@pytest.mark.parametrize(
    ("count", "window", "stride", "starts"),
    [
        (100, 40, 20, [0, 20, 40, 60]),
        (101, 40, 20, [0, 15, 30, 46, 61]),  # 61/4 = 15.25, 30.5 to even, 45.75
        (40, 40, 20, [0]),
        (33, 40, 20, [-3]),  # 3 before, 4 after
        (275, 128, 64, [0, 49, 98, 147]),
    ],
)
def test_even_starts_are_nnunets(count, window, stride, starts):
    assert even_starts(count, window, stride) == starts


@pytest.mark.parametrize(
    ("count", "window", "stride", "starts"),
    [(100, 40, 20, [0, 20, 40, 60]), (101, 40, 20, [0, 20, 40, 60, 61]), (33, 40, 20, [-3])],
)
def test_clamped_starts_are_monais(count, window, stride, starts):
    assert clamped_starts(count, window, stride) == starts


@st.composite
def tilings(draw):
    kind = draw(st.sampled_from(["lattice", "fitted", "whole"]))
    blending = draw(st.sampled_from(["gaussian", "constant"]))
    if kind == "whole":
        return Tiling(kind=kind, multiple=draw(st.tuples(*[st.integers(1, 8)] * 3)))
    window = draw(st.tuples(*[st.integers(1, 9)] * 3))
    stride = tuple(draw(st.integers(1, w)) for w in window)
    return Tiling(
        kind=kind,
        window=window,
        stride=stride,
        last=draw(st.sampled_from(["even", "clamped"])),
        blending=blending,
        sigma=draw(st.sampled_from([0.02, 0.125, 0.25, 1.0])),
    )


@given(tiling=tilings(), shape=st.tuples(*[st.integers(1, 20)] * 3), seed=st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_a_constant_comes_out_as_it_went_in(make_recipe, make_grid, tiling, shape, seed):
    recipe = make_recipe().model_copy(update={"tiling": tiling})
    grid = make_grid(shape, (1, 1, 1), (3, -4, 7))
    plan = plan_windows(recipe, grid)
    result = np.full((2, *shape), np.nan, np.float32)

    def sink(first, last, total):
        result[:, first:last] = total

    blender = Blender(plan, 2, sink)
    windows = list(plan)
    assert [w.ordinal for w in windows] == list(range(len(plan)))
    np.random.default_rng(seed).shuffle(windows)
    constant = np.ones((2, *plan.shape), np.float32) * np.array([1.0, -3.5], np.float32)[:, None, None, None]
    for window in windows:
        blender.accept(window, constant)
    assert blender.unfinished == 0 and blender.open_bytes == 0
    assert np.abs(result[0] - 1).max() <= 1e-6  # float32: three products of weights, sums of up to 9³ terms
    assert np.abs(result[1] + 3.5).max() <= 3.5e-6


def test_lattice_windows_of_any_part_lie_on_the_same_places(make_recipe, make_grid):
    recipe = make_recipe()
    whole = lattice_grid(make_grid((40, 30, 30)), "SPL", (1, 1, 1))
    part = lattice_grid(shifted_grid(make_grid((40, 30, 30)), (11, 0, 0), (25, 30, 30)), "SPL", (1, 1, 1))
    places = []
    for grid in (whole, part):
        first = np.round(lattice_index(grid)).astype(int)
        places.append({tuple(np.array(w.start) + first) for w in plan_windows(recipe, grid)})
    assert places[1] <= places[0]
