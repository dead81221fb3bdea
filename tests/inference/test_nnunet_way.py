"""What nnU-Net does beyond the other recipes, against scipy and plain numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import ndimage

from wetread.geometry import Method, coarse_axis, fitted_grid, resample
from wetread.inference.labels import Decision, LabelWriter, restoring_method
from wetread.inference.prepare import prepare
from wetread.inference.windows import axis_weights, even_starts
from wetread.recipe import (
    Channel,
    Crop,
    Label,
    Normalise,
    Recipe,
    Resample,
    Restore,
    Separate,
    Tiling,
    ZScore,
)
from wetread.volume import Grid


def grid(shape: tuple[int, int, int], spacing: tuple[float, float, float], file_axes: str = "kji") -> Grid:
    affine = np.diag([*spacing, 1.0])[[2, 1, 0, 3]]
    affine[:3, 3] = (-7.5, 12.0, 99.0)
    return Grid(shape, affine, file_axes=file_axes)


def recipe(*steps: object, channels: int = 1, orientation: str = "kji", **more: object) -> Recipe:
    told = {
        "tiling": Tiling(window=(16, 16, 16), stride=(8, 8, 8)),
        "labels": (Label(index=1, name="a", channels=(1,)), Label(index=2, name="b", channels=(2,))),
    }
    return Recipe(
        name="way",
        channels=tuple(Channel(name=str(i)) for i in range(channels)),
        orientation=orientation,
        steps=steps,
        **(told | more),
    )


def zoomed(array: np.ndarray, shape: tuple[int, ...], order: int) -> np.ndarray:
    """scikit-image's resize(mode="edge", anti_aliasing=False), which is this and a clip."""
    factors = np.array(shape) / array.shape
    out = ndimage.zoom(array.astype(float), factors, order=order, mode="nearest", grid_mode=True)
    return np.clip(out, array.min(), array.max())


@pytest.mark.parametrize("spacing", [(1.3, 0.7, 1.9), (0.6, 2.2, 1.0), (1.0, 1.0, 1.7), (1.0, 1.6, 0.8)])
def test_cubic_with_edges_and_limits_is_a_clipped_zoom(spacing: tuple[float, float, float]) -> None:
    rng = np.random.default_rng(1)
    source = grid((19, 24, 30), (1.0, 1.0, 1.0))
    # flat parts beside steps: a spline overshoots there, and is limited
    array = np.clip(rng.normal(0, 60, source.shape), -40, 40)
    target = fitted_grid(source, spacing)
    found = resample(array, source, target, Method("cubic", boundary="edge", limit=True), threads=1)
    np.testing.assert_allclose(found, zoomed(array, target.shape, 3), atol=40 * 2e-6)
    unlimited = resample(array, source, target, Method("cubic", boundary="edge"), threads=1)
    assert unlimited.max() > 41  # so that the limit is tested at all


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("along", ["nearest", "linear"])
def test_the_coarse_axis_is_resampled_by_itself(axis: int, along: str) -> None:
    rng = np.random.default_rng(axis)
    spacing = [0.9, 1.1, 1.0]
    spacing[axis] = 4.0
    source = grid((15, 17, 21), (spacing[0], spacing[1], spacing[2]))
    array = np.clip(rng.normal(0, 60, source.shape), -40, 40)
    target = fitted_grid(source, (1.3, 1.3, 1.3))
    method = Method("cubic", boundary="edge", limit=True, coarse=axis, along=along)
    found = resample(array, source, target, method, threads=1)
    flat = [n for i, n in enumerate(target.shape) if i != axis]
    slices = np.stack([zoomed(p, flat, 3) for p in np.moveaxis(array, axis, 0)])
    count = target.shape[axis]
    place = (np.arange(count) + 0.5) * source.shape[axis] / count - 0.5
    order = 0 if along == "nearest" else 1
    expected = ndimage.map_coordinates(
        slices, np.meshgrid(place, *map(np.arange, flat), indexing="ij"), order=order, mode="nearest"
    )
    np.testing.assert_allclose(found, np.moveaxis(expected, 0, axis), atol=40 * 2e-6)


