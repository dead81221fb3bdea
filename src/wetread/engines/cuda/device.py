"""The device of an engine: a GPU, or the processor, on which plans of library kernels run for tests and debugging."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from importlib import metadata

import torch

from wetread import __version__
from wetread.engines import processor
from wetread.engines.cuda.faults import Guard, guard_of
from wetread.engines.cuda.operations import Target
from wetread.engines.cuda.tuner import target
from wetread.errors import EngineUnavailableError


@dataclass(frozen=True)
class Device:
    """One device.

    Attributes:
        torch: torch's name of it, with its number.
        name: in words, as it goes into fingerprints, such as ``NVIDIA H200 sm_90``.
        target: what kernels are chosen for.
        guard: remembers whether the device was lost.
    """

    torch: torch.device
    name: str
    target: Target
    guard: Guard = field(compare=False)

    @classmethod
    def open(cls, text: str = "cuda") -> Device:
        """The device of that name: ``cuda``, ``cuda:1``, or ``cpu``.

        Raises:
            EngineUnavailableError: there is none.
            DeviceFaultError: it was lost to this process earlier.
        """
        kind, _, number = text.lower().partition(":")
        if kind not in ("cuda", "cpu") or (number and not number.isdecimal()) or (kind == "cpu" and number):
            raise EngineUnavailableError(
                f"the cuda backend knows no device {text!r}",
                todo="use cuda, or cuda:1 and so on; cpu to debug",
            )
        if kind == "cpu":
            return cls(torch.device("cpu"), f"CPU ({processor.processor_text()})", Target(), guard_of("cpu"))
        if not torch.cuda.is_available():
            built = torch.version.cuda
            raise EngineUnavailableError(
                f"there is no GPU for torch {torch.__version__}, which is built "
                + (f"for CUDA {built}" if built else "without CUDA"),
                where=text,
                todo="install NVIDIA's driver" if built else "install a torch that is built for CUDA",
            )
        index, count = int(number or 0), torch.cuda.device_count()
        if index >= count:
            raise EngineUnavailableError(f"there is no GPU {index}: there are {count}", where=text)
        guard = guard_of(f"cuda:{index}")
        guard.check()
        found = torch.cuda.get_device_properties(index)
        name = f"{found.name} sm_{found.major}{found.minor}"
        return cls(torch.device("cuda", index), name, target(torch.device("cuda", index)), guard)

    @property
    def gpu(self) -> bool:
        """False for the processor."""
        return bool(self.torch.type == "cuda")

    def free_bytes(self) -> int | None:
        """Memory that this process may still take, what torch keeps for reuse included; None where unknown."""
        if not self.gpu:
            return processor.available_bytes()
        free, _ = torch.cuda.mem_get_info(self.torch)
        kept = torch.cuda.memory_reserved(self.torch) - torch.cuda.memory_allocated(self.torch)
        return int(free + kept)


def version() -> str:
    """Versions that decide which kernels run, as they go into fingerprints."""
    parts = [__version__, f"torch {torch.__version__}"]
    if platform.system() == "Linux":
        parts.append(f"triton {metadata.version('triton')}")
    return " ".join(parts)
