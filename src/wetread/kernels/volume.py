"""Launchers of the kernels round a network that reads a whole volume (device/volume.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from wetread.kernels.arguments import Tensor, require

BLOCK = 1024
ROWS = 8
"""Of a plane, that a program stitches."""


@dataclass(frozen=True)
class AxisTables:
    """The windows along one axis of a volume, on the device.

    Attributes:
        starts: (windows,) int32, first voxel of each window, rising; may be negative.
        first: (voxels,) int32, the first window that covers each voxel.
        weights: (windows, size) float32, normalised over the windows that cover a voxel.
        cover: most windows over one voxel.
        block: neighbouring voxels that a program takes along the axis, a power of two.
        touch: most windows over any voxel of a block.
        align: largest of 1, 2, 4, 8 that divides every start.
    """

    starts: Tensor
    first: Tensor
    weights: Tensor
    cover: int
    block: int = 1
    touch: int = 1
    align: int = 1


def cut(volume: Tensor, starts: Tensor, windows: Tensor, fill: float = 0.0) -> None:
    """Cuts windows from a volume.

    Args:
        volume: [C, D, H, W], any floating or integer type.
        starts: [N, 3] int32, first voxels; windows may reach past the volume.
        windows: [N, C, d, h, w], any strides.
        fill: value outside the volume.
    """
    from wetread.kernels.device.volume import cut as kernel

    n, c, d, h, w = windows.shape
    require(starts.shape == (n, 3) and starts.dtype == torch.int32, "int32 starts, three a window")
    require(starts.is_contiguous() and volume.ndim == 4 and volume.shape[0] == c, "volume [C, D, H, W]")
    kernel[(-(-(d * h * w) // BLOCK), c, n)](
        volume, windows, starts, float(fill), *volume.shape[1:], d, h, w, *volume.stride(), *windows.stride(),
        BLOCK=BLOCK,
    )  # fmt: skip


def keep(outputs: Tensor, slots: Tensor, ring: Tensor) -> None:
    """Copies window outputs [N, K, d, h, w] into the slots of a ring [S, K, d, h, w]; slots: [N] int32."""
    from wetread.kernels.device.volume import keep as kernel

    n, k, d, h, w = outputs.shape
    require(ring.shape[1:] == outputs.shape[1:] and slots.shape == (n,), "a ring of the outputs' shape")
    kernel[(-(-(d * h * w) // BLOCK), k, n)](
        outputs, ring, slots, d, h, w, *outputs.stride(), *ring.stride(), BLOCK=BLOCK
    )


def stitch(
    ring: Tensor, axes: Sequence[AxisTables], planes: tuple[int, int], bad: Tensor, *, labels: Tensor | None = None,
    values: Tensor | None = None,
) -> None:  # fmt: skip
    """Sums the outputs of windows over planes of a volume, and reads the labels off.

    Args:
        ring: [S, K, d, h, w]; window number i of the canonical order (axis 0 slowest) lies in slot i mod S.
        axes: of D, H, W.
        planes: first and one past the last; all windows that cover them lie in the ring.
        bad: [1] int32, set to 1 where a sum is NaN or infinite, else left alone.
        labels: [D, H, W] uint8, the largest channel, of equal ones the lowest.
        values: [K, D, H, W], the sums.
    """
    from wetread.kernels.device.volume import stitch as kernel

    first, last = planes
    to = labels if labels is not None else values
    if to is None or last <= first:
        return
    vh, vw = to.shape[-2:]
    a, b, c = axes
    require(values is None or values.shape[0] == ring.shape[1], "one plane of values for each channel")
    text = labels if labels is not None else ring
    wide = values if values is not None else ring
    lead = labels.stride() if labels is not None else (0, 0, 0)
    behind = values.stride() if values is not None else (0, 0, 0, 0)
    kernel[(-(-vw // c.block), -(-vh // ROWS), last - first)](
        ring, a.weights, b.weights, c.weights, a.first, b.first, c.first, a.starts, b.starts, c.starts,
        text, wide, bad, first, vh, vw, len(a.starts), len(b.starts), len(c.starts),
        *ring.shape[2:], ring.shape[0], *lead, *behind, *ring.stride(),
        K=ring.shape[1], CD=a.cover, CH=b.cover, CW=c.touch, LABELS=labels is not None,
        VALUES=values is not None, ALIGN=c.align, BY=ROWS, BX=c.block,
    )  # fmt: skip
