"""What a device's errors become: too little memory, one call that failed, or a fault that ends the process's use of it.

After a fault such as an illegal address CUDA answers every later call of the process with the same error; nothing that
was on the device can be read again. So a fault is remembered for the device, and whatever is asked of it afterwards is
refused: the process (a lane) must be started again.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch

from wetread.errors import DeviceFaultError, DeviceMemoryError, EngineError, WetreadError

_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "memoryallocation")
"""How allocations fail that do not raise `torch.OutOfMemoryError`: the processor's, Triton's, the driver's."""


class Guard:
    """Watches what is done on one device.

    Args:
        device: such as ``cuda:0`` or ``cpu``.
        probe: raises where the device is lost; by default it waits for the default stream, since waiting for
            the whole device would spoil the graph that another thread may be capturing.
    """

    def __init__(self, device: str, probe: Callable[[], None] | None = None) -> None:
        self.device = device
        self._probe = probe if probe is not None else self._synchronise
        self._fault = ""
        self._lock = threading.Lock()

    def _synchronise(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.default_stream(self.device).synchronize()

    def abandon(self, *things: object) -> None:
        """Keeps what lay on a lost device until the process ends.

        Freeing it would ask the device, which does not answer, and end the process with an exit code of its own.
        """
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(things))

    @property
    def faulted(self) -> bool:
        """Whether the device was lost to this process."""
        return bool(self._fault)

    def check(self) -> None:
        """Raises DeviceFaultError where the device was lost."""
        if self._fault:
            raise DeviceFaultError(
                f"the device failed earlier and answers nothing any more: {self._fault}",
                where=self.device,
                todo="start the process again; outputs that were not waited for are lost",
            )

    @contextmanager
    def watch(self, what: str) -> Iterator[None]:
        """Runs a block on the device; what goes wrong there becomes an error of the house's tree.

        Args:
            what: of the message, such as ``the batch failed``.

        Raises:
            DeviceFaultError: the device is lost, now or earlier.
            DeviceMemoryError: it has too little memory; everything else on it goes on.
            EngineError: anything else that torch, Triton or the driver raises.
        """
        self.check()
        try:
            yield
        except WetreadError as error:
            if not isinstance(error, DeviceFaultError) and "CUDA error" in error.what:
                self.examine(error)
            raise
        except (RuntimeError, MemoryError, ValueError, TypeError, IndexError, OSError) as error:
            raise self.error(error, what) from error

    def error(self, error: BaseException, what: str) -> EngineError:
        """The error of our tree for one of torch's, Triton's or the driver's."""
        text = " ".join(str(error).split("\n", 1)[0].split()) or type(error).__name__
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or any(w in text.lower() for w in _MEMORY):
            return DeviceMemoryError(
                f"{what}: {text}",
                where=self.device,
                todo="use a smaller window or batch, fewer contexts, or another device",
            )
        try:
            self.examine(error)
        except DeviceFaultError as fault:
            return fault
        return EngineError(f"{what}: {text}", where=self.device)

    def examine(self, error: BaseException) -> None:
        """Asks the device whether it still answers; errors of single calls do not come back, faults do.

        Raises:
            DeviceFaultError: it does not.
        """
        try:
            self._probe()
        except Exception:  # noqa: BLE001 - whatever it is, a device that cannot be waited for is lost
            with self._lock:
                self._fault = self._fault or " ".join(str(error).split("\n", 1)[0].split())
            self.check()


@cache
def guard_of(device: str) -> Guard:
    """The guard of a device, one for all engines of the process."""
    return Guard(device)
