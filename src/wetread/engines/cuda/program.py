"""A lowered network: tensors, fused steps in order, weights. What a plan is before memory and kernels are chosen.

Shapes are the graph's own, (N, C, D, H, W) for maps of voxels, with the batch in them; how a tensor lies in memory
is in its strides alone. Maps are stored channels last; so a Transpose, a Slice or a concat that is never made are
views of one storage, and cost nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch

from wetread.errors import EngineError

Shape: TypeAlias = tuple[int, ...]
Json: TypeAlias = Any
"""Numbers, strings, lists, and mappings of these."""

SUMS_REPLICAS = 8
"""Copies of a norm's sums: programs of a kernel spread their atomic additions over them."""


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of a program.

    Attributes:
        shape: as in the graph, with the batch.
        dtype: torch's name without ``torch.``, such as ``float16`` or ``float8_e4m3fn``.
        strides: in elements, one for each axis of `shape`.
        base: name of the tensor whose storage this one is a view of; empty where it has its own.
        offset: elements from the start of the base's storage.
        zeroed: filled with zeros before every run (sums, to which steps add), or once where no step adds to it: the
            border around the network's input, whose memory is shared with no other tensor.
    """

    shape: Shape
    dtype: str
    strides: Shape
    base: str = ""
    offset: int = 0
    zeroed: bool = False

    @property
    def torch_dtype(self) -> torch.dtype:
        """Element type."""
        return getattr(torch, self.dtype)

    @property
    def elements(self) -> int:
        """Elements that the storage must hold, gaps between rows included."""
        if 0 in self.shape:
            return 0
        return 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))

    @property
    def bytes(self) -> int:
        """Bytes that the storage must hold."""
        return int(self.elements * self.torch_dtype.itemsize)

    def view(self, storage: torch.Tensor) -> torch.Tensor:
        """The tensor in a flat storage (of uint8, or of its own type).

        Raises:
            EngineError: the storage is too small.
        """
        flat = storage.view(self.torch_dtype)
        if flat.numel() < self.offset + self.elements:
            raise EngineError(f"a tensor {self.shape} does not fit into a storage of {flat.numel()} elements")
        return torch.as_strided(flat, self.shape, self.strides, flat.storage_offset() + self.offset)


def row_major(shape: Sequence[int]) -> Shape:
    """Strides of a C-contiguous tensor."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def channels_last(shape: Sequence[int]) -> Shape:
    """Strides of (N, C, *space) stored as [N, *space, C]; row-major below three axes."""
    if len(shape) < 3:
        return row_major(shape)
    _, c, *space = shape
    inner = [c * math.prod(space[i + 1 :]) for i in range(len(space))]
    return (c * math.prod(space), 1, *inner)


def sums_spec(batch: int, channels: int) -> TensorSpec:
    """Sum and sum of squares of each channel, float64 [replicas, N, C, 2]; zeroed before every run."""
    shape = (SUMS_REPLICAS, batch, channels, 2)
    return TensorSpec(shape, "float64", row_major(shape), zeroed=True)


@dataclass(frozen=True)
class Step:
    """One fused step.

    Attributes:
        name: unique in the program; that of the graph's node that gives it most of its work.
        op: name of its operation (`operations.OPERATIONS`).
        inputs: tensor or weight for each role of the operation; absent roles are left out.
        outputs: tensor for each role.
        attributes: plain data, see the operation.
        nodes: names of the graph's nodes that it computes.
        kernel: what the tuner chose, see the operation; None runs the library's kernels.
    """

    name: str
    op: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    attributes: Mapping[str, Json] = field(default_factory=dict)
    nodes: tuple[str, ...] = ()
    kernel: Mapping[str, Json] | None = None

    def with_kernel(self, kernel: Mapping[str, Json] | None) -> Step:
        """The same step run by another kernel."""
        return replace(self, kernel=kernel)


@dataclass
class Program:
    """A network for one window and batch, as steps in the order in which they run.

    Attributes:
        window: D, H, W.
        batch: windows at once.
        precision: of the engine, such as ``float16`` or ``int8``.
        inputs, outputs: names of the network's tensors, as in the graph.
        tensors: by name; weights are not among them.
        weights: by name, on the CPU until an engine moves them, as steps describe them (packed only by kernels).
        steps: in order.
    """

    window: tuple[int, int, int]
    batch: int
    precision: str
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    tensors: dict[str, TensorSpec] = field(default_factory=dict)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)

    def spec(self, name: str) -> TensorSpec:
        """Shape, type and strides of a tensor or a weight.

        Raises:
            EngineError: there is none of that name.
        """
        if name in self.tensors:
            return self.tensors[name]
        if name not in self.weights:
            raise EngineError(f"the program has no tensor {name!r}")
        w = self.weights[name]
        return TensorSpec(tuple(w.shape), str(w.dtype).removeprefix("torch."), tuple(w.stride()))

    def base(self, name: str) -> str:
        """Name of the tensor whose storage a tensor lies in."""
        while self.tensors[name].base:
            name = self.tensors[name].base
        return name

    def lifetimes(self) -> dict[str, tuple[int, int]]:
        """First and last step that touch each storage; the network's inputs live from -1, its outputs to the end.

        Storages that are zeroed before a run live from -1 as well, those that are zeroed once always.
        """
        found: dict[str, tuple[int, int]] = {}
        added = {name for step in self.steps for role, name in step.outputs.items() if role == "sums"}

        def touch(name: str, at: int) -> None:
            if name in self.tensors:
                base = self.base(name)
                first, last = found.get(base, (at, at))
                found[base] = (min(first, at), max(last, at))

        for name, spec in self.tensors.items():
            if name in self.inputs or spec.zeroed:
                touch(name, -1)
            if spec.zeroed and name not in added:
                touch(name, len(self.steps))
        for i, step in enumerate(self.steps):
            for name in (*step.inputs.values(), *step.outputs.values()):
                touch(name, i)
        for name in self.outputs:
            touch(name, len(self.steps))
        return found

    def verify(self) -> None:
        """Checks that each tensor is written before it is read, names are known and views lie inside their base.

        Raises:
            EngineError: names the step.
        """
        ready = {self.base(name) for name in self.inputs}
        ready |= {name for name, spec in self.tensors.items() if spec.zeroed}
        names: set[str] = set()
        for step in self.steps:
            if step.name in names:
                raise EngineError("two steps have this name", where=step.name)
            names.add(step.name)
            for role, name in (*step.inputs.items(), *step.outputs.items()):
                if name not in self.tensors and name not in self.weights:
                    raise EngineError(f"its {role} {name!r} is no tensor of the program", where=step.name)
            for role, name in step.inputs.items():
                if name in self.tensors and self.base(name) not in ready:
                    raise EngineError(f"reads its {role} {name!r} before anything writes it", where=step.name)
            ready |= {self.base(name) for name in step.outputs.values()}
        for name in self.outputs:
            if self.base(name) not in ready:
                raise EngineError("nothing writes this output", where=name)
        for name, spec in self.tensors.items():
            if spec.base and spec.offset + spec.elements > self.tensors[self.base(name)].elements:
                raise EngineError("is a view beyond its storage", where=name)
