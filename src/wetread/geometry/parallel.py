"""Planes in threads, and steps on intensities."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from wetread.geometry.axes import Float32

Intensity = Callable[[Float32], None]
"""A step on intensities, voxel by voxel, in place."""


def cpu_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_parallel(work: Callable[[Any], None], items: Iterable[Any], threads: int) -> None:
    """Runs the work on each item; the first exception is raised here."""
    todo = list(items)
    if threads <= 1 or len(todo) <= 1:
        for item in todo:
            work(item)
        return
    with ThreadPoolExecutor(min(threads, len(todo))) as pool:
        for result in [pool.submit(work, item) for item in todo]:
            result.result()
