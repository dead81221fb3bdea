"""A whole volume through a network, on the device from end to end: windows cut, run in batches, stitched, read off.

The volume lies in device memory. A kernel cuts a batch of windows into the network's input; the network runs; its
outputs are kept in a ring. Once a row of windows (all with one start along axis 0) is done, a kernel sums the planes
that no later row covers: each voxel adds the outputs of its windows, each times its weight, once and in one order.
So nothing is added to memory twice, the result does not depend on batches, and the ring holds no more rows than
cover a voxel, whatever the length of the volume.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from wetread.engines.common import Closing
from wetread.engines.cuda.device import Device
from wetread.engines.cuda.executable import Executable
from wetread.engines.cuda.plan import Launch, Plan
from wetread.engines.cuda.store import Store
from wetread.errors import EngineError, NotFiniteError
from wetread.kernels.volume import AxisTables, cut, keep, stitch

Shape3 = tuple[int, int, int]


class Axis(Protocol):
    """The windows along one axis, as `inference.windows.AxisWindows` has them.

    Attributes:
        starts: first voxel of each window, rising; may be negative, or reach past the end.
        size: voxels of a window.
        count: voxels of the volume.
        weights: (windows, size) float32; sums to 1 over the windows at every voxel.
    """

    @property
    def starts(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def size(self) -> int: ...  # noqa: D102
    @property
    def count(self) -> int: ...  # noqa: D102
    @property
    def weights(self) -> NDArray[np.float32]: ...  # noqa: D102


@dataclass(frozen=True, eq=False)
class EvenAxis:
    """Windows at whole multiples of a stride, weighted by a profile.

    Attributes:
        count: voxels of the volume, the window and whole strides more.
        stride: voxels from window to window.
        profile: (size,) weights of a window before they are normalised.
    """

    count: int
    stride: int
    profile: NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.count < self.size or (self.count - self.size) % self.stride:
            raise EngineError(
                f"an axis of {self.count} voxels is not a window of {self.size} and whole strides of {self.stride}",
                todo="pad the volume",
            )

    @property
    def size(self) -> int:
        """Voxels of a window."""
        return len(self.profile)

    @property
    def starts(self) -> tuple[int, ...]:
        """First voxel of each window."""
        return tuple(range(0, self.count - self.size + 1, self.stride))

    @cached_property
    def weights(self) -> NDArray[np.float32]:
        """(windows, size), normalised at each voxel."""
        total = np.zeros(self.count)
        for start in self.starts:
            total[start : start + self.size] += self.profile
        return np.stack([self.profile / total[s : s + self.size] for s in self.starts]).astype(np.float32)


def gaussian_profile(size: int, sigma: float, power: float = 1.0) -> NDArray[np.float64]:
    """exp(−x² / 2σ²) to a power about the middle of a window, largest 1 where the size is odd.

    Args:
        size: voxels of the window.
        sigma: in voxels.
        power: ⅓ gives, as product over the axes, the cube root of MLPerf's three-dimensional Gaussian.
    """
    x = np.arange(size) - (size - 1) / 2
    return np.asarray(np.exp(-power * x**2 / (2 * sigma**2)))


class WindowNetwork(Protocol):
    """A network on the device with tensors of its own, for batches of some sizes.

    Attributes:
        batches: sizes that it runs, rising.
    """

    batches: tuple[int, ...]

    def tensors(self, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Where the input (n, C, d, h, w) is read and the output (n, K, d, h, w) is left, any strides."""
        ...

    def ready(self, batch: int) -> None:
        """Called before the input of a batch of this size is written, on the current stream."""
        ...

    def launch(self, batch: int) -> None:
        """Runs a batch of this size on the current stream; does not wait."""
        ...


