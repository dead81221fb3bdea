"""Pixels: from the bytes of one slice to its values.

Order of the steps (DICOM PS3.3 C.11.1, PS3.5 section 8): decode; keep Bits Stored bits and extend the sign;
find padding; Modality LUT or rescale; replace padding; invert MONOCHROME1 where the values have no physical
unit.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wetread.dicom import codecs, tags
from wetread.dicom.decoders import decode_apart
from wetread.dicom.files import EXPLICIT_BE, NATIVE, read_range, require_pixels
from wetread.dicom.header import SliceHeader
from wetread.errors import PixelError

AIR_HU = -1024
_LARGEST_SLICE = 1 << 28


@dataclass(frozen=True)
class Decoded:
    """Values of one slice and what had to be done for them.

    Attributes:
        values: shape (rows, columns); int16 where slope and intercept are whole and the result fits, else
            float32. CT in Hounsfield units.
        repairs: codes of the notices that apply: ``PIXEL_PADDING``, ``MONOCHROME1``, ``MODALITY_LUT``,
            ``LOSSY``, ``BIG_ENDIAN``.
    """

    values: NDArray[Any]
    repairs: Set[str] = field(default_factory=frozenset)


def stored_dtype(header: SliceHeader) -> np.dtype[Any]:
    """Type of the stored values as they lie in a native file, byte order included."""
    allocated, _ = header.bits
    order = ">" if header.instance.transfer_syntax == EXPLICIT_BE else "<"
    return np.dtype(f"{order}{'i' if header.signed else 'u'}{allocated // 8}")


def is_whole(header: SliceHeader) -> bool:
    """True where slope and intercept keep stored integers whole and within reach of int16."""
    if header.instance.text("ModalityLUTSequence"):
        return False
    slope, intercept = header.rescale
    return (
        slope == int(slope) and intercept == int(intercept) and abs(slope) < 32768 and abs(intercept) < 32768
    )


def check_slice(header: SliceHeader) -> None:
    """Checks all that decoding needs, and the length of native pixel data, before a byte of it is read.

    Raises:
        PixelError: an element is missing or out of range, or the length contradicts rows, columns and bits.
    """
    rows, columns = header.shape
    if rows * columns > _LARGEST_SLICE:
        raise PixelError(
            f"{rows}×{columns} pixels in a slice, expected at most {_LARGEST_SLICE}",
            where=header.where("Rows"),
            code="SLICE_TOO_LARGE",
        )
    _ = header.bits, header.signed, header.inverted, header.rescale, header.padding
    location = require_pixels(header.instance)
    if header.instance.transfer_syntax not in NATIVE:
        return
    frames = max(int(header.number("NumberOfFrames", 1.0)), 1)
    expected = rows * columns * frames * stored_dtype(header).itemsize
    where = header.where("PixelData")
    if location.length not in (expected, expected + expected % 2):
        found = "undefined" if location.length < 0 else f"{location.length} bytes"
        raise PixelError(
            f"the length of {tags.named('PixelData')} is {found}, expected {expected} bytes for {rows} "
            f"rows, {columns} columns, {frames} frame{'s' if frames > 1 else ''}",
            where=where,
            code="PIXEL_LENGTH",
            todo="copy or export the instance again",
        )
    if location.available < expected:
        raise PixelError(
            f"the file ends inside {tags.named('PixelData')}: {location.available} of {expected} bytes",
            where=where,
            code="PIXEL_TRUNCATED",
            todo="copy or export the instance again",
        )


def stored_values(header: SliceHeader, out: NDArray[Any] | None = None) -> NDArray[Any]:
    """Stored values of one slice, shape (rows, columns), sign extended from Bits Stored.

    Args:
        header: the slice; `check_slice` has passed.
        out: contiguous array of the slice's shape to read into, used where its item size fits; the result
            then shares its memory.

    Raises:
        PixelError: truncated, or the compressed stream cannot be decoded.
    """
    dtype = stored_dtype(header)
    if header.instance.transfer_syntax in NATIVE:
        values = _native(header, dtype, out)
    else:
        apart = codecs.codec_of(header).native
        values = decode_apart(header) if apart else codecs.decode_frame(header)
        if values.shape != header.shape or values.dtype.itemsize != dtype.itemsize:
            raise PixelError(
                f"the decoder returned {values.shape} {values.dtype}, the header says {header.shape} {dtype}",
                where=header.where("PixelData"),
                code="PIXEL_DECODE",
                todo="copy or export the instance again",
            )
        values = values.view(dtype) if values.dtype.kind != dtype.kind else values
    return _sign_extend(values, header)


def _native(header: SliceHeader, dtype: np.dtype[Any], out: NDArray[Any] | None) -> NDArray[Any]:
    """Reads an uncompressed slice, straight into ``out`` where that is possible."""
    rows, columns = header.shape
    size = rows * columns * dtype.itemsize
    if out is not None and out.dtype.itemsize == dtype.itemsize and out.flags.c_contiguous:
        target = out.view(dtype)
    else:
        target = np.empty((rows, columns), dtype)
    location = require_pixels(header.instance)
    offset = location.offset + max(header.frame - 1, 0) * size
    got = read_range(header.instance, offset, memoryview(target.reshape(-1).view(np.uint8).data))
    if got < size:
        raise PixelError(
            f"the file ends inside {tags.named('PixelData')}: {got} of {size} bytes",
            where=header.where("PixelData"),
            code="PIXEL_TRUNCATED",
            todo="copy or export the instance again",
        )
    if dtype.itemsize == 1 and header.instance.transfer_syntax == EXPLICIT_BE and location.vr == "OW":
        target.reshape(-1)[: size // 2 * 2].view(np.uint16).byteswap(inplace=True)
    if not dtype.isnative:
        return target.byteswap(inplace=True).view(dtype.newbyteorder("="))
    return target


def _sign_extend(values: NDArray[Any], header: SliceHeader) -> NDArray[Any]:
    """Drops bits above Bits Stored (old overlays) and extends the sign from the highest stored bit."""
    allocated, stored = header.bits
    if stored == allocated:
        return values
    if not values.flags.writeable:
        values = values.copy()
    if header.signed:
        np.left_shift(values, allocated - stored, out=values)
        np.right_shift(values, allocated - stored, out=values)
    else:
        np.bitwise_and(values, (1 << stored) - 1, out=values)
    return values


def decode_slice(header: SliceHeader, out: NDArray[Any] | None = None) -> Decoded:
    """Values of one slice.

    Args:
        header: the slice.
        out: int16 array (rows, columns), contiguous: filled and returned where the values fit int16, so that
            no copy is made. Where they do not, the result is float32 and ``out`` holds rubbish.

    Raises:
        PixelError: with instance, tag and reason.
        FileFormatError: the file cannot be read any more.
    """
    check_slice(header)
    repairs = set()
    stored = stored_values(header, out)
    padded = _padding(header, stored)
    lut = _modality_lut(header)
    if lut is not None:
        repairs.add("MODALITY_LUT")
        values: NDArray[Any] = lut[np.clip(stored.astype(np.int64) - int(lut[0]), 0, len(lut) - 2) + 1]
    else:
        values = _rescaled(header, stored, out)
    if header.inverted:
        repairs.add("MONOCHROME1")
        if header.instance.modality != "CT":
            values = _inverted(header, values)
    if padded is not None:
        repairs.add("PIXEL_PADDING")
        fill = _fill_value(header, values, padded)
        if values.dtype == np.int16 and not -32768 <= fill <= 32767:
            values = values.astype(np.float32)
        values[padded] = fill
    return Decoded(values, frozenset(repairs | codecs.remarks(header)))


def _rescaled(header: SliceHeader, stored: NDArray[Any], out: NDArray[Any] | None) -> NDArray[Any]:
    """Slope and intercept; in place, as int16, where the result is whole and fits."""
    slope, intercept = header.rescale
    if is_whole(header):
        low, high = _range(header, stored)
        ends = (low * slope + intercept, high * slope + intercept)
        if min(ends) >= -32768 and max(ends) <= 32767:
            target = out if out is not None else np.empty(stored.shape, np.int16)
            if stored.dtype.itemsize == 2:  # modulo 2**16 the sum is the same, signed or not
                np.multiply(stored.view(np.int16), np.int16(slope), out=target) if slope != 1 else None
                source = target if slope != 1 else stored.view(np.int16)
                np.add(source, np.int16(intercept), out=target)
            else:
                np.add(stored.astype(np.int64) * int(slope), int(intercept), out=target, casting="unsafe")
            return target
    return (stored * slope + intercept).astype(np.float32)


def _range(header: SliceHeader, stored: NDArray[Any]) -> tuple[int, int]:
    """Bounds of the stored values: from the number of bits where that settles the matter, else measured."""
    _, bits = header.bits
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if header.signed else (0, (1 << bits) - 1)
    slope, intercept = header.rescale
    ends = (low * slope + intercept, high * slope + intercept)
    if min(ends) >= -32768 and max(ends) <= 32767:
        return low, high
    return int(stored.min()), int(stored.max())


def _padding(header: SliceHeader, stored: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Mask of padding pixels, None where there are none."""
    if header.padding is None:
        return None
    low, high = header.padding
    mask = stored == low if low == high else (stored >= low) & (stored <= high)
    return mask if mask.any() else None


