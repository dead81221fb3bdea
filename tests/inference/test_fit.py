"""Volumes of one shape: `fit` and `resize`, against MONAI's own and against the grid they claim."""

from __future__ import annotations

import numpy as np
import pytest

from wetread.inference.prepare import prepare, prepared_grid
from wetread.recipe import Recipe
from wetread.volume import Grid

SHAPES = [(9, 14, 11), (8, 8, 8), (7, 20, 6)]


def recipe(step: dict[str, object]) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "shape",
            "channels": [{"name": "a"}],
            "orientation": "RAS",
            "steps": [step],
            "tiling": {"kind": "whole"},
            "labels": [{"index": 1, "name": "x", "channels": [0]}],
        }
    )


def volume(shape: tuple[int, int, int]) -> tuple[np.ndarray, Grid]:
    affine = np.diag([-1.5, -0.7, 2.0, 1.0])
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32), Grid(shape, affine)


@pytest.mark.peer
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("to", [(8, 8, 8), (10, 13, 5)])
def test_fit_is_monais(shape, to):
    from monai.transforms import ResizeWithPadOrCrop

    array, grid = volume(shape)
    found, _ = prepare(recipe({"step": "fit", "shape": to, "value": 0}), [array], grid)
    np.testing.assert_array_equal(found, np.asarray(ResizeWithPadOrCrop(to)(array[None])))


@pytest.mark.peer
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("to", [(8, 8, 8), (10, 13, 5)])
def test_resize_is_monais(shape, to):
    from monai.transforms import Resize

    array, grid = volume(shape)
    found, _ = prepare(recipe({"step": "resize", "shape": to}), [array], grid)
    want = np.asarray(Resize(to, mode="trilinear", align_corners=False)(array[None]))
    np.testing.assert_allclose(found, want, atol=1e-5)  # float32 coordinates on both sides


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["fit", "resize"])
def test_grid_is_known_before_the_voxels_and_says_where_they_lie(shape, kind):
    """A volume of linear intensity in world coordinates keeps it where nothing is extrapolated."""
    _, grid = volume(shape)
    world = grid.world(np.moveaxis(np.indices(shape), 0, -1))
    ramp = (world @ np.array([0.3, -0.2, 0.5])).astype(np.float32)
    parsed = recipe({"step": kind, "shape": (6, 10, 7)})
    found, made = prepare(parsed, [ramp], grid)
    ahead = prepared_grid(parsed, grid)
    assert ahead is not None and ahead.same_place(made) and made.shape == found.shape[1:] == (6, 10, 7)
    place = made.world(np.moveaxis(np.indices(made.shape), 0, -1))
    index = grid.index(place)
    inside = np.all((index >= 0) & (index <= np.array(shape) - 1), axis=-1)
    assert inside.any()
    np.testing.assert_allclose(found[0][inside], (place @ np.array([0.3, -0.2, 0.5]))[inside], atol=1e-5)


@pytest.mark.parametrize(
    ("steps", "shape"),
    [
        ([], None),
        ([{"step": "resize", "shape": (4, 5, 6)}], (4, 5, 6)),
        ([{"step": "resize", "shape": (4, 5, 6)}, {"step": "pad", "multiple": (4, 4, 4)}], (4, 8, 8)),
        ([{"step": "resample", "spacing_mm": (1, 1, 1)}, {"step": "fit", "shape": (4, 5, 6)}], (4, 5, 6)),
        ([{"step": "fit", "shape": (4, 5, 6)}, {"step": "resample", "spacing_mm": (1, 1, 1)}], None),
        ([{"step": "fit", "shape": (4, 5, 6)}, {"step": "crop"}], None),
    ],
)
def test_fixed_shape(steps, shape):
    data = recipe({"step": "minmax"}).model_dump() | {"steps": steps}
    assert Recipe.model_validate(data).fixed_shape == shape
