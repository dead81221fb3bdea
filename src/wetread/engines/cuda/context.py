"""Contexts of the CUDA engine: an arena, a stream, a captured graph, and pinned memory to copy through."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from wetread.engines.common import Closing, Port, Ports, StreamTicket
from wetread.engines.cuda.device import Device
from wetread.engines.cuda.executable import Executable
from wetread.engines.cuda.host import Given, as_tensor, check_batch
from wetread.engines.cuda.plan import Plan
from wetread.engines.cuda.store import Store
from wetread.errors import DeviceMemoryError, EngineError, NotFiniteError


class Slot:
    """One input or output of a context: the program's tensor, and memory to copy it through.

    Args:
        executable: whose tensor it is.
        port: shape and types that callers may use; the first type is the network's own.
        max_batch: windows of a submission.
        written: for an output.

    Attributes:
        tensor: the program's, (batch, channels, *spatial) with any strides.
        host: (max_batch, channels, *spatial), pinned where there is a GPU.
        sums: of each window of a group, in the order of the graph; not finite where a value is not.
        bytes: on the device, beside the arena.
    """

    def __init__(self, executable: Executable, port: Port, max_batch: int, written: bool) -> None:
        device = executable.device
        self.port = port
        self.tensor = executable.tensors[port.name]
        batch, own = self.tensor.shape[0], self.tensor.dtype
        dtype = own if written else getattr(torch, port.dtypes[0])
        self._plain = torch.empty(0, dtype=dtype)
        """On the device, between pinned memory and a tensor of another type or layout."""
        if device.gpu and (dtype != own or not self.tensor.is_contiguous()):
            self._plain = torch.empty((batch, *port.shape), dtype=dtype, device=device.torch)
        shape = (max_batch, *port.shape) if device.gpu else (0,)
        self.host = torch.empty(shape, dtype=dtype, pin_memory=device.gpu)
        wide = torch.float64 if own == torch.float64 else torch.float32
        self.checked = own.is_floating_point
        self._sums = torch.zeros(batch if self.checked else 0, dtype=wide, device=device.torch)
        self.sums = torch.zeros(
            (math.ceil(max_batch / batch), len(self._sums)), dtype=wide, pin_memory=device.gpu
        )
        self.bytes = sum(t.numel() * t.element_size() for t in (self._plain, self._sums))

    def add_up(self) -> None:
        """Part of the graph: each window's sum, which NaN and infinity pass through."""
        if self.checked:
            axes = tuple(range(1, self.tensor.ndim))
            torch.sum(self.tensor, axes, dtype=self._sums.dtype, out=self._sums)

    def take(self, array: torch.Tensor, at: int, count: int) -> None:
        """Puts windows from `at` on into the program's input, in the stream's order."""
        given = array[at : at + count]
        target = self.tensor[:count]
        if given.device.type == "cpu" and len(self.host):
            staged = self.host[at : at + count]
            staged.copy_(given)
            if len(self._plain):
                self._plain[:count].copy_(staged, non_blocking=True)
                staged = self._plain[:count]
            target.copy_(staged, non_blocking=True)
        else:
            target.copy_(given)

    def give(self, array: torch.Tensor, at: int, count: int) -> None:
        """Takes a group's windows out of the program's output: into the array, or on their way to it."""
        source = self.tensor[:count]
        if array.device.type == "cpu" and len(self.host):
            if len(self._plain):
                source = self._plain[:count].copy_(source)
            self.host[at : at + count].copy_(source, non_blocking=True)
        else:
            array[at : at + count].copy_(source)

    def report(self, group: int) -> None:
        """Brings the sums of a group to the host, in the stream's order."""
        if self.checked:
            self.sums[group].copy_(self._sums, non_blocking=True)

    def suspicious(self, n: int) -> bool:
        """Whether one of the batch's windows has a sum that is not finite; the stream has passed."""
        return self.checked and not bool(torch.isfinite(self.sums.reshape(-1)[:n]).all())


