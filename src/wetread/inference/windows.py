"""Where the windows lie and how much each counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """One window of a sweep.

    Attributes:
        ordinal: place in the canonical order (axis 0 slowest).
        index: which window along each axis.
        start: index of its first voxel on the prepared grid; may be negative, or reach past the end.
    """

    ordinal: int
    index: tuple[int, int, int]
    start: tuple[int, int, int]