class PlannedNetwork(Closing):
    """Plans of one network for several batches, in one arena, since they never run at once.

    Args:
        plans: for one window, each for another batch.
        store: the weights.
        device: where.

    Attributes:
        batches: sizes, rising.
        stream: on which all of it runs.
        bytes: device memory beside the weights: one arena, and what library kernels keep.
    """

    def __init__(self, plans: Sequence[Plan], store: Store, device: Device) -> None:
        if not plans or len({plan.program.window for plan in plans}) != 1:
            raise EngineError("a network is read by plans for one window and several batches")
        self._plans = {plan.program.batch: plan for plan in plans}
        self.batches = tuple(sorted(self._plans))
        self.stream = torch.cuda.Stream(device.torch) if device.gpu else None
        largest = max(plans, key=lambda plan: plan.bytes)
        with device.guard.watch(f"an arena of {largest.bytes / 2**20:.0f} MiB could not be made"):
            self._arena = largest.arena(device.torch)
        self._made: dict[int, Executable] = {}
        for batch in self.batches:
            plan = self._plans[batch]
            plan.zero_once(self._arena)
            made = Executable(plan, store, device, stream=self.stream, arena=self._arena)
            for name in plan.program.inputs:
                made.tensors[name].zero_()
            made.capture()
            self._made[batch] = made
        self._last = self.batches[-1]

    @property
    def bytes(self) -> int:
        """Device memory beside the weights."""
        return int(self._arena.numel()) + sum(made.bytes for made in self._made.values())

    def tensors(self, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """First input and first output of the plan for this batch."""
        made, program = self._made[batch], self._plans[batch].program
        return made.tensors[program.inputs[0]], made.tensors[program.outputs[0]]

    def ready(self, batch: int) -> None:
        """Clears what another batch's plan left where this one wants zeros."""
        if batch != self._last:
            self._plans[batch].zero_once(self._arena)
            self._last = batch

    def launch(self, batch: int) -> None:
        """Runs the plan; stream and device are current."""
        self._made[batch].run()

    def launches(self, batch: int) -> tuple[Launch, ...]:
        """The steps of a batch's plan, to be launched one by one; what they launch goes to torch's current stream."""
        return self._made[batch].launches

    @contextmanager
    def current(self) -> Iterator[None]:
        """Makes stream and device torch's own for a block."""
        with self._made[self._last].current():
            yield

    def close(self) -> None:
        """Frees arena and graphs; a second call does nothing."""
        for made in self._made.values():
            made.close()
        self._made.clear()
        self._arena = torch.empty(0, dtype=torch.uint8)


def schedule(windows: int, times: Mapping[int, float]) -> list[int]:
    """Batches whose sum is `windows` or, where that is faster, a little more, with the least measured time.

    Args:
        windows: how many there are.
        times: of a batch of each size, in any unit.

    Returns:
        Sizes, largest first; the last batch may hold windows that are run twice.
    """
    if windows < 0 or not times or min(times) < 1:
        raise EngineError(f"no batches for {windows} windows of sizes {sorted(times)}")
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    for n in range(1, windows + 1):
        options = ((best[max(0, n - b)][0] + t, (*best[max(0, n - b)][1], b)) for b, t in times.items())
        best.append(min(options, key=lambda option: (option[0], len(option[1]))))
    return sorted(best[windows][1], reverse=True)


@dataclass(frozen=True)
class Batch:
    """Some windows that run together.

    Attributes:
        size: windows that the network runs.
        first: number of the first window in canonical order.
        count: windows of it that are new; the rest repeats the last.
        planes: of the volume that can be stitched after it, first and one past the last; equal for none.
    """

    size: int
    first: int
    count: int
    planes: tuple[int, int]


class VolumePlan:
    """Which windows run together, what is stitched when, and the tables for it on the device.

    Args:
        axes: windows along D, H, W.
        times: measured time of a batch of each size that the network runs.
        device: where the tables lie.

    Attributes:
        shape: voxels of the volume.
        window: voxels of a window.
        batches: in order.
        slots: windows whose outputs the ring holds.
    """

    def __init__(
        self, axes: Sequence[Axis], times: Mapping[int, float], device: torch.device | str = "cuda"
    ) -> None:
        a, b, c = axes
        self.shape: Shape3 = (a.count, b.count, c.count)
        self.window: Shape3 = (a.size, b.size, c.size)
        self.per_row = len(b.starts) * len(c.starts)
        self.windows = len(a.starts) * self.per_row
        self.axes = [_tables(axis, device) for axis in axes]
        sizes = schedule(self.windows, times)
        self.slots = min(self.windows, self.axes[0].cover * self.per_row + max(sizes) - 1)
        self.batches = list(_batches(sizes, self.windows, a, self.per_row))
        places = list(itertools.product(a.starts, b.starts, c.starts))
        order = [min(x.first + i, self.windows - 1) for x in self.batches for i in range(x.size)]
        at = np.cumsum([0, *(x.size for x in self.batches)])
        self._begin = [int(i) for i in at[:-1]]
        starts = np.array([places[i] for i in order], np.int32)
        slots = np.array([i % self.slots for i in order], np.int32)
        self._starts = torch.from_numpy(starts).to(device)
        self._slots = torch.from_numpy(slots).to(device)

    def starts(self, number: int) -> torch.Tensor:
        """(size, 3) int32, first voxels of a batch's windows."""
        begin = self._begin[number]
        return self._starts[begin : begin + self.batches[number].size]

    def slots_of(self, number: int) -> torch.Tensor:
        """(count,) int32, slots of a batch's outputs."""
        begin = self._begin[number]
        return self._slots[begin : begin + self.batches[number].count]

    def ring_bytes(self, channels: int, dtype: torch.dtype) -> int:
        """Bytes of the ring for outputs of this many channels."""
        a, b, c = self.window
        return int(self.slots * channels * a * b * c * dtype.itemsize)


def _tables(axis: Axis, device: torch.device | str) -> AxisTables:
    starts = np.array(axis.starts, np.int32)
    voxels = np.arange(axis.count)
    first = np.searchsorted(starts + axis.size, voxels, side="right")
    behind = np.searchsorted(starts, voxels, side="right")
    if (np.diff(starts) <= 0).any() or (behind <= first).any():
        raise EngineError(f"windows at {axis.starts} of {axis.size} leave voxels of {axis.count} uncovered")
    block = min(128, 1 << (axis.count - 1).bit_length())
    ends = np.minimum(np.arange(0, axis.count, block) + block, axis.count) - 1
    return AxisTables(
        torch.from_numpy(starts).to(device),
        torch.from_numpy(first.astype(np.int32)).to(device),
        torch.from_numpy(np.ascontiguousarray(axis.weights, np.float32)).to(device),
        int((behind - first).max()),
        block,
        int((behind[ends] - first[::block]).max()),
        math.gcd(8, *map(int, starts)),
    )


def _batches(sizes: Sequence[int], windows: int, axis: Axis, per_row: int) -> list[Batch]:
    """Batches in order; after each, the planes whose windows have all run."""
    found: list[Batch] = []
    done = ready = 0
    for size in sizes:
        count = min(size, windows - done)
        rows = (done + count) // per_row
        upto = axis.count if rows == len(axis.starts) else max(0, axis.starts[rows])
        upto = min(upto, axis.count) if rows else 0
        found.append(Batch(size, done, count, (ready, max(ready, upto))))
        done, ready = done + count, max(ready, upto)
    return found


class VolumeRunner:
    """Reads volumes through a network on one stream; holds the ring.

    Args:
        network: on the device.
        fill: value outside the volume.

    Attributes:
        bytes: device memory held by the ring, which grows to what the largest volume so far needed.
    """

    def __init__(self, network: WindowNetwork, fill: float = 0.0) -> None:
        self._network = network
        self._fill = fill
        output = network.tensors(network.batches[0])[1]
        self._channels = output.shape[1]
        self._ring = torch.empty(0, dtype=output.dtype, device=output.device)
        self._bad = torch.zeros(1, dtype=torch.int32, device=output.device)

    @property
    def bytes(self) -> int:
        """Device memory held by the ring."""
        return int(self._ring.numel() * self._ring.element_size())

    def run(
        self, volume: torch.Tensor, plan: VolumePlan, *, labels: torch.Tensor | None = None,
        values: torch.Tensor | None = None,
    ) -> None:  # fmt: skip
        """Launches all of a volume on the current stream; `check` waits for it and looks at the numbers.

        Args:
            volume: [C, D, H, W] on the device, prepared as the network reads it.
            plan: for this shape.
            labels: [D, H, W] uint8, receives the largest channel.
            values: [K, D, H, W], receives the blended outputs.

        Raises:
            EngineError: shapes do not fit.
        """
        if tuple(volume.shape[1:]) != plan.shape:
            raise EngineError(f"the plan is for {plan.shape}, the volume is {tuple(volume.shape[1:])}")
        if labels is None and values is None:
            raise EngineError("neither labels nor values are asked for")
        ring = self._ring_of(plan)
        for number, batch in enumerate(plan.batches):
            source, output = self._network.tensors(batch.size)
            self._network.ready(batch.size)
            cut(volume, plan.starts(number), source, self._fill)
            self._network.launch(batch.size)
            keep(output[: batch.count], plan.slots_of(number), ring)
            stitch(ring, plan.axes, batch.planes, self._bad, labels=labels, values=values)

    def check(self) -> None:
        """Waits for what was launched.

        Raises:
            NotFiniteError: an output was NaN or infinite; no mask may be made of what ran since the last check.
        """
        if int(self._bad.item()):
            self._bad.zero_()
            raise NotFiniteError(
                "the network's outputs are NaN or infinite somewhere in the volume",
                todo="look at the preprocessing and at the network's precision; no mask is made of this",
            )

    def _ring_of(self, plan: VolumePlan) -> torch.Tensor:
        shape = (plan.slots, self._channels, *plan.window)
        size = int(np.prod(shape))
        if self._ring.numel() < size:
            self._ring = torch.empty(size, dtype=self._ring.dtype, device=self._ring.device)
        return self._ring[:size].view(shape)