@pytest.mark.parametrize(
    ("before", "after", "axis"),
    [
        ((1.0, 1.0, 1.0), (2.0, 2.0, 2.0), None), ((5.0, 1.0, 1.0), (1.0, 1.0, 1.0), 0),
        ((1.0, 1.0, 1.0), (1.0, 1.0, 3.5), 2), ((0.24, 1.25, 1.25), (1.0, 1.0, 1.0), None),
        ((1.0, 4.0, 1.0), (1.0, 1.0, 9.0), 1), ((3.0, 1.0, 1.0), (1.0, 1.0, 1.0), None),
    ],
)  # fmt: skip
def test_which_axis_is_coarse(before: tuple, after: tuple, axis: int | None) -> None:
    assert coarse_axis(before, after, 3.0) == axis


def test_a_z_score_of_the_filled_region_leaves_the_rest() -> None:
    rng = np.random.default_rng(3)
    first, second = rng.normal(50, 9, (2, 12, 14, 16)).astype(np.float32)
    for image in (first, second):
        image[:2], image[:, :, -3:] = 0, 0
    first[5:7, 5:8, 5:9] = 0  # a hole in both: filled
    second[5:7, 5:8, 5:9] = 0
    second[8:, 3:] = 0  # zero in one channel only
    region = ndimage.binary_fill_holes((first != 0) | (second != 0))
    assert region[5, 6, 6]
    assert not region[0].any()
    expected = []
    for image in (first.astype(float), second.astype(float)):
        inside = image[region]
        image[region] = (inside - inside.mean()) / inside.std()
        expected.append(image)
    found, _ = prepare(recipe(ZScore(filled=True), channels=2), [first, second], grid(first.shape, (1, 1, 1)))
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_steps_change_the_channels_that_they_name() -> None:
    rng = np.random.default_rng(4)
    arrays = rng.normal(50, 9, (2, 8, 9, 10)).astype(np.float32)
    steps = (ZScore(channels=(1,), filled=True), Normalise(channels=(0,), mean=40.0, std=4.0))
    found, _ = prepare(recipe(*steps, channels=2), list(arrays), grid(arrays.shape[1:], (1, 1, 1)))
    np.testing.assert_allclose(found[0], (arrays[0] - 40.0) / 4.0, atol=1e-5)
    np.testing.assert_allclose(found[1], (arrays[1] - arrays[1].mean()) / arrays[1].std(), atol=1e-5)
    with pytest.raises(ValidationError, match="names channel 2"):
        recipe(ZScore(channels=(2,)), channels=2)


def test_a_crop_to_nonzero_keeps_negative_voxels() -> None:
    array = np.zeros((8, 9, 10), np.int16)
    array[2:5, 3, 4:9] = -700
    found, cut = prepare(recipe(Crop(nonzero=True)), [array], grid(array.shape, (1, 1, 1)))
    assert found.shape == (1, 3, 1, 5)
    np.testing.assert_allclose(cut.world((0, 0, 0)), grid(array.shape, (1, 1, 1)).world((2, 3, 4)))


@pytest.mark.parametrize("file_axes", ["kji", "ijk"])
@pytest.mark.parametrize("orientation", ["kji", "jki", "ikj"])
def test_the_order_of_the_file_is_kept_whatever_its_directions(file_axes: str, orientation: str) -> None:
    shape = (3, 4, 5)
    affine = np.diag([-1.0, -1.2, 1.4, 1.0])
    array = np.arange(60, dtype=np.float32).reshape(shape)
    found, turned = prepare(
        recipe(orientation=orientation), [array], Grid(shape, affine, file_axes=file_axes)
    )
    axes = [file_axes.index(letter) for letter in orientation]
    np.testing.assert_array_equal(found[0], array.transpose(axes))
    np.testing.assert_allclose(turned.world((1, 0, 0)) - turned.world((0, 0, 0)), affine[:3, axes[0]])


