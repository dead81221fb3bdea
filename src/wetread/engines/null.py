"""An engine that computes nothing: right shapes, constant outputs, and a clock that only moves when told.

For tests of scheduling: thousands of windows a second, any timing, and the same timing at every run.
"""

from __future__ import annotations

import threading

import numpy as np

from wetread.engines.base import EngineInfo, TensorInfo
from wetread.engines.common import (
    Closing,
    Port,
    Shape3,
    check_arrays,
    check_network,
    check_output,
    check_window,
    tensor_infos,
)
from wetread.engines.registry import Request
from wetread.errors import EngineError


class VirtualClock:
    """Seconds that pass only by `advance_to`; safe to use from several threads."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s
        self._moved = threading.Condition()

    @property
    def now_s(self) -> float:
        """The present, in seconds."""
        with self._moved:
            return self._now_s

    def advance_to(self, time_s: float) -> None:
        """Moves the clock forward; a time in the past leaves it where it is."""
        with self._moved:
            if time_s > self._now_s:
                self._now_s = time_s
                self._moved.notify_all()

    def advance(self, duration_s: float) -> None:
        """Moves the clock forward by a duration of at least zero seconds."""
        if duration_s < 0:
            raise ValueError(f"a clock does not go back: {duration_s} s")
        with self._moved:
            self._now_s += duration_s
            self._moved.notify_all()


class NullTicket:
    """A batch that is done at a certain time of the virtual clock."""

    def __init__(self, clock: VirtualClock, finish_s: float) -> None:
        self._clock = clock
        self.finish_s = finish_s

    def done(self) -> bool:
        """True once the clock has reached the batch's end."""
        return self._clock.now_s >= self.finish_s

    def wait(self) -> None:
        """Moves the clock to the batch's end, as if the caller had slept until then."""
        self._clock.advance_to(self.finish_s)


class NullContext(Closing):
    """A context that writes constants and charges time to the engine's device."""

    def __init__(self, engine: NullEngine, shape: Shape3, max_batch: int) -> None:
        self.max_batch = max_batch
        self.bytes = engine.context_bytes
        self._engine = engine
        self._ports = (
            tuple(Port(i.name, (int(i.shape[1] or 1), *shape), (i.dtype,)) for i in engine.inputs),
            tuple(Port(o.name, engine.shape_of(o, shape), (o.dtype,)) for o in engine.outputs),
        )
        self._ticket: NullTicket | None = None
        self._closed = False

    def submit(self, inputs: tuple[np.ndarray, ...], outputs: tuple[np.ndarray, ...]) -> NullTicket:
        """Writes the outputs at once and returns a ticket that is done when the device would be.

        Raises:
            EngineError: an array does not fit, another batch is still running, or the context is closed.
        """
        if self._closed:
            raise EngineError("the context is closed")
        if self._ticket is not None and not self._ticket.done():
            raise EngineError("another batch is still running", todo="wait for its ticket first")
        n = check_arrays(inputs, outputs, self._ports, self.max_batch)
        for array in outputs:
            array[...] = self._engine.constants(array.shape[1]).reshape(1, -1, *[1] * (array.ndim - 2))
        self._ticket = NullTicket(self._engine.clock, self._engine.charge(n))
        return self._ticket

    def close(self) -> None:
        """A second call does nothing."""
        self._closed = True


class NullEngine(Closing):
    """An engine of stated shapes, speed and size.

    Args:
        inputs, outputs: tensors as a network would have; free spatial sizes of an output are the window's.
        clock: what time is charged to.
        seconds_per_window: time the device is busy with one window.
        parallel: batches that the device runs at once, each at full speed.
        logits: constant of each output channel; by default zeros.
        bytes: what the engine claims to hold.
        context_bytes: what each context claims to hold.
    """

    def __init__(
        self,
        inputs: tuple[TensorInfo, ...],
        outputs: tuple[TensorInfo, ...],
        *,
        clock: VirtualClock | None = None,
        seconds_per_window: float = 0.0,
        parallel: int = 1,
        logits: tuple[float, ...] = (),
        bytes: int = 1,
        context_bytes: int = 1,
    ) -> None:
        check_network(inputs, outputs)
        if seconds_per_window < 0 or parallel < 1:
            raise EngineError(
                f"seconds_per_window {seconds_per_window} or parallel {parallel} is out of range"
            )
        self.info = EngineInfo("null", "float32", "virtual", "1")
        self.inputs = inputs
        self.outputs = outputs
        self.bytes = bytes
        self.context_bytes = context_bytes
        self.clock = clock or VirtualClock()
        self.seconds_per_window = seconds_per_window
        self._logits = logits
        self._free_at_s = [self.clock.now_s] * parallel
        self._lock = threading.Lock()
        self._closed = False

    def context(self, shape: tuple[int, int, int], max_batch: int = 1) -> NullContext:
        """Makes a context for windows of the given spatial shape.

        Raises:
            EngineError: the network fixes another shape, or the engine is closed.
        """
        if self._closed:
            raise EngineError("the engine is closed")
        return NullContext(self, check_window(shape, self.inputs, max_batch), max_batch)

    def output_shape(self, shape: tuple[int, int, int]) -> tuple[int, ...]:
        """(channels, *spatial) of the first output for one window of the given spatial shape; or (classes,)."""
        found = self.shape_of(self.outputs[0], check_window(shape, self.inputs, 1))
        return check_output(found, self.outputs[0].name)

    def shape_of(self, info: TensorInfo, shape: Shape3) -> tuple[int, ...]:
        """Shape of an output for one window: (channels, *spatial)."""
        free = (1, *shape) if len(info.shape) == 5 else (1,) * (len(info.shape) - 1)
        return tuple(size or of for size, of in zip(info.shape[1:], free, strict=True))

    def constants(self, channels: int) -> np.ndarray:
        """The constant of each of so many output channels."""
        values = np.zeros(channels)
        values[: len(self._logits)] = self._logits[:channels]
        return values

    def charge(self, windows: int) -> float:
        """Books so many windows on the device that is free first; returns when they are done, in seconds."""
        with self._lock:
            i = int(np.argmin(self._free_at_s))
            start_s = max(self.clock.now_s, self._free_at_s[i])
            self._free_at_s[i] = start_s + windows * self.seconds_per_window
            return self._free_at_s[i]

    def close(self) -> None:
        """A second call does nothing."""
        self._closed = True


def make(request: Request) -> NullEngine:
    """Makes a null engine with the tensors of a network, at no seconds a window."""
    graph = request.graph()
    return NullEngine(tensor_infos(graph.inputs), tensor_infos(graph.outputs))
