"""Label masks to NIfTI-1."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from wetread.errors import OutputError
from wetread.storage import whole_file
from wetread.volume import Grid

nib: Any = nibabel  # its type hints are partial
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_GZIP = 31  # zlib's window of 32 KiB plus 16: gzip's header and trailer, without a time stamp


def write_mask(
    path: Path | str, mask: NDArray[np.uint8], grid: Grid, *, slices_first: bool | None = None
) -> None:
    """Writes a label mask as uint8 with sform and qform in RAS millimetres (both codes 1, scanner).

    Args:
        path: ends in ``.nii.gz`` (compressed quickly, level 1) or ``.nii``.
        mask: label values, shape ``grid.shape``.
        grid: where the voxels lie.
        slices_first: whether the array is a stack [slice, row, column], which NIfTI stores as
            (column, row, slice), for an axial series (x, y, z); otherwise the axes stay as they are, so that
            the mask of a NIfTI image has the axes of that image. By default true where the grid has source
            slices.

    Raises:
        OutputError: the file could not be written; none is left behind.
    """
    if mask.shape != grid.shape or mask.dtype != np.uint8:
        raise OutputError(
            f"the mask is {mask.dtype} {mask.shape}, expected uint8 {grid.shape}", code="MASK_SHAPE"
        )
    stacked = bool(grid.slices) if slices_first is None else slices_first
    order = (2, 1, 0) if stacked else (0, 1, 2)
    data = mask.transpose(order)
    header = _header(data.shape, _LPS_TO_RAS @ grid.affine[:, [*order, 3]], grid.is_orthogonal)
    with whole_file(path) as partial, partial.open("wb") as stream:
        if not str(path).endswith(".gz"):
            stream.write(header)
            stream.write(data.tobytes(order="F"))
            return
        packer = zlib.compressobj(1, zlib.DEFLATED, _GZIP)
        stream.write(packer.compress(header))
        for plane in np.moveaxis(data, 2, 0):
            stream.write(packer.compress(plane.tobytes(order="F")))
        stream.write(packer.flush())


def _header(shape: tuple[int, ...], affine: NDArray[np.float64], rigid: bool) -> bytes:
    """348 bytes of header and 4 of "no extension" (nifti1.h); a sheared grid has no qform."""
    header = nib.Nifti1Header(endianness="<")
    header.set_data_dtype(np.uint8)
    header.set_data_shape(shape)
    header.set_sform(affine, code=1)
    if rigid:
        header.set_qform(affine, code=1)
    else:
        header.set_zooms(np.linalg.norm(affine[:3, :3], axis=0))
    header.set_xyzt_units("mm")
    header["vox_offset"] = 352
    header["descrip"] = b"wetread label mask; not for clinical use"
    header["magic"] = b"n+1"
    return bytes(header.binaryblock) + b"\0\0\0\0"
