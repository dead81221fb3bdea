"""A CUDA runtime in the processor's memory, with the functions of `api.CUDA` and no others.

Addresses are real, so that a copy to the wrong place shows as a wrong number or as memory that nobody owns. What is
put on a stream runs only when someone waits for it: code that reads too early reads what was there before.
"""

from __future__ import annotations

import ctypes
import enum
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorLaunchFailure = 719
    cudaErrorNotReady = 600


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class cudaDeviceProp:
    name = b"NVIDIA Fake"
    major = 9
    minor = 0


OK = cudaError_t.cudaSuccess


class FakeCuda:
    """State of the fake: what is allocated, what lies on streams, what was called."""

    def __init__(self, devices: int = 1, memory: int = 2**30) -> None:
        self.devices = devices
        self.memory = memory
        self.blocks: dict[int, tuple[str, Any]] = {}
        self.streams: dict[int, list[Callable[[], None]]] = {}
        self.events: dict[int, int | None] = {}
        self.log: list[str] = []
        self.busy = False
        self.broken = False
        self.faults: list[str] = []
        self._device = threading.local()
        self._lock = threading.RLock()
        self._next = 1

    def module(self) -> ModuleType:
        """As ``cuda.bindings.runtime``."""
        made = ModuleType("cuda.bindings.runtime")
        for name in dir(self):
            if name.startswith("cuda"):
                setattr(made, name, getattr(self, name))
        made.cudaError_t, made.cudaMemcpyKind = cudaError_t, cudaMemcpyKind
        made.cudaDeviceProp = cudaDeviceProp
        made.cudaHostAllocDefault, made.cudaStreamNonBlocking, made.cudaEventDisableTiming = 0, 1, 2
        return made

    def owned(self, address: int, size: int, kind: str) -> bool:
        """True where the bytes lie in one living block of that kind."""
        return any(
            start <= address and address + size <= start + ctypes.sizeof(block) and found == kind
            for start, (found, block) in self.blocks.items()
        )

    def _take(self, kind: str, size: int) -> tuple[cudaError_t, int | None]:
        held = sum(ctypes.sizeof(block) for found, block in self.blocks.values() if found == kind)
        if kind == "device" and held + size > self.memory:
            return cudaError_t.cudaErrorMemoryAllocation, None
        block = (ctypes.c_byte * size)(*([-1] * min(size, 4096)))  # poisoned: NaN as a float
        address = ctypes.addressof(block)
        with self._lock:
            self.blocks[address] = (kind, block)
            self.log.append(f"take {kind}")
        return OK, address

    def _give(self, kind: str, address: int) -> tuple[cudaError_t]:
        with self._lock:
            self.log.append(f"give {kind}")
            found = self.blocks.pop(address, None)
        return (OK if found and found[0] == kind else cudaError_t.cudaErrorInvalidValue,)

    def flush(self, stream: int) -> cudaError_t:
        """Runs what lies on the stream."""
        with self._lock:
            work, self.streams[stream] = self.streams[stream], []
        for step in work:
            step()
        return cudaError_t.cudaErrorLaunchFailure if self.broken or self.faults else OK

    def put(self, stream: int, step: Callable[[], None]) -> None:
        """Adds to the stream; the calling thread must have chosen its device."""
        assert getattr(self._device, "index", None) is not None, "no device was chosen on this thread"
        self.streams[int(stream)].append(step)

    # ---- the runtime's functions ------------------------------------------------------------------------
    def cudaGetDeviceCount(self):
        return OK, self.devices

    def cudaGetDeviceProperties(self, device):
        return OK, cudaDeviceProp()

    def cudaSetDevice(self, device):
        self._device.index = device
        return (OK,)

    def cudaMemGetInfo(self):
        held = sum(ctypes.sizeof(block) for kind, block in self.blocks.values() if kind == "device")
        return OK, self.memory - held, self.memory

    def cudaMalloc(self, size):
        return self._take("device", size)

    def cudaFree(self, devPtr):
        return self._give("device", devPtr)

    def cudaHostAlloc(self, size, flags):
        return self._take("pinned", size)

    def cudaFreeHost(self, ptr):
        return self._give("pinned", ptr)

    def cudaStreamCreateWithFlags(self, flags):
        with self._lock:
            self._next += 1
            self.streams[self._next] = []
            self.log.append("make stream")
            return OK, self._next

    def cudaStreamSynchronize(self, stream):
        return (self.flush(int(stream)),)

    def cudaStreamDestroy(self, stream):
        self.log.append("destroy stream")
        return (OK if self.streams.pop(int(stream), None) == [] else cudaError_t.cudaErrorInvalidValue,)

    def cudaEventCreateWithFlags(self, flags):
        with self._lock:
            self._next += 1
            self.events[self._next] = None
            return OK, self._next

    def cudaEventRecord(self, event, stream):
        self.events[event] = int(stream)
        return (OK,)

    def cudaEventQuery(self, event):
        return (cudaError_t.cudaErrorNotReady,) if self.busy else self.cudaEventSynchronize(event)

    def cudaEventSynchronize(self, event):
        stream = self.events[event]
        return (OK if stream is None else self.flush(stream),)

    def cudaEventDestroy(self, event):
        self.log.append("destroy event")
        return (OK if self.events.pop(event, ...) is not ... else cudaError_t.cudaErrorInvalidValue,)

    def cudaMemcpyAsync(self, dst, src, count, kind, stream):
        host, device = (src, dst) if kind == cudaMemcpyKind.cudaMemcpyHostToDevice else (dst, src)

        def copy() -> None:
            if not (self.owned(host, count, "pinned") and self.owned(device, count, "device")):
                self.faults.append("copy to or from memory that nobody owns")
                return
            ctypes.memmove(dst, src, count)

        self.put(stream, copy)
        return (OK,)

    def cudaGetErrorString(self, error):
        return OK, cudaError_t(error).name.encode()
