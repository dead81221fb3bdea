"""A volume: voxels on a grid, valid and whole, or never built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wetread.errors import GeometryError, PixelError
from wetread.volume.grid import Grid


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels on a grid, with where they came from.

    Args:
        voxels: shape ``grid.shape``, or ``(channels, *grid.shape)``. Real numbers; CT in Hounsfield units.
        grid: where the voxels lie.
        modality: DICOM modality (``CT``, ``MR``), or an empty string.
        sources: series instance UIDs or file names, one for each channel.

    Raises:
        GeometryError: the array does not have the grid's shape.
        PixelError: the voxels are not real numbers, or floating-point ones are not finite.
    """

    voxels: NDArray[Any]
    grid: Grid
    modality: str = ""
    sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.voxels.ndim not in (3, 4) or self.voxels.shape[-3:] != self.grid.shape:
            raise GeometryError(
                f"voxels have shape {self.voxels.shape}, the grid has {self.grid.shape}", code="VOLUME_SHAPE"
            )
        if self.voxels.dtype.kind not in "iufb":
            raise PixelError(
                f"voxels have type {self.voxels.dtype}, expected real numbers", code="VOXEL_TYPE"
            )
        if self.voxels.dtype.kind == "f" and not _all_finite(self.voxels):
            raise PixelError(
                "voxels hold NaN or infinity",
                where=", ".join(self.sources),
                code="VOXELS_NOT_FINITE",
                todo="repair the image before it is read",
            )

    @property
    def channels(self) -> int:
        """Number of channels: 1 for a 3D array."""
        return 1 if self.voxels.ndim == 3 else int(self.voxels.shape[0])


def _all_finite(voxels: NDArray[Any]) -> bool:
    """Checks plane by plane, so that no second array of the volume's size is made."""
    planes = voxels.reshape(-1, *voxels.shape[-2:])
    return all(
        bool(np.isfinite(plane.sum(dtype=np.float64))) or bool(np.isfinite(plane).all()) for plane in planes
    )
