"""Contexts of the TensorRT engine: a stream of its own, activations, and pinned memory to copy through."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np

from wetread.engines.common import Closing, Port, Ports, StreamTicket, check_arrays, check_finite
from wetread.engines.tensorrt import runtime
from wetread.engines.tensorrt.cuda import Cuda, view
from wetread.errors import DeviceMemoryError, EngineError


class Buffer:
    """Memory of one input or output: pinned for a whole batch, on the device for one window."""

    def __init__(self, cuda: Cuda, port: Port, batch: int, stack: ExitStack) -> None:
        dtype = port.dtypes[0]
        self.window_bytes = window_bytes(port)
        pinned = cuda.pinned(self.window_bytes * batch)
        stack.callback(cuda.free_pinned, pinned)
        self.array = view(pinned, (batch, *port.shape), dtype)
        self.device = cuda.malloc(self.window_bytes)
        stack.callback(cuda.free, self.device)

    def address(self, i: int) -> int:
        """Where the i-th window lies in pinned memory."""
        return int(self.array.ctypes.data) + i * self.window_bytes


def window_bytes(port: Port) -> int:
    """Bytes of one window."""
    return int(np.prod(port.shape, dtype=np.int64)) * np.dtype(port.dtypes[0]).itemsize


class TensorRtContext(Closing):
    """An execution context with its own stream; one thread at a time.

    A batch is copied into pinned memory, and its windows then run one after the other on the stream: copy in,
    network, copy out. Nothing waits for the device but the ticket. Windows of a batch are not stacked, so that
    a window's numbers do not depend on its batch.

    Args:
        cuda: the GPU.
        execution: TensorRT's context, made for memory that is managed here.
        ports: inputs and outputs for one window.
        max_batch: largest batch that `submit` takes.
        activations: bytes of device memory that the execution context needs.
        logger: TensorRT's.

    Attributes:
        bytes: device memory: activations, and one window of each input and output.
        max_batch: largest batch that `submit` takes.

    Raises:
        DeviceMemoryError: the context does not fit; nothing is held then.
        EngineError: TensorRT refuses the shapes.
    """

    def __init__(
        self, cuda: Cuda, execution: Any, ports: Ports, max_batch: int, activations: int, logger: Any
    ) -> None:
        self.max_batch = max_batch
        self.bytes = activations + sum(window_bytes(port) for side in ports for port in side)
        self._cuda = cuda
        self._execution = execution
        self._ports = ports
        self._logger = logger
        self._ticket: StreamTicket | None = None
        self._closed = False
        cuda.use()
        free, _ = cuda.free_bytes()
        if self.bytes > free:
            raise DeviceMemoryError(
                f"a context for windows of {ports[0][0].shape[1:]} takes {self.bytes / 2**30:.2f} GiB, "
                f"{free / 2**30:.2f} are free",
                where=cuda.name,
                todo="use a smaller window, or fewer contexts",
            )
        with ExitStack() as stack:  # whatever was taken is given back where a later step fails
            self._stream = cuda.stream()
            stack.callback(cuda.destroy_stream, self._stream)
            self._event = cuda.event()
            stack.callback(cuda.destroy_event, self._event)
            self._inputs = [Buffer(cuda, port, max_batch, stack) for port in ports[0]]
            self._outputs = [Buffer(cuda, port, max_batch, stack) for port in ports[1]]
            scratch = cuda.malloc(activations)
            stack.callback(cuda.free, scratch)
            stack.callback(self._drop)
            self._bind(scratch, activations)
            self._held = stack.pop_all()

    def _bind(self, scratch: int, activations: int) -> None:
        """Tells the execution context its shapes and addresses, once for all windows."""
        run = self._execution
        for port, buffer in zip(self._ports[0], self._inputs, strict=True):
            if not run.set_input_shape(name=port.name, shape=(1, *port.shape)):
                raise runtime.failure(self._logger, f"TensorRT refuses windows of {port.shape}", port.name)
            self._address(port.name, buffer.device)
        for port, buffer in zip(self._ports[1], self._outputs, strict=True):
            found = tuple(run.get_tensor_shape(name=port.name))
            if found != (1, *port.shape):
                raise EngineError(
                    f"TensorRT gives an output of {found}, expected {(1, *port.shape)}", where=port.name
                )
            self._address(port.name, buffer.device)
        run.set_device_memory(memory=scratch, size=activations)

    def _address(self, name: str, address: int) -> None:
        if not self._execution.set_tensor_address(name=name, memory=address):
            raise runtime.failure(self._logger, "TensorRT refuses the memory of a tensor", name)

    def submit(self, inputs: tuple[np.ndarray, ...], outputs: tuple[np.ndarray, ...]) -> StreamTicket:
        """Starts one batch; inputs are copied before this returns, outputs written when the ticket is done.

        Raises:
            NotFiniteError: an input holds NaN or infinity.
            EngineError: an array does not fit, another batch is still running, the context is closed, or the
                device failed.
        """
        if self._closed:
            raise EngineError("the context is closed")
        if self._ticket is not None and not self._ticket.done():
            raise EngineError("another batch is still running", todo="wait for its ticket first")
        n = check_arrays(inputs, outputs, self._ports, self.max_batch)
        check_finite(inputs, self._ports[0], "input")
        self._cuda.use()
        for array, buffer in zip(inputs, self._inputs, strict=True):
            np.copyto(buffer.array[:n], array)
        try:
            for i in range(n):
                self._enqueue(i)
            self._cuda.record(self._event, self._stream)
        except EngineError:
            self._cuda.synchronise(self._stream)  # earlier windows still use the memory
            raise
        self._ticket = StreamTicket(self.reached, partial(self.collect, outputs))
        return self._ticket

    def _enqueue(self, i: int) -> None:
        """Puts one window on the stream."""
        for buffer in self._inputs:
            self._cuda.to_device(buffer.device, buffer.address(i), buffer.window_bytes, self._stream)
        if not self._execution.execute_async_v3(stream_handle=int(self._stream)):
            raise runtime.failure(self._logger, "TensorRT cannot start a window", self._cuda.name)
        for buffer in self._outputs:
            self._cuda.to_host(buffer.address(i), buffer.device, buffer.window_bytes, self._stream)

    def reached(self) -> bool:
        """True where the device has done the last batch."""
        self._cuda.use()
        return self._cuda.reached(self._event)

    def collect(self, outputs: tuple[np.ndarray, ...]) -> None:
        """Waits for the last batch and copies its outputs out of pinned memory.

        Raises:
            NotFiniteError: an output holds NaN or infinity.
            EngineError: the device failed.
        """
        self._cuda.use()
        self._cuda.wait(self._event)
        for array, buffer in zip(outputs, self._outputs, strict=True):
            np.copyto(array, buffer.array[: len(array)])
        check_finite(outputs, self._ports[1], "output")

    def _drop(self) -> None:
        self._execution = None

    def close(self) -> None:
        """Waits for a running batch, then frees context, memory, event and stream; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self._cuda.use()
        if self._ticket is not None:
            self._ticket.settle()
        self._inputs, self._outputs = [], []
        self._held.close()
