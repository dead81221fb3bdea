"""The contract of `Ops`; other devices inherit `OpsContract` and give their own arrays."""

import numpy as np
import pytest

from wetread.geometry import CpuOps, lattice_grid, resample
from wetread.volume import Grid


def axial(shape, spacing=(2.0, 0.7, 0.8), origin=(-20.3, 10.1, 5.7)):
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2] = spacing
    affine[:, 3] = (*origin, 1)
    return Grid(shape, affine)


class OpsContract:
    """Every device's operations against float64 or numpy references."""

    @pytest.fixture
    def ops(self):
        raise NotImplementedError

    def to_device(self, array):
        return array

    def to_host(self, array):
        return np.asarray(array)

    def test_resample_is_exact_on_ramps(self, ops):
        source = axial((9, 20, 24))
        target = lattice_grid(source, "RAS", (1, 1.5, 0.9))

        def ramp(grid):
            index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
            return grid.world(index) @ np.array([0.3, -0.7, 1.1])

        result = self.to_host(ops.resample(self.to_device(ramp(source).astype(np.float32)), source, target))
        index = source.index(
            target.world(np.stack(np.meshgrid(*map(np.arange, target.shape), indexing="ij"), -1))
        )
        covered = ((index >= 0) & (index <= np.array(source.shape) - 1)).all(-1)
        assert covered.mean() > 0.5
        assert np.abs(result - ramp(target))[covered].max() < 5e-5  # float32 of values up to 40

    @pytest.mark.parametrize("interpolation", ["linear", "cubic", "nearest"])
    @pytest.mark.parametrize("antialias", [False, True])
    def test_resample_equals_the_cpu(self, ops, interpolation, antialias):
        source = axial((9, 20, 24))
        target = lattice_grid(source, "SPL", (3, 1.5, 0.5))
        array = np.random.default_rng(0).normal(size=source.shape).astype(np.float32)
        result = ops.resample(
            self.to_device(array), source, target, interpolation, antialias=antialias, fill=-5.0
        )
        expected = resample(array, source, target, interpolation, antialias=antialias, fill=-5.0)
        assert np.abs(self.to_host(result) - expected).max() < 1e-5

    def test_intensity(self, ops):
        array = np.random.default_rng(0).normal(0, 900, (3, 4, 5)).astype(np.float32)
        device = self.to_device(array.copy())
        ops.intensity(device, lower=-600, upper=400, factor=0.001, shift=0.6)
        expected = np.clip(array.astype(float), -600, 400) * 0.001 + 0.6
        assert np.abs(self.to_host(device) - expected).max() < 1e-6

    @pytest.mark.parametrize(
        "start", [(0, 0, 0), (-2, 3, 1), (4, -5, 6), (1, 1, 1), (-3, -3, -3), (20, 0, 0)]
    )
    def test_cut_pads_outside(self, ops, start):
        volume = np.random.default_rng(0).normal(size=(2, 7, 8, 9)).astype(np.float32)
        padded = np.pad(volume, [(0, 0)] + [(30, 30)] * 3, constant_values=-9)
        box = tuple(slice(s + 30, s + 30 + n) for s, n in zip(start, (5, 6, 4), strict=True))
        out = self.to_device(np.full((2, 5, 6, 4), np.nan, np.float32))
        ops.cut(self.to_device(volume), start, out, -9.0)
        assert np.array_equal(self.to_host(out), padded[(slice(None), *box)])

    @pytest.mark.parametrize("start", [(0, 0, 0), (-2, 3, 1), (4, -5, 6)])
    def test_blend_adds_weighted(self, ops, start):
        rng = np.random.default_rng(0)
        total = rng.normal(size=(2, 7, 8, 9)).astype(np.float32)
        output = rng.normal(size=(2, 5, 6, 4)).astype(np.float32)
        weights = tuple(rng.random(n).astype(np.float32) for n in (5, 6, 4))
        product = weights[0][:, None, None].astype(float) * weights[1][:, None] * weights[2]
        padded = np.pad(total.astype(float), [(0, 0)] + [(9, 9)] * 3)
        box = tuple(slice(s + 9, s + 9 + n) for s, n in zip(start, (5, 6, 4), strict=True))
        padded[(slice(None), *box)] += product * output
        device = self.to_device(total)
        ops.blend(device, self.to_device(output), tuple(self.to_device(w) for w in weights), start)
        assert np.abs(self.to_host(device) - padded[:, 9:-9, 9:-9, 9:-9]).max() < 1e-6

    def test_label_and_measure(self, ops):
        mask = np.zeros((6, 9, 9), np.uint8)
        mask[1:3, 1:4, 1:4] = 1
        mask[4, 6:8, 6:8] = 1
        components = ops.label(self.to_device(mask), 26)
        assert sorted(np.bincount(self.to_host(components).ravel())[1:]) == [4, 18]
        found = ops.measure(components, axial(mask.shape))
        assert sorted(round(m.volume_ml, 6) for m in found) == pytest.approx([4 * 1.12e-3, 18 * 1.12e-3])


class TestCpuOps(OpsContract):
    @pytest.fixture
    def ops(self):
        return CpuOps()
