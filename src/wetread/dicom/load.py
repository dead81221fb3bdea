"""Loading: the voxels of a series into one array.

The array is made once and each slice is read into its own place by a small pool of threads; reading and
arithmetic leave the interpreter's lock, so two cores are used.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wetread.dicom import tags
from wetread.dicom.codecs import codec_of
from wetread.dicom.decoders import decoders
from wetread.dicom.files import NATIVE
from wetread.dicom.geometry import Arrangement
from wetread.dicom.header import SliceHeader
from wetread.dicom.pixels import AIR_HU, check_slice, decode_slice, is_whole
from wetread.dicom.straighten import straighten
from wetread.errors import GeometryError, Notice, PixelError
from wetread.volume import Volume

Progress = Callable[[int, int], None]

_LARGEST_VOLUME = 1 << 33
_TEXTS = {
    "PIXEL_PADDING": "padding outside the reconstructed circle was replaced (CT: by -1024 HU; else by the lowest "
    "value of its slice)",
    "MONOCHROME1": "stored with low values bright (MONOCHROME1); values of CT are kept, others inverted",
    "MODALITY_LUT": "values were mapped through the Modality LUT",
    "LOSSY": "pixels were compressed with loss; small lesions may be altered",
    "BIG_ENDIAN": "stored big endian, a retired transfer syntax",
}


def load(
    arrangement: Arrangement, *, threads: int | None = None, progress: Progress | None = None
) -> tuple[Volume, tuple[Notice, ...]]:
    """Reads all slices of an arrangement.

    Args:
        arrangement: the slices and their grid.
        threads: number of threads, by default one for each core, at most 8.
        progress: called with (slices done, slices in all) from the calling thread.

    Returns:
        The volume on ``arrangement.grid`` (int16 where all values are whole and fit, else float32; CT in HU)
        and the notices of the pixels.

    Raises:
        PixelError: pixels are missing, cannot be decoded, or contradict the header.
        GeometryError: two slices at one position hold different pixels.
        FileFormatError: a file cannot be read any more.
    """
    headers = arrangement.order
    _check_all(headers)
    whole = all(is_whole(header) for header in headers)
    threads = threads or min(os.cpu_count() or 1, 8)
    with tags.quiet(), decoders(_children(headers, threads)):
        loaded = _read(headers, np.dtype(np.int16), threads, progress) if whole else None
        voxels, repairs = (
            loaded or _read(headers, np.dtype(np.float32), threads, progress) or _refuse(headers)
        )
        _compare_duplicates(arrangement, voxels)
    first = headers[0].instance
    if not arrangement.is_identity:
        fill = AIR_HU if first.modality == "CT" else float(voxels.min())
        voxels = straighten(voxels, arrangement, fill)
    volume = Volume(voxels, arrangement.grid, first.modality, (first.series_instance_uid,))
    counts = {code: sum(code in found for found in repairs) for code in _TEXTS}
    notices = tuple(
        Notice(code, f"{_TEXTS[code]} ({count} of {len(headers)} slices)", first.series_instance_uid)
        for code, count in counts.items()
        if count
    )
    return volume, notices


def _children(headers: Sequence[SliceHeader], threads: int) -> int:
    """Number of child processes that decoding will use: none for uncompressed series."""
    native = sum(
        header.instance.transfer_syntax not in NATIVE and codec_of(header).native for header in headers
    )
    return min(native, threads)


def _check_all(headers: Sequence[SliceHeader]) -> None:
    """Checks every header, and the size of the whole, before memory is taken."""
    for header in headers:
        check_slice(header)
    rows, columns = headers[0].shape
    if len(headers) * rows * columns > _LARGEST_VOLUME:
        raise PixelError(
            f"{len(headers)}×{rows}×{columns} voxels, expected at most {_LARGEST_VOLUME}",
            where=headers[0].where("Rows"),
            code="VOLUME_TOO_LARGE",
        )


def _refuse(headers: Sequence[SliceHeader]) -> tuple[NDArray[Any], list[frozenset[str]]]:
    raise PixelError("the voxels fit no type", where=headers[0].where("PixelData"), code="PIXEL_DECODE")


def _read(
    headers: Sequence[SliceHeader], dtype: np.dtype[Any], threads: int, progress: Progress | None
) -> tuple[NDArray[Any], list[frozenset[str]]] | None:
    """All slices as one array of a type; None where int16 turns out too narrow."""
    narrow = dtype == np.int16

    def one(k: int) -> frozenset[str] | None:
        decoded = decode_slice(headers[k], voxels[k] if narrow else None)
        if narrow and decoded.values.dtype != np.int16:
            return None
        if not np.shares_memory(decoded.values, voxels):
            voxels[k] = decoded.values
        return frozenset(decoded.repairs)

    repairs: list[frozenset[str]] = []
    with ThreadPoolExecutor(threads) as pool:
        if headers[0].instance.transfer_syntax not in NATIVE:  # a bad stream must not cost the array first
            pool.submit(decode_slice, headers[0]).result()
        voxels = np.empty((len(headers), *headers[0].shape), dtype)
        for done, found in enumerate(pool.map(one, range(len(headers))), start=1):
            if found is None:
                pool.shutdown(cancel_futures=True)
                return None
            repairs.append(found)
            if progress is not None:
                progress(done, len(headers))
    return voxels, repairs


def _compare_duplicates(arrangement: Arrangement, voxels: NDArray[Any]) -> None:
    """Refuses slices that share a position but not their pixels."""
    for index, header in arrangement.duplicates:
        check_slice(header)
        if header.shape != voxels.shape[1:] or not np.array_equal(decode_slice(header).values, voxels[index]):
            raise GeometryError(
                "two slices at one position hold different pixels",
                where=f"{header.where('ImagePositionPatient')}; {arrangement.order[index].where()}",
                code="DUPLICATE_DIFFERS",
                todo="choose one volume of the series",
            )
