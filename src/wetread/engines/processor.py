"""The processor: its name in words that tell two apart where their kernels differ, free threads and memory."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from functools import cache
from pathlib import Path

from wetread.errors import DeviceMemoryError

_CPUINFO = Path("/proc/cpuinfo")
_SETS = (
    "avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_int8", "amx_bf16", "amx_fp16", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip
"""Instruction sets for which runtimes have kernels of their own; int8 sums in two halves without VNNI, say."""


@cache
def instruction_sets() -> str:
    """Sets that decide which kernels run, joined by ``+``; empty where the system does not tell."""
    return "+".join(name for name in _SETS if name in _field("flags", "Features").split())


@cache
def processor_name() -> str:
    """Model of the processor as the system tells it, else its architecture."""
    return _field("model name") or platform.processor() or platform.machine()


def processor_text(name: str = "") -> str:
    """Name (of `processor_name` where none is given) and instruction sets."""
    return " ".join(filter(None, (name or processor_name(), instruction_sets())))


def available_threads() -> int:
    """Processors that this process may use: its affinity, and the control group's quota rounded up."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        if quota != "max":
            count = min(count, max(1, -(-int(quota) // int(period))))
    except (OSError, ValueError):
        pass  # no control group, or one of version 1: affinity alone decides
    return count


def available_bytes() -> int | None:
    """Memory that this process may still take: the system's, and the control group's; None where unknown."""
    found: list[int] = []
    with suppress(OSError, ValueError, IndexError):
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        found.append(1024 * int(text.split("MemAvailable:", 1)[1].split()[0]))
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        found.append(limit - int((group / "memory.current").read_text(encoding="ascii")))
    return min(found, default=None)


def _field(*keys: str) -> str:
    """First value in /proc/cpuinfo of one of these keys; cloud machines of many kinds share a model's name."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in keys:
            return value.strip()
    return ""


def check_memory(shape: tuple[int, ...], activations: int, where: str) -> None:
    """Refuses a window that would bring the system to kill the process in the middle of a reading.

    Raises:
        DeviceMemoryError: its activations, in bytes, are more than the memory that is free.
    """
    free = available_bytes()
    if free is not None and activations > free:
        raise DeviceMemoryError(
            f"windows of {shape} take {activations / 2**30:.1f} GiB of activations, {free / 2**30:.1f} are free",
            where=where,
            todo="use a smaller window, or a machine with more memory",
        )
