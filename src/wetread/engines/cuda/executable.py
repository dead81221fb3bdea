"""A plan that can run: its tensors in an arena of its own, its steps prepared, captured as one CUDA graph."""

from __future__ import annotations

import gc
import threading
from collections import ChainMap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch

from wetread.engines.common import Closing
from wetread.engines.cuda.clock import capturing
from wetread.engines.cuda.device import Device
from wetread.engines.cuda.plan import Launch, Plan, library_settings
from wetread.engines.cuda.store import Store
from wetread.errors import EngineError

CAPTURE = threading.Lock()
"""Held while kernels are compiled and graphs captured: settings of the libraries are the process's."""


def _nothing() -> None:
    """Stands for what is not there."""


class Executable(Closing):
    """A plan on one stream.

    Args:
        plan: for this device.
        store: weights, shared with other executables of the engine.
        device: where.
        stream: whose work it becomes; None makes one (there is none on the processor).
        arena: flat uint8 of `Plan.bytes` or more, for executables that never run at once (who changes from one to
            another calls `Plan.zero_once`); None makes one.

    Attributes:
        tensors: of the program by name, as views into the arena; inputs are written into them before `run`, outputs
            read from them after it, both in the stream's order.
        bytes: device memory beside the weights: the arena, and what library kernels keep for the graph.
        stream: None on the processor.

    Raises:
        DeviceMemoryError: it does not fit.
        DeviceFaultError: the device was lost.
        EngineError: a kernel does not take its tensors.
    """

    def __init__(
        self,
        plan: Plan,
        store: Store,
        device: Device,
        *,
        stream: torch.cuda.Stream | None = None,
        arena: torch.Tensor | None = None,
    ) -> None:
        self.plan = plan
        self.device = device
        self.stream = torch.cuda.Stream(device.torch) if device.gpu and stream is None else stream
        self._graph: torch.cuda.CUDAGraph | None = None
        self._run: Callable[[], None] = self.launch
        self._launches: list[Launch] = []
        self._pool_bytes = 0
        self._own_bytes = plan.bytes if arena is None else 0
        self._follow()
        with (
            device.guard.watch(f"a context of {plan.bytes / 2**20:.0f} MiB could not be made"),
            self.current(),
        ):
            self.arena = plan.arena(device.torch) if arena is None else arena
            self.tensors = plan.tensors(self.arena, {})
            found = ChainMap(self.tensors, store.weights(plan))  # type: ignore[arg-type]
            with CAPTURE:
                self._launches = plan.launchers(found, self.arena, store.packs(plan))
                if self.stream is not None:
                    self.stream.synchronize()  # what was packed may be read on another stream from now on

    @property
    def bytes(self) -> int:
        """Device memory beside the weights, in bytes."""
        return self._own_bytes + self._pool_bytes

    @property
    def launches(self) -> tuple[Launch, ...]:
        """A function for each step, in order, which launches it on torch's current stream: for timing steps alone."""
        return tuple(self._launches)

    def _follow(self) -> None:
        """Makes the stream wait for what the caller has put on its own: an arena given may just have been cleared."""
        if self.stream is not None and not self.device.guard.faulted:
            self.stream.wait_stream(torch.cuda.current_stream(self.device.torch))

    @contextmanager
    def current(self) -> Iterator[None]:
        """Makes device and stream torch's own for a block."""
        if self.stream is None:
            yield
            return
        with torch.cuda.device(self.device.torch), torch.cuda.stream(self.stream):
            yield

    def launch(self) -> None:
        """Launches every step on torch's current stream."""
        self.plan.zero(self.arena)
        for launch in self._launches:
            launch()

    def capture(self, before: Callable[[], None] = _nothing, after: Callable[[], None] = _nothing) -> None:
        """Runs everything twice to compile it and to let libraries choose, then makes one graph of it.

        Args:
            before, after: what belongs into the graph before and after the steps; allocates nothing outside of it.

        Raises:
            DeviceMemoryError: what library kernels need does not fit.
            EngineError: a step cannot be captured.
        """

        def everything() -> None:
            before()
            self.launch()
            after()

        self._run = everything
        if not self.device.gpu:
            with self.device.guard.watch("a plan could not be run"):
                self.run()  # what libraries pack, they pack now
            return
        assert self.stream is not None
        self._follow()
        with CAPTURE, self.device.guard.watch("a plan could not be captured"), self.current():
            with library_settings(self.plan.program.precision):
                for _ in range(2):
                    everything()
                self.stream.synchronize()
                pool = torch.cuda.graph_pool_handle()
                graph = torch.cuda.CUDAGraph()
                with _uncollected(), capturing(graph, pool):
                    everything()
            self._graph = graph
            self._pool_bytes = pool_bytes(pool)

    def run(self) -> None:
        """One run of the program on the inputs that its tensors hold; on a GPU this returns at once.

        The caller has made device and stream current (`current`) and watches the guard.
        """
        if self._graph is not None:
            self._graph.replay()
        else:
            with torch.no_grad():
                self._run()

    def close(self) -> None:
        """Frees arena and graph once the stream has done its work; a second call does nothing."""
        guard = self.device.guard
        if self.stream is not None and self._launches and not guard.faulted:
            with suppress(EngineError), guard.watch("what was running failed"):
                self.stream.synchronize()
        if guard.faulted:
            guard.abandon(self._graph, self._launches, self.tensors, self.arena, self.stream)
        self._graph = None
        self._launches, self.tensors = [], {}
        self._run = _nothing
        self.arena = torch.empty(0, dtype=torch.uint8)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keeps Python from collecting garbage: freeing another graph in the middle of a capture would spoil it."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def pool_bytes(pool: tuple[int, int]) -> int:
    """Device memory that a graph's private pool holds."""
    return sum(
        int(segment["total_size"])
        for segment in torch.cuda.memory_snapshot()
        if tuple(segment.get("segment_pool_id", ())) == tuple(pool)
    )