def _fill_value(header: SliceHeader, values: NDArray[Any], padded: NDArray[np.bool_]) -> float:
    """Value for padding: air in CT, else the lowest value of the slice that is not padding."""
    if header.instance.modality == "CT":
        return float(AIR_HU)
    return float(values.min(where=~padded, initial=values.max()))


def _inverted(header: SliceHeader, values: NDArray[Any]) -> NDArray[Any]:
    """Mirrors values about the middle of the range of Bits Stored, so that bright means high."""
    _, bits = header.bits
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if header.signed else (0, (1 << bits) - 1)
    slope, intercept = header.rescale
    mirrored = (low + high) * slope + 2 * intercept - values.astype(np.float64)
    if values.dtype == np.int16 and mirrored.min() >= -32768 and mirrored.max() <= 32767:
        values[...] = mirrored
        return values
    return mirrored.astype(np.float32)


def _modality_lut(header: SliceHeader) -> NDArray[np.float32] | None:
    """Modality LUT (PS3.3 C.11.1.1) with its first mapped value in front, or None.

    Raises:
        PixelError: descriptor and data do not agree.
    """
    try:
        found = tags.items(header.instance.dataset, "ModalityLUTSequence")
        if not found:
            return None
        elements = tags.raw_elements(found[0])
        descriptor = tags.numbers(elements.get(tags.tag_of("LUTDescriptor")))
        data = tags.numbers(elements.get(tags.tag_of("LUTData")))
        count, first = int(descriptor[0]) or 65536, int(descriptor[1])
        if header.signed and first > 32767:
            first -= 65536
        if len(data) < count:
            raise ValueError(f"{len(data)} values, expected {count}")
    except (ValueError, IndexError) as error:
        raise PixelError(
            f"{tags.named('ModalityLUTSequence')} cannot be used: {error}",
            where=header.where("ModalityLUTSequence"),
            code="MODALITY_LUT_INVALID",
            todo="export the series with rescale slope and intercept",
        ) from error
    return np.array([first, *data[:count]], np.float32)
