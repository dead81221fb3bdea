"""Blending: order of arrival does not matter, memory is bounded by what is being blended."""

import numpy as np
import pytest

from wetread.inference.blend import Blender
from wetread.inference.windows import plan_windows


def blended(plan, outputs, order, skipped=()):
    shape = tuple(axis.count for axis in plan.axes)
    result = np.zeros((2, *shape), np.float32)
    ends = []

    def sink(first, last, total):
        ends.append((first, last))
        if total is not None:
            result[:, first:last] = total

    blender = Blender(plan, 2, sink)
    for number in order:
        window = list(plan)[number]
        if number in skipped:
            blender.skip(window)
        else:
            buffer = outputs[number].copy()
            blender.accept(window, buffer)
            buffer[...] = np.nan  # the caller's again
    assert sorted(ends)[0][0] == 0 and sum(b - a for a, b in ends) == shape[0]
    return result, blender


@pytest.fixture
def case(make_recipe, make_grid):
    plan = plan_windows(make_recipe(), make_grid((23, 20, 17), (1, 1, 1), (0, 0, 0)))
    rng = np.random.default_rng(0)
    return plan, rng.normal(size=(len(plan), 2, *plan.shape)).astype(np.float32)


def test_equals_the_sum_in_float64(case):
    plan, outputs = case
    result, _ = blended(plan, outputs, range(len(plan)))
    expected = np.zeros((2, *(axis.count + 24 for axis in plan.axes)))
    total = np.zeros(expected.shape[1:])
    place = [np.exp(-((np.arange(w) - (w - 1) / 2) ** 2) / (2 * (0.125 * w) ** 2)) for w in plan.shape]
    weight = place[0][:, None, None] * place[1][:, None] * place[2]
    for window, output in zip(plan, outputs, strict=True):
        box = tuple(slice(s + 12, s + 12 + n) for s, n in zip(window.start, plan.shape, strict=True))
        expected[(slice(None), *box)] += weight * output
        total[box] += weight
    inner = tuple(slice(12, 12 + axis.count) for axis in plan.axes)
    expected = expected[(slice(None), *inner)] / total[inner]
    assert np.abs(result - expected).max() < 2e-6  # float32 sums of 8 terms of size up to 4


@pytest.mark.parametrize("seed", range(4))
def test_any_order_gives_the_same_bits(case, seed):
    plan, outputs = case
    skipped = {3, 8, len(plan) - 1}
    canonical, _ = blended(plan, outputs, range(len(plan)), skipped)
    order = np.random.default_rng(seed).permutation(len(plan)) if seed else range(len(plan))[::-1]
    other, blender = blended(plan, outputs, order, skipped)
    assert np.array_equal(canonical, other)
    assert blender.open_bytes == 0


@pytest.mark.parametrize("slices", [40, 160])
def test_memory_does_not_grow_with_the_number_of_planes(make_recipe, make_grid, slices):
    plan = plan_windows(make_recipe(), make_grid((slices, 30, 30), (1, 1, 1), (0, 0, 0)))
    peak = []
    blender = Blender(plan, 2, lambda *_: None)
    output = np.ones((2, *plan.shape), np.float32)
    for window in plan:
        blender.accept(window, output)
        peak.append(blender.open_bytes)
    assert max(peak) == blender.peak_bytes <= 4 * 2 * plan.shape[0] * 30 * 30  # the bound in blend.py


@pytest.mark.parametrize("shape", [(23, 20, 17), (9, 30, 11)])
def test_a_floor_under_the_weights_equals_float64_and_is_a_partition_of_unity(make_recipe, make_grid, shape):
    """Windows of 16 with sigma 2: almost every weight of the product lies below the floor at the faces."""
    tiling = {"kind": "fitted", "last": "clamped", "window": [16, 16, 16], "stride": [8, 8, 8], "floor": 1e-3}
    plan = plan_windows(make_recipe(tiling=tiling), make_grid(shape, (1, 1, 1), (0, 0, 0)))
    outputs = np.random.default_rng(0).normal(size=(len(plan), 2, 16, 16, 16)).astype(np.float32)
    expected, total = np.zeros((2, *(n + 32 for n in shape))), np.zeros([n + 32 for n in shape])
    place = np.exp(-((np.arange(16) - 7.5) ** 2) / (2 * 2.0**2))
    importance = np.maximum(place[:, None, None] * place[:, None] * place, 1e-3)
    for window, output in zip(plan, outputs, strict=True):
        box = tuple(slice(16 + start, 32 + start) for start in window.start)
        expected[(slice(None), *box)] += importance * output
        total[box] += importance
    inner = tuple(slice(16, 16 + n) for n in shape)
    expected = expected[(slice(None), *inner)] / total[inner]
    result, _ = blended(plan, outputs, range(len(plan)))
    assert np.abs(result - expected).max() < 2e-6  # float32 sums of at most 8 values of about 1
    again, _ = blended(plan, outputs, np.random.default_rng(1).permutation(len(plan)))
    assert np.array_equal(result, again)
    ones, _ = blended(plan, np.ones_like(outputs), range(len(plan)))
    assert np.abs(ones - 1).max() < 1e-6