class CudaContext(Closing):
    """A plan that runs in an arena of its own, on a stream of its own.

    Windows run in groups of the plan's batch; a group that is not full leaves the rest of the arena's input as it
    was. So a window goes through the same kernels whichever others came with it, and its numbers do not depend on
    them.

    Args:
        plan: for windows of one shape.
        store: weights, shared with the engine's other contexts.
        device: where.
        ports: what callers hand over.
        max_batch: windows of a submission.

    Attributes:
        bytes: device memory beside the weights: the arena, what library kernels hold, what is staged; all of it is
            taken now.
        max_batch: largest batch that `submit` takes.

    Raises:
        DeviceMemoryError: it does not fit; other contexts go on.
    """

    def __init__(self, plan: Plan, store: Store, device: Device, ports: Ports, max_batch: int) -> None:
        self.max_batch = max_batch
        self._device = device
        self._ports = ports
        self._batch = plan.program.batch
        self._ticket: StreamTicket | None = None
        self._closed = False
        _check_memory(plan, device)
        self._executable = Executable(plan, store, device)
        try:
            with device.guard.watch("a context could not be made"), self._executable.current():
                self._inputs = [Slot(self._executable, port, max_batch, False) for port in ports[0]]
                self._outputs = [Slot(self._executable, port, max_batch, True) for port in ports[1]]
                for slot in self._inputs:
                    slot.tensor.zero_()
                self._event = torch.cuda.Event() if device.gpu else None
            self._executable.capture(self._before, self._after)
        except BaseException:
            self._executable.close()
            raise
        self.bytes = self._executable.bytes + sum(slot.bytes for slot in (*self._inputs, *self._outputs))

    def _before(self) -> None:
        for slot in self._inputs:
            slot.add_up()

    def _after(self) -> None:
        for slot in self._outputs:
            slot.add_up()

    def submit(self, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> StreamTicket:
        """Starts one batch.

        Args:
            inputs: numpy arrays, torch tensors or DLPack objects (n, channels, *spatial), C-contiguous. Those in
                the processor's memory are copied to pinned memory before this returns; those on the device are read
                in the order of the stream that is torch's current one now.
            outputs: the same, of the shapes that the network returns; written when the ticket is done.

        Raises:
            EngineError: an array does not fit, another batch is still running, or the context is closed.
            DeviceFaultError: the device was lost.
        """
        if self._closed:
            raise EngineError("the context is closed")
        self._device.guard.check()
        if self._ticket is not None and not self._ticket.done():
            raise EngineError("another batch is still running", todo="wait for its ticket first")
        taken, given, n = check_batch(inputs, outputs, self._ports, self.max_batch, self._device.torch)
        arrays = [as_tensor(array) for array in taken], [as_tensor(array) for array in given]
        with self._device.guard.watch("the batch failed"):
            self._follow(taken, given)
            with self._executable.current():
                self._start(arrays, n)
        self._ticket = StreamTicket(self.reached, partial(self.collect, *arrays, n))
        return self._ticket

    def _follow(self, *sides: Sequence[Given]) -> None:
        """Makes the stream wait for what the caller has put on its own, where arrays are on the device."""
        stream = self._executable.stream
        if stream is not None and any(
            isinstance(a, torch.Tensor) and a.is_cuda for side in sides for a in side
        ):
            stream.wait_stream(torch.cuda.current_stream(self._device.torch))

    def _start(self, arrays: tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]], n: int) -> None:
        """Puts all groups of a batch on the stream."""
        for group, at in enumerate(range(0, n, self._batch)):
            count = min(self._batch, n - at)
            for slot, array in zip(self._inputs, arrays[0], strict=True):
                slot.take(array, at, count)
            self._executable.run()
            for slot, array in zip(self._outputs, arrays[1], strict=True):
                slot.give(array, at, count)
            for slot in (*self._inputs, *self._outputs):
                slot.report(group)
        if self._event is not None:
            self._event.record()

    def reached(self) -> bool:
        """True where the device has done the last batch."""
        with self._device.guard.watch("the batch failed"):
            return self._event is None or bool(self._event.query())

    def collect(self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor], n: int) -> None:
        """Waits for the last batch and copies its outputs out of pinned memory.

        Raises:
            NotFiniteError: an input or an output holds NaN or infinity.
            EngineError: the device failed.
        """
        with self._device.guard.watch("the batch failed"):
            if self._event is not None:
                self._event.synchronize()
            for slot, array in zip(self._outputs, outputs, strict=True):
                if array.device.type == "cpu" and len(slot.host):
                    array.copy_(slot.host[:n])
            for kind, slots, arrays in (("input", self._inputs, inputs), ("output", self._outputs, outputs)):
                for slot, array in zip(slots, arrays, strict=True):
                    if slot.suspicious(n):
                        _check_finite(array, slot, kind)

    def close(self) -> None:
        """Waits for a running batch, then frees arena, graph and pinned memory; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        if self._ticket is not None:
            self._ticket.settle()
        if self._device.guard.faulted:
            self._device.guard.abandon(self._inputs, self._outputs, self._event)
        self._inputs, self._outputs = [], []
        self._executable.close()


def _check_memory(plan: Plan, device: Device) -> None:
    """Refuses a context whose arena is larger than what is free, before anything is taken.

    Raises:
        DeviceMemoryError: it is.
    """
    free = device.free_bytes()
    if free is not None and plan.bytes > free:
        raise DeviceMemoryError(
            f"a context for {plan.program.batch} windows of {plan.program.window} takes {plan.bytes / 2**20:.1f} MiB, "
            f"{free / 2**20:.1f} are free",
            where=device.name,
            todo="use a smaller window or batch, or fewer contexts",
        )


def _check_finite(array: torch.Tensor, slot: Slot, kind: str) -> None:
    """Looks at each value; a sum of large ones may have overflowed although each of them is finite.

    Raises:
        NotFiniteError: how many values are not.
    """
    own = slot.tensor.dtype
    todo = (
        "look at the preprocessing and at the network's precision; no mask is made of this"
        if kind == "output"
        else "look at the volume and the recipe's steps"
    )
    bad = array.numel() - int(torch.isfinite(array).sum())
    if bad:
        raise NotFiniteError(
            f"{bad} of {array.numel()} values are NaN or infinite",
            where=f"{kind} {slot.port.name}",
            todo=todo,
        )
    if kind == "input":
        beyond = int((~torch.isfinite(array.to(own))).sum())
        if beyond:
            limit = f"{torch.finfo(own).max:.4g}"
            name = str(own).removeprefix("torch.")
            raise NotFiniteError(
                f"{beyond} of {array.numel()} values are beyond {limit}, the largest that {name} holds",
                where=f"{kind} {slot.port.name}",
                todo=todo,
            )
