"""The processor in words that tell two of them apart where their kernels differ."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

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