@pytest.mark.parametrize(("count", "window"), [(50, 32), (33, 17), (91, 20), (16, 16), (12, 17), (100, 9)])
def test_even_starts_take_half_of_odd_windows(count: int, window: int) -> None:
    padded = max(count, window)
    number = int(np.ceil((padded - window) / (window * 0.5))) + 1
    step = (padded - window) / (number - 1) if number > 1 else 0
    expected = [int(np.round(step * i)) - (padded - count) // 2 for i in range(number)]
    assert even_starts(count, window, window / 2) == expected


@pytest.mark.parametrize("window", [16, 17])
def test_the_weights_peak_where_nnunet_puts_its_one(window: int) -> None:
    tiling = Tiling(window=(window,) * 3, stride=(8, 8, 8), peak="voxel")
    one = np.zeros(window)
    one[window // 2] = 1
    gauss = ndimage.gaussian_filter(one, window / 8, mode="constant")
    starts, count = [0, 7], window + 7
    total = np.zeros(count)
    for start in starts:
        total[start : start + window] += gauss
    expected = [gauss / total[start : start + window] for start in starts]
    np.testing.assert_allclose(axis_weights(starts, window, count, tiling), expected, atol=2e-3)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("thick", [1.0, 5.0])
def test_logits_are_restored_before_they_are_activated(activation: str, thick: float) -> None:
    rng = np.random.default_rng(6)
    step = Resample(spacing_mm=(1.5, 1.5, 1.5), interpolation="cubic", separate=Separate())
    labels = (Label(index=1, name="a", channels=(1,)), Label(index=2, name="b", channels=(2,)))
    told = recipe(
        step, activation=activation, restore=Restore(of="logits", separate=Separate()), labels=labels
    )
    source = grid((10, 22, 19), (thick, 1.0, 0.8))
    prepared = fitted_grid(source, step.spacing_mm)
    logits = ndimage.gaussian_filter(rng.normal(0, 9, (3, *prepared.shape)), (0, 1, 1, 1)).astype(np.float32)
    writer = LabelWriter(Decision(told, 3), prepared, source, None, 1, restoring_method(told, source))
    for first in range(0, prepared.shape[0], 4):
        last = min(first + 4, prepared.shape[0])
        writer.take(first, last, logits[:, first:last])
    place = [
        (np.arange(n) + 0.5) * m / n - 0.5 for n, m in zip(source.shape, prepared.shape, strict=True)
    ]  # fmt: skip
    if thick > 3:
        place[0] = np.floor(place[0] + 0.5)
    where = np.meshgrid(*place, indexing="ij")
    back = np.stack(
        [ndimage.map_coordinates(c.astype(float), where, order=1, mode="nearest") for c in logits]
    )
    if activation == "softmax":
        expected = back.argmax(axis=0)
        active = np.exp(back) / np.exp(back).sum(axis=0)
    else:
        expected = np.where(back[2] >= 0, 2, np.where(back[1] >= 0, 1, 0))
        active = 1 / (1 + np.exp(-back))
    clear = np.sort(np.abs(back[1:] - (back[:1] if activation == "softmax" else 0)), axis=0)[0] > 1e-4
    assert (expected == 2).sum() > 300
    assert ((writer.mask == expected) | ~clear).mean() > 0.9999
    right = (writer.mask == expected) & (expected > 0)
    chosen = np.take_along_axis(active, expected[None], axis=0)[0]
    np.testing.assert_allclose(writer.probability[right], chosen[right], atol=1e-3)


def test_lattice_windows_take_no_step_that_needs_the_whole() -> None:
    step = Resample(spacing_mm=(1.0, 1.0, 1.0))
    tiling = Tiling(kind="lattice", window=(16, 16, 16), stride=(8, 8, 8))
    recipe(step, tiling=tiling, orientation="SPL")
    for changes, what in (
        ({"orientation": "kji"}, "patient directions"),
        ({"steps": (step.model_copy(update={"separate": Separate()}),)}, "separately"),
        ({"steps": (step, Normalise(channels=(0,), mean=0, std=1))}, "all channels alike"),
    ):
        with pytest.raises(ValidationError, match=what):
            Recipe.model_validate(recipe(step, tiling=tiling, orientation="SPL").model_dump() | changes)
    with pytest.raises(ValidationError, match="halves"):
        Tiling(kind="lattice", window=(17, 16, 16), stride=(8.5, 8, 8))
