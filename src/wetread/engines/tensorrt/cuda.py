"""The part of CUDA's runtime that contexts need: memory, pinned memory, streams, events, copies."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from wetread.engines.tensorrt import api
from wetread.errors import DeviceMemoryError, EngineError, EngineUnavailableError


def load() -> Any:
    """Imports CUDA's runtime bindings; needs no GPU.

    Raises:
        EngineUnavailableError: not installed, or a release without something that is used here.
    """
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise EngineUnavailableError(
            f"the tensorrt backend needs CUDA's Python bindings: {error}",
            todo="pip install 'wetread[tensorrt]'",
        ) from error
    if lost := api.missing_cuda(runtime):
        raise EngineUnavailableError(
            f"this release of cuda-bindings has no {', '.join(lost)}", todo="pip install 'wetread[tensorrt]'"
        )
    return runtime


class Cuda:
    """One GPU.

    Args:
        device: ``cuda`` or ``cuda:1``.

    Attributes:
        name: as the driver tells it, such as ``NVIDIA H200``.
        capability: compute capability, such as ``9.0``.

    Raises:
        EngineUnavailableError: no driver, or no such GPU.
    """

    def __init__(self, device: str = "cuda") -> None:
        self._runtime = load()
        kind, _, index = device.lower().partition(":")
        if kind != "cuda" or (index and not index.isdecimal()):
            raise EngineUnavailableError(
                f"the tensorrt backend knows no device {device!r}", todo="use cuda, or cuda:1 and so on"
            )
        self._index = int(index or 0)
        error, count = self._runtime.cudaGetDeviceCount()
        if error != self._runtime.cudaError_t.cudaSuccess or self._index >= count:
            found = self._text(error) if not count else f"there are {count}"
            raise EngineUnavailableError(
                f"there is no GPU {self._index}: {found}",
                where=device,
                todo="install NVIDIA's driver, or use another backend",
            )
        properties = self._call("cudaGetDeviceProperties", self._index)
        self.name = properties.name.decode(errors="replace").strip("\0 ")
        self.capability = f"{properties.major}.{properties.minor}"

    def use(self) -> None:
        """Makes this GPU the one of the calling thread; CUDA keeps that per thread."""
        self._call("cudaSetDevice", self._index)

    def free_bytes(self) -> tuple[int, int]:
        """Memory that is free, and all there is."""
        free, total = self._call("cudaMemGetInfo")
        return int(free), int(total)

    def malloc(self, size: int) -> int:
        """Address of so many bytes on the device; at least one is taken."""
        return int(self._call("cudaMalloc", max(1, size)))

    def free(self, address: int) -> None:
        """Gives device memory back."""
        self._call("cudaFree", address)

    def pinned(self, size: int) -> int:
        """Address of page-locked memory, from which copies run beside kernels."""
        return int(self._call("cudaHostAlloc", max(1, size), self._runtime.cudaHostAllocDefault))

    def free_pinned(self, address: int) -> None:
        """Gives page-locked memory back."""
        self._call("cudaFreeHost", address)

    def stream(self) -> Any:
        """A stream that does not wait for the default one."""
        return self._call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking)

    def event(self) -> Any:
        """An event that marks a place in a stream."""
        return self._call("cudaEventCreateWithFlags", self._runtime.cudaEventDisableTiming)

    def destroy_stream(self, stream: Any) -> None:
        """Frees a stream."""
        self._call("cudaStreamDestroy", stream)

    def destroy_event(self, event: Any) -> None:
        """Frees an event."""
        self._call("cudaEventDestroy", event)

    def synchronise(self, stream: Any) -> None:
        """Waits until all that was put on the stream is done."""
        self._call("cudaStreamSynchronize", stream)

    def record(self, event: Any, stream: Any) -> None:
        """Marks the present end of the stream."""
        self._call("cudaEventRecord", event, stream)

    def reached(self, event: Any) -> bool:
        """True where the stream has passed the event; never blocks."""
        (error,) = self._runtime.cudaEventQuery(event)
        if error == self._runtime.cudaError_t.cudaErrorNotReady:
            return False
        self._check("cudaEventQuery", error)
        return True

    def wait(self, event: Any) -> None:
        """Blocks until the stream has passed the event."""
        self._call("cudaEventSynchronize", event)

    def to_device(self, target: int, source: int, size: int, stream: Any) -> None:
        """Copies from pinned memory, in the stream's order."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", target, source, size, kind, stream)

    def to_host(self, target: int, source: int, size: int, stream: Any) -> None:
        """Copies to pinned memory, in the stream's order."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", target, source, size, kind, stream)

    def _call(self, name: str, *arguments: Any) -> Any:
        """Calls a function of the runtime; its first result is an error code, the others are returned."""
        error, *values = getattr(self._runtime, name)(*arguments)
        self._check(name, error)
        return values[0] if len(values) == 1 else tuple(values)

    def _check(self, name: str, error: Any) -> None:
        codes = self._runtime.cudaError_t
        if error == codes.cudaSuccess:
            return
        what = f"{name} failed: {self._text(error)}"
        if error == codes.cudaErrorMemoryAllocation:
            raise DeviceMemoryError(what, where=self.name, todo="use a smaller window, or fewer contexts")
        raise EngineError(
            what, where=getattr(self, "name", ""), todo="a GPU that failed once needs a new process"
        )

    def _text(self, error: Any) -> str:
        _, text = self._runtime.cudaGetErrorString(error)
        return str(text.decode(errors="replace") if isinstance(text, bytes) else text)


def view(address: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """An array over memory that someone else owns."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    raw = (ctypes.c_byte * max(1, size)).from_address(address)
    flat = np.frombuffer(memoryview(raw), np.uint8, count=size)
    return np.ndarray(shape, dtype, flat)
