"""Compressed transfer syntaxes: one frame in, stored values out.

pydicom's decoders do the work, with the plugins that measured fastest: python-gdcm for JPEG, JPEG lossless
and JPEG 2000, CharLS for JPEG-LS, pydicom itself for RLE. JPEG with 12 bits goes to GDCM directly, which
pydicom declines. None of them is under the GPL.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from threading import Lock, local
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.encaps import get_frame
from pydicom.pixels.decoders.base import get_decoder

from wetread.dicom import tags
from wetread.dicom.files import EXPLICIT_BE, require_pixels, whole_bytes
from wetread.dicom.header import SliceHeader, Source
from wetread.errors import PixelError

_DECODE_ERRORS = (
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    NotImplementedError,
    RuntimeError,
    EOFError,
    IndexError,
    OverflowError,
    MemoryError,
    LookupError,
    AssertionError,
    OSError,
    ArithmeticError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True)
class Codec:
    """How one transfer syntax is decoded.

    Attributes:
        name: for people.
        plugins: names of pydicom's decoding plugins, fastest first; none means GDCM directly.
        lossy: True where decoded values always differ from those that were encoded, None where the
            syntax allows both.
        native: True where native code decodes it, which a damaged stream may crash; see
            `wetread.dicom.decoders`.
    """

    name: str
    plugins: tuple[str, ...]
    lossy: bool | None = False
    native: bool = True


CODECS = {
    "1.2.840.10008.1.2.5": Codec("RLE", ("pydicom",), native=False),
    "1.2.840.10008.1.2.4.50": Codec("JPEG baseline", ("gdcm", "pillow"), lossy=True),
    "1.2.840.10008.1.2.4.51": Codec("JPEG extended", (), lossy=True),
    "1.2.840.10008.1.2.4.53": Codec("JPEG spectral selection", (), lossy=True),
    "1.2.840.10008.1.2.4.55": Codec("JPEG full progression", (), lossy=True),
    "1.2.840.10008.1.2.4.57": Codec("JPEG lossless", ("gdcm",)),
    "1.2.840.10008.1.2.4.70": Codec("JPEG lossless, first-order prediction", ("gdcm",)),
    "1.2.840.10008.1.2.4.80": Codec("JPEG-LS", ("pyjpegls", "gdcm")),
    "1.2.840.10008.1.2.4.81": Codec("JPEG-LS near-lossless", ("pyjpegls", "gdcm"), lossy=True),
    "1.2.840.10008.1.2.4.90": Codec("JPEG 2000 lossless", ("gdcm", "pylibjpeg")),
    "1.2.840.10008.1.2.4.91": Codec("JPEG 2000", ("gdcm", "pylibjpeg"), lossy=None),
    "1.2.840.10008.1.2.4.201": Codec("HTJ2K lossless", ("pylibjpeg",)),
    "1.2.840.10008.1.2.4.202": Codec("HTJ2K lossless RPCL", ("pylibjpeg",)),
    "1.2.840.10008.1.2.4.203": Codec("HTJ2K", ("pylibjpeg",), lossy=None),
}

_gdcm_lock = Lock()


def remarks(header: SliceHeader) -> set[str]:
    """Codes of the notices that the transfer syntax asks for: ``LOSSY``, ``BIG_ENDIAN``."""
    syntax = header.instance.transfer_syntax
    if syntax == EXPLICIT_BE:
        return {"BIG_ENDIAN"}
    flagged = header.text("LossyImageCompression") == "01"
    codec = CODECS.get(syntax)
    lossy = codec is not None and codec.lossy is True
    return {"LOSSY"} if lossy or flagged else set()


def codec_of(header: SliceHeader) -> Codec:
    """The codec of a slice's transfer syntax.

    Raises:
        PixelError: no decoder is known for it.
    """
    syntax = header.instance.transfer_syntax
    codec = CODECS.get(syntax)
    if codec is None:
        known = ", ".join(sorted({entry.name for entry in CODECS.values()}))
        raise PixelError(
            f"transfer syntax {syntax} is not supported, expected uncompressed or one of {known}",
            where=header.where("TransferSyntaxUID"),
            code="TRANSFER_SYNTAX",
            todo="export the series uncompressed",
        )
    return codec


def decode_frame(header: SliceHeader) -> NDArray[Any]:
    """Stored values of one compressed frame, shape (rows, columns).

    Raises:
        PixelError: unsupported transfer syntax, or a stream that no decoder accepts.
    """
    codec = codec_of(header)
    require_pixels(header.instance)
    index = max(header.frame - 1, 0)
    try:
        with tags.quiet():
            dataset = _dataset(header)
            if codec.plugins:
                return _by_pydicom(dataset, header.instance.transfer_syntax, index, codec)
            return _by_gdcm(dataset, header, index)
    except _DECODE_ERRORS as error:
        reason = " ".join(str(error).split())[:200]
        raise PixelError(
            f"{codec.name} stream cannot be decoded: {reason}",
            where=header.where("PixelData"),
            code="PIXEL_DECODE",
            todo="copy or export the instance again",
        ) from error


class _Last(local):
    """The last multi-frame instance of each thread, parsed."""

    source: Source | None = None
    dataset: Any = None


_last = _Last()


def _dataset(header: SliceHeader) -> Any:
    """The whole instance, pixels included; kept for the thread's next frame of a multi-frame one."""
    source = header.instance.source
    if header.frame and _last.source is source:
        return _last.dataset
    dataset = dcmread(io.BytesIO(whole_bytes(source)), force=True)
    if header.frame:
        _last.source, _last.dataset = source, dataset
    return dataset


