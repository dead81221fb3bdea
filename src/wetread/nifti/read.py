"""NIfTI-1 and NIfTI-2 files to volumes.

Field names are those of the header (https://nifti.nimh.nih.gov, nifti1.h). The place of the voxels follows
its rules: method 3 (sform) where its code is set, else method 2 (qform), else the spacing alone.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from wetread.errors import FileFormatError, GeometryError, InputError, Notice, PixelError, StudyNotFoundError
from wetread.volume import Grid, Volume

nib: Any = nibabel  # its type hints are partial
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_MM_OF_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
_UNIT_NAME = {1: "metres", 3: "micrometres"}
_DAMAGED = (OSError, EOFError, ValueError, zlib.error, nib.filebasedimages.ImageFileError)
_DEFLATE_LIMIT = 1100  # deflate cannot shrink further (RFC 1951: 258 bytes in 2 bits)
_MAX_TRAILING = 1 << 24  # bytes


def read_nifti(path: Path | str) -> tuple[Volume, tuple[Notice, ...]]:
    """Reads one 3D image.

    The array keeps the file's axes (i, j, k); the affine becomes LPS millimetres. Integers stay as they are
    stored where the slope is 1 and the intercept a whole number that fits; all else becomes float32.

    Args:
        path: a ``.nii`` or ``.nii.gz`` file.

    Returns:
        The volume (C order; its source is the file's name) and what was assumed about it.

    Raises:
        StudyNotFoundError: there is no such file.
        FileFormatError: empty, truncated, not NIfTI, or not one 3D image.
        GeometryError: one slice only; an affine that is not finite or is singular.
        PixelError: complex or colour voxels; NaN or infinity.
    """
    path = Path(path)
    image = _open(path)
    grid, notices = _grid(image, path)
    voxels = _voxels(image, grid.shape, path)
    try:
        return Volume(voxels, grid, sources=(path.name,)), tuple(notices)
    except InputError as error:
        error.where = error.where or path.name
        raise


def read_grid(path: Path | str) -> Grid:
    """Reads where an image lies, from its header alone.

    Raises:
        StudyNotFoundError, FileFormatError, GeometryError: as `read_nifti`, but for the voxels.
    """
    path = Path(path)
    return _grid(_open(path), path)[0]


def _grid(image: Any, path: Path) -> tuple[Grid, list[Notice]]:
    """The grid in LPS, and what was assumed about it."""
    shape = _shape(image.header, path)
    affine, notices = _affine(image.header, shape, path)
    try:
        return Grid(shape, _RAS_TO_LPS @ affine, file_axes="ijk"), notices
    except InputError as error:
        error.where = error.where or path.name
        raise


def _open(path: Path) -> Any:
    if not path.is_file():
        raise StudyNotFoundError(f"there is no file {path.name}", where=str(path), todo="check the path")
    if path.stat().st_size == 0:
        raise FileFormatError("the file is empty", where=path.name, todo="copy it again", code="FILE_EMPTY")
    try:
        image = nib.load(path)
    except _DAMAGED as error:
        raise FileFormatError(
            f"this is not a readable NIfTI file: {_first_line(error)}",
            where=path.name,
            todo="copy it again, or convert it to .nii.gz",
            code="NIFTI_FORMAT",
        ) from error
    if not isinstance(image, nib.Nifti1Image):
        raise FileFormatError(
            f"the file is of type {type(image).__name__}, expected NIfTI-1 or NIfTI-2",
            where=path.name,
            todo="convert it to .nii.gz",
            code="NIFTI_FORMAT",
        )
    return image


def _shape(header: Any, path: Path) -> tuple[int, int, int]:
    stored = tuple(int(n) for n in header.get_data_shape())
    full = stored + (1,) * (3 - len(stored))
    if min(full) < 1:
        raise FileFormatError(f"the image has shape {stored}", where=path.name, code="NIFTI_SHAPE")
    if any(n > 1 for n in full[3:]):
        raise FileFormatError(
            f"the image has shape {stored}, expected three axes",
            where=path.name,
            todo="split it into one file for each time point or channel",
            code="NIFTI_4D",
        )
    if min(full[:3]) == 1:
        raise GeometryError(
            f"the image has shape {stored}: one slice is no volume",
            where=path.name,
            todo="give a file with at least two slices",
            code="ONE_SLICE",
        )
    _check_size(header, full, path)
    return full[0], full[1], full[2]


def _check_size(header: Any, shape: tuple[int, ...], path: Path) -> None:
    """Refuses files that cannot hold what their header promises, before memory is asked for."""
    promised = int(np.prod([float(n) for n in shape])) * header.get_data_dtype().itemsize
    stored = path.stat().st_size * (_DEFLATE_LIMIT if path.suffix.lower() == ".gz" else 1)
    if promised > stored:
        raise FileFormatError(
            f"the header promises {promised} bytes of voxels, the file holds {path.stat().st_size}",
            where=path.name,
            todo="copy it again",
            code="NIFTI_TRUNCATED",
        )


def _affine(header: Any, shape: tuple[int, int, int], path: Path) -> tuple[NDArray[np.float64], list[Notice]]:
    """Affine in RAS millimetres, and notices."""
    sform, qform = _sform(header), _qform(header, path)
    notices = []
    affine = sform if sform is not None else qform
    if affine is None:
        affine = header.get_base_affine()
        notices.append(
            Notice(
                "NIFTI_NO_PLACE",
                "neither sform nor qform is set: the spacing is used alone, left and right are assumed",
                path.name,
            )
        )
    if not np.isfinite(affine).all():
        raise GeometryError(
            "the affine holds NaN or infinity",
            where=path.name,
            todo="repair sform and qform, for example with nibabel",
            code="AFFINE_NOT_FINITE",
        )
    if sform is not None and qform is not None and np.isfinite(qform).all():
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape])).reshape(3, -1)
        off = float(np.linalg.norm((sform - qform)[:3, :3] @ corners + (sform - qform)[:3, 3:], axis=0).max())
        if off > 0.1:
            notices.append(
                Notice(
                    "NIFTI_FORMS_DIFFER",
                    f"sform and qform differ by up to {off:.3g} mm; sform is used",
                    path.name,
                )
            )
    return _in_mm(affine, header, path, notices), notices


def _in_mm(
    affine: NDArray[np.float64], header: Any, path: Path, notices: list[Notice]
) -> NDArray[np.float64]:
    unit = int(header["xyzt_units"]) & 0x07
    if unit not in _MM_OF_UNIT:
        raise FileFormatError(
            f"xyzt_units has the spatial code {unit}, expected 0 to 3", where=path.name, code="NIFTI_UNIT"
        )
    if unit in _UNIT_NAME:
        notices.append(
            Notice("NIFTI_UNIT", f"lengths in {_UNIT_NAME[unit]} were converted to millimetres", path.name)
        )
    scaled = np.array(affine, np.float64)
    scaled[:3] *= _MM_OF_UNIT[unit]
    return scaled


def _sform(header: Any) -> NDArray[np.float64] | None:
    return np.asarray(header.get_sform(), np.float64) if int(header["sform_code"]) > 0 else None


def _qform(header: Any, path: Path) -> NDArray[np.float64] | None:
    """The qform's affine where its code is set; one that is no rotation matters only without an sform."""
    if int(header["qform_code"]) <= 0:
        return None
    try:
        return np.asarray(header.get_qform(), np.float64)
    except (ValueError, nib.spatialimages.HeaderDataError) as error:
        if int(header["sform_code"]) > 0:
            return None
        raise GeometryError(
            f"the qform is no rotation: {_first_line(error)}",
            where=path.name,
            todo="repair the qform, for example with nibabel",
            code="AFFINE_NOT_FINITE",
        ) from error


def _voxels(image: Any, shape: tuple[int, int, int], path: Path) -> NDArray[Any]:
    dtype = image.header.get_data_dtype()
    if dtype.kind not in "iuf":
        kind = "complex" if dtype.kind == "c" else "colour" if dtype.names else str(dtype)
        raise PixelError(
            f"the voxels are {kind}, expected real numbers",
            where=path.name,
            todo="convert the image to one real channel",
            code="VOXEL_TYPE",
        )
    try:
        raw = _unscaled(image, path).reshape(shape)
    except (*_DAMAGED, MemoryError) as error:
        raise FileFormatError(
            f"the voxels cannot be read: {_first_line(error)}",
            where=path.name,
            todo="copy the file again",
            code="NIFTI_TRUNCATED",
        ) from error
    return _scaled(raw, float(image.dataobj.slope), float(image.dataobj.inter))


def _unscaled(image: Any, path: Path) -> NDArray[Any]:
    """Voxels as stored; the checksum of a compressed file is verified, for which it is read to its end."""
    if path.suffix.lower() != ".gz":
        return np.asarray(image.dataobj.get_unscaled())
    count = int(np.prod(image.shape))
    data = bytearray(count * image.get_data_dtype().itemsize)
    with gzip.open(path) as stream:
        stream.seek(int(image.dataobj.offset))
        if stream.readinto(data) != len(data):
            raise EOFError("the file ends before its last voxel")
        if len(stream.read(_MAX_TRAILING + 1)) > _MAX_TRAILING:
            raise ValueError("there is more data behind the voxels than an image has")
    return np.frombuffer(data, image.get_data_dtype()).reshape(image.shape, order="F")


def _scaled(raw: NDArray[Any], slope: float, inter: float) -> NDArray[Any]:
    """``slope · raw + inter`` in native byte order and C order."""
    if slope == 1 and raw.dtype.kind in "iu":
        if inter == 0:
            return np.ascontiguousarray(raw, raw.dtype.newbyteorder("="))
        low, high = raw.min() + inter, raw.max() + inter
        if inter == round(inter) and np.iinfo(np.int16).min <= low and high <= np.iinfo(np.int16).max:
            return np.ascontiguousarray(raw.astype(np.int32) + int(inter), np.int16)
    if slope == 1 and inter == 0:
        return np.ascontiguousarray(raw, np.float32)
    scaled = np.empty(raw.shape, np.float32)
    for plane, stored in zip(scaled, raw, strict=True):
        plane[...] = stored.astype(np.float64) * slope + inter
    return scaled


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
