"""Windows cut, kept and stitched, against numpy in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from tests.kernels.reference import DEVICE, poisoned, rand  # noqa: E402
from wetread.engines.cuda.volume import (  # noqa: E402
    EvenAxis,
    VolumePlan,
    VolumeRunner,
    gaussian_profile,
    schedule,
)
from wetread.errors import EngineError, NotFiniteError  # noqa: E402
from wetread.kernels.volume import cut  # noqa: E402

pytestmark = pytest.mark.peer


class Axis:
    """Any starts; weights of a profile, normalised."""

    def __init__(self, starts, size, count):
        self.starts, self.size, self.count = starts, size, count
        profile = gaussian_profile(size, size / 8) + 0.01
        self.weights = np.zeros((len(starts), size), np.float32)
        total = np.zeros(count)
        for s in starts:
            lo, hi = max(0, s), min(count, s + size)
            total[lo:hi] += profile[lo - s : hi - s]
        for i, s in enumerate(starts):
            lo, hi = max(0, s), min(count, s + size)
            self.weights[i, lo - s : hi - s] = profile[lo - s : hi - s] / total[lo:hi]


class Network:
    """Three channels that differ from voxel to voxel and from place to place in the window."""

    batches = (1, 2, 4)

    def __init__(self, window, channels=1, classes=3, dtype=None, last=False):
        self.window = window
        self.dtype = dtype or torch.float16
        g = torch.Generator().manual_seed(3)
        self.ramp = torch.randn(classes, *window, generator=g).to(DEVICE)
        self.made = {}
        for b in self.batches:
            shape = (b, classes, *window)
            y = poisoned(b, *window, classes, dtype=self.dtype).permute(0, 4, 1, 2, 3) if last else poisoned(
                *shape, dtype=self.dtype)  # fmt: skip
            self.made[b] = (poisoned(b, channels, *window), y)
        self.sizes = []

    def tensors(self, batch):
        return self.made[batch]

    def ready(self, batch):
        self.made[batch][0].fill_(float("nan"))

    def of(self, x):
        return x.double().sum(1, keepdim=True) * torch.sign(self.ramp).double() + self.ramp.double()

    def launch(self, batch):
        self.sizes.append(batch)
        x, y = self.made[batch]
        y.copy_(self.of(x))


def expected(network, volume, axes):
    """Blended values in float64, windows run one by one."""
    total = np.zeros((3, *volume.shape[1:]))
    for (i, a), (j, b), (k, c) in itertools.product(*(enumerate(axis.starts) for axis in axes)):
        window = torch.zeros(1, volume.shape[0], *network.window)
        spans = [
            (max(0, s), min(n, s + w), s)
            for s, n, w in zip((a, b, c), volume.shape[1:], network.window, strict=True)
        ]
        outer = tuple(slice(lo, hi) for lo, hi, _ in spans)
        inner = tuple(slice(lo - s, hi - s) for lo, hi, s in spans)
        window[(0, slice(None), *inner)] = volume[(slice(None), *outer)].float().cpu()
        y = network.of(window.half().to(DEVICE))[0].to(network.dtype).double().cpu().numpy()
        w = np.einsum("i,j,k->ijk", axes[0].weights[i], axes[1].weights[j], axes[2].weights[k])
        total[(slice(None), *outer)] += (y * w)[(slice(None), *inner)]
    return total


CASES = {
    "overlap of a half": lambda: [EvenAxis(n, s // 2, gaussian_profile(s, s / 8, 1 / 3)) for n, s in
                                  ((16, 8), (18, 12), (24, 16))],
    "one window": lambda: [EvenAxis(s, s, np.ones(s)) for s in (8, 12, 16)],
    "uneven, past both ends": lambda: [Axis((-3, 2, 7), 8, 13), Axis((0, 3, 5), 12, 17), Axis((0,), 16, 16)],
    "smaller than the window": lambda: [Axis((-2,), 8, 4), Axis((-1,), 12, 10), Axis((0, 4), 16, 20)],
    "a third of the window": lambda: [EvenAxis(20, 3, np.ones(8)), EvenAxis(12, 12, np.ones(12)),
                                      EvenAxis(16, 16, np.ones(16))],
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("last", [False, True])
def test_whole_volume(name, last):
    axes = CASES[name]()
    network = Network(tuple(axis.size for axis in axes), channels=2, last=last)
    volume = rand(2, *(axis.count for axis in axes), dtype=torch.float32)
    plan = VolumePlan(axes, {1: 1.0, 2: 1.8, 4: 3.0}, DEVICE)
    labels = torch.full(plan.shape, 255, dtype=torch.uint8, device=DEVICE)
    values = poisoned(3, *plan.shape, dtype=torch.float32)
    runner = VolumeRunner(network)
    runner.run(volume, plan, labels=labels, values=values)
    runner.check()
    r = expected(network, volume, axes)
    # float32 sums of at most 27 products of float16 values and float32 weights
    assert np.abs(values.cpu().numpy() - r).max() < 2e-5 * np.abs(r).max()
    assert (labels.cpu().numpy() == values.cpu().numpy().argmax(0)).all()
    assert sum(network.sizes) - sum(b.count for b in plan.batches) <= 3
    assert plan.slots <= (plan.axes[0].cover + 1) * plan.per_row + 3


def test_batches_do_not_change_a_bit():
    axes = CASES["overlap of a half"]()
    volume = rand(1, *(axis.count for axis in axes), dtype=torch.float32)
    found = []
    for times in ({1: 1.0}, {2: 1.0}, {4: 1.0}, {1: 1.0, 4: 2.0}):
        network = Network(tuple(axis.size for axis in axes))
        plan = VolumePlan(axes, times, DEVICE)
        values = poisoned(3, *plan.shape, dtype=torch.float32)
        labels = torch.full(plan.shape, 255, dtype=torch.uint8, device=DEVICE)
        VolumeRunner(network).run(volume, plan, labels=labels, values=values)
        found.append((values, labels))
    for values, labels in found[1:]:
        assert torch.equal(values, found[0][0]) and torch.equal(labels, found[0][1])


def test_a_constant_comes_out_as_it_is():
    axes = CASES["overlap of a half"]()
    network = Network(tuple(axis.size for axis in axes))
    network.of = lambda x: torch.full((len(x), 3, *network.window), 2.5, dtype=torch.float64)
    plan = VolumePlan(axes, {1: 1.0}, DEVICE)
    values = poisoned(3, *plan.shape, dtype=torch.float32)
    VolumeRunner(network).run(rand(1, *plan.shape), plan, values=values)
    assert (values - 2.5).abs().max() < 1e-6 * 2.5


def test_nan_is_an_error_once():
    axes = CASES["one window"]()
    network = Network(tuple(axis.size for axis in axes))
    plan = VolumePlan(axes, {1: 1.0}, DEVICE)
    labels = torch.zeros(plan.shape, dtype=torch.uint8, device=DEVICE)
    volume = rand(1, *plan.shape, dtype=torch.float32)
    runner = VolumeRunner(network)
    volume[0, 3, 4, 5] = float("nan")
    runner.run(volume, plan, labels=labels)
    with pytest.raises(NotFiniteError):
        runner.check()
    volume[0, 3, 4, 5] = 0
    runner.run(volume, plan, labels=labels)
    runner.check()


def test_equal_channels_give_the_lowest():
    axes = CASES["one window"]()
    network = Network(tuple(axis.size for axis in axes))
    network.of = lambda x: torch.ones(len(x), 3, *network.window, dtype=torch.float64)
    plan = VolumePlan(axes, {1: 1.0}, DEVICE)
    labels = torch.full(plan.shape, 255, dtype=torch.uint8, device=DEVICE)
    VolumeRunner(network).run(rand(1, *plan.shape), plan, labels=labels)
    assert not labels.any()


def test_cut_fills_what_lies_outside():
    volume = rand(1, 6, 7, 8, dtype=torch.float32)
    windows = poisoned(2, 1, 4, 4, 4)
    starts = torch.tensor([[-2, 0, 0], [4, 5, 6]], dtype=torch.int32, device=DEVICE)
    cut(volume, starts, windows, fill=-1.5)
    assert (windows[0, :, :2] == -1.5).all() and (windows[1, :, 2:] == -1.5).all()
    assert torch.equal(windows[0, 0, 2:], volume[0, :2, :4, :4].half())
    assert torch.equal(windows[1, 0, :2, :2, :2], volume[0, 4:, 5:, 6:].half())


def test_schedule():
    assert schedule(5, {1: 1.0, 4: 3.0}) == [4, 1]
    assert schedule(7, {1: 1.0, 4: 2.0}) == [4, 4]  # eight are faster than four and three single ones
    assert schedule(3, {2: 1.0}) == [2, 2]
    assert schedule(0, {1: 1.0}) == []
    with pytest.raises(EngineError):
        schedule(3, {})


def test_wrong_shapes_are_refused():
    axes = CASES["one window"]()
    network = Network(tuple(axis.size for axis in axes))
    plan = VolumePlan(axes, {1: 1.0}, DEVICE)
    runner = VolumeRunner(network)
    with pytest.raises(EngineError, match="plan is for"):
        runner.run(rand(1, 8, 12, 15), plan, labels=torch.zeros(8, 12, 15, dtype=torch.uint8))
    with pytest.raises(EngineError, match="neither"):
        runner.run(rand(1, *plan.shape), plan)
    with pytest.raises(EngineError, match="uncovered"):
        VolumePlan([Axis((0, 9), 8, 17), *axes[1:]], {1: 1.0}, DEVICE)
    with pytest.raises(EngineError, match="whole strides"):
        EvenAxis(20, 8, np.ones(16))