def _by_pydicom(dataset: Any, syntax: str, index: int, codec: Codec) -> NDArray[Any]:
    """Decodes with the first plugin that accepts the stream."""
    decoder = get_decoder(syntax)
    failure: Exception = RuntimeError("no decoder is installed")
    for plugin in codec.plugins:
        if plugin not in decoder.available_plugins:
            continue
        try:
            values, _ = decoder.as_array(dataset, index=index, raw=True, decoding_plugin=plugin)
            return values if values.flags.writeable else values.copy()
        except _DECODE_ERRORS as error:
            failure = error
    raise failure


def _by_gdcm(dataset: Any, header: SliceHeader, index: int) -> NDArray[Any]:
    """Decodes one JPEG frame of up to 12 bits with GDCM (its bindings are not safe in threads)."""
    import gdcm

    frames = max(int(header.number("NumberOfFrames", 1.0)), 1)
    stream = get_frame(dataset.PixelData, index, number_of_frames=frames)
    rows, columns = header.shape
    allocated, stored = header.bits
    with _gdcm_lock:
        pixel_format = gdcm.PixelFormat(1, allocated, stored, stored - 1, int(header.signed))
        image = gdcm.Image()
        image.SetNumberOfDimensions(2)
        image.SetDimensions((columns, rows, 1))
        image.SetPixelFormat(pixel_format)
        image.SetPhotometricInterpretation(
            gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2)
        )
        image.SetTransferSyntax(
            gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(header.instance.transfer_syntax))
        )
        fragment = gdcm.Fragment()
        fragment.SetByteStringValue(stream)
        fragments = gdcm.SequenceOfFragments.New()
        fragments.AddFragment(fragment)
        element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
        element.SetValue(fragments.__ref__())
        image.SetDataElement(element)
        buffer = image.GetBuffer()
    if buffer is None:
        raise RuntimeError("GDCM returned nothing")
    data = buffer.encode("utf-8", "surrogateescape")
    dtype = np.dtype(f"{'i' if header.signed else 'u'}{allocated // 8}")
    return np.frombuffer(data, dtype).reshape(rows, columns).copy()
