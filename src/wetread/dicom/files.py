"""Files: from bytes to the header of one instance.

`read_header` parses what comes before Pixel Data and notes where the pixels lie; `pixel_bytes` fetches them
later. Nothing here knows of series or geometry, so a server can call it for each instance as it arrives.
File format: DICOM PS3.10 section 7; transfer syntaxes: PS3.5 annex A.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from threading import local

from pydicom import dcmread
from pydicom.errors import BytesLengthException, InvalidDicomError

from wetread.dicom import tags
from wetread.dicom.header import Instance, PixelLocation, Source
from wetread.errors import FileFormatError, PixelError

IMPLICIT_LE = "1.2.840.10008.1.2"
EXPLICIT_LE = "1.2.840.10008.1.2.1"
EXPLICIT_BE = "1.2.840.10008.1.2.2"
DEFLATED_LE = "1.2.840.10008.1.2.1.99"
NATIVE = (IMPLICIT_LE, EXPLICIT_LE, EXPLICIT_BE, DEFLATED_LE)

_HEAD_BYTES = (1 << 15, 1 << 19)  # most headers fit the first, nearly all the second
_INFLATED_LIMIT = 2 << 30
_PIXEL_TAGS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
_LONG_VR = (b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"UN")
_PARSE_ERRORS = (
    *tags.CONVERSION_ERRORS,
    zlib.error,
    InvalidDicomError,
    BytesLengthException,
    MemoryError,
    AssertionError,
)


class NotDicomError(FileFormatError):
    """The bytes make no claim to be DICOM."""

    default_code = "FILE_NOT_DICOM"


class BrokenFileError(FileFormatError):
    """A file is DICOM and broken, and it is known to which series it belongs."""

    series_instance_uid = ""


def read_header(source: Source | Path | bytes) -> Instance:
    """Reads the header of one instance.

    Args:
        source: a file, or the bytes of one (Part 10, or a bare data set without preamble).

    Raises:
        NotDicomError: the bytes are not DICOM.
        FileFormatError: empty, unreadable, or broken before the end of the header.
    """
    if isinstance(source, Path):
        source = Source(source.name, path=source)
    elif isinstance(source, bytes):
        source = Source("memory", data=source)
    head, size = _head(source, _HEAD_BYTES[0])
    if size == 0:
        raise FileFormatError(
            "the file is empty", where=source.name, code="FILE_EMPTY", todo="copy or export it again"
        )
    if not _looks_like_dicom(head):
        raise NotDicomError(
            "the file is not DICOM: it has neither the DICM prefix nor a data set's first element",
            where=source.name,
            todo="remove it, or export it again",
        )
    with tags.quiet():
        if DEFLATED_LE.encode() in head[:2048]:
            whole = whole_bytes(source)
            return replace(_parse(source, whole, len(whole)), transfer_syntax=DEFLATED_LE)
        for length in (*_HEAD_BYTES[1:], size):
            if len(head) >= size:
                break
            try:
                return _parse(source, head, size)
            except FileFormatError:
                head, _ = _head(source, length)
        return _parse(source, head, size)


def _head(source: Source, length: int) -> tuple[bytes, int]:
    """First bytes of a source and its full size."""
    if source.data is not None:
        return source.data, len(source.data)
    if source.path is None:
        return b"", 0
    try:
        with source.path.open("rb", buffering=0) as file:
            head = file.read(length)
            return head, max(len(head), file.seek(0, io.SEEK_END))
    except OSError as error:
        raise _unreadable(source, error) from error


def _unreadable(source: Source, error: OSError) -> FileFormatError:
    return FileFormatError(
        f"the file cannot be read: {error.strerror or error}",
        where=source.name,
        code="FILE_UNREADABLE",
        todo="check the file and its permissions",
    )


def whole_bytes(source: Source) -> bytes:
    """All bytes of a source, a deflated data set inflated.

    Raises:
        FileFormatError: the file is gone or unreadable, or the deflate stream is damaged or too large.
    """
    try:
        data = source.data if source.data is not None else (source.path or Path(source.name)).read_bytes()
    except OSError as error:
        raise _unreadable(source, error) from error
    return _inflate(data, source.name) if DEFLATED_LE.encode() in data[:2048] else data


class _Last(local):
    """The last multi-frame source of each thread, so that its frames do not read it again and again."""

    source: Source | None = None
    data: bytes = b""


_last = _Last()


def shared_bytes(instance: Instance, *, keep: bool) -> bytes:
    """All bytes of an instance, kept for the thread's next frame of it where ``keep`` asks for that."""
    if not keep:
        return whole_bytes(instance.source)
    if _last.source is not instance.source:
        _last.data = whole_bytes(instance.source)
        _last.source = instance.source
    return _last.data


def _inflate(data: bytes, name: str) -> bytes:
    """Turns a deflated file into an explicit little endian one of the same meaning (PS3.5 A.5)."""
    if data[128:132] != b"DICM" or data[132:136] != b"\x02\0\0\0" or len(data) < 144:
        raise FileFormatError(
            "deflated data set without file meta information",
            where=name,
            code="FILE_BROKEN",
            todo="export the file again",
        )
    meta_end = 144 + int(struct.unpack("<I", data[140:144])[0])
    meta = data[:meta_end].replace(DEFLATED_LE.encode(), EXPLICIT_LE.encode().ljust(len(DEFLATED_LE), b"\0"))
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        body = inflater.decompress(data[meta_end:], _INFLATED_LIMIT)
    except zlib.error as error:
        raise FileFormatError(
            f"the deflated data set is damaged: {error}",
            where=name,
            code="FILE_BROKEN",
            todo="copy or export it again",
        ) from error
    if inflater.unconsumed_tail:
        raise FileFormatError(
            f"the deflated data set is larger than {_INFLATED_LIMIT >> 20} MiB",
            where=name,
            code="FILE_TOO_LARGE",
            todo="export it uncompressed",
        )
    return meta + body


def _looks_like_dicom(head: bytes) -> bool:
    """True for Part 10 files, and for bare data sets that begin with a plausible element of group 2 or 8."""
    if head[128:132] == b"DICM":
        return True
    if len(head) < 16 or head[0:2] not in (b"\x08\0", b"\x02\0") or head[3] != 0:
        return False
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    return explicit or int(struct.unpack("<I", head[4:8])[0]) < 256


def _parse(source: Source, data: bytes, size: int) -> Instance:
    """Parses ``data``, the beginning of a source of ``size`` bytes, up to Pixel Data."""
    stream = io.BytesIO(data)
    try:
        dataset = dcmread(stream, stop_before_pixels=True, force=True)
        syntax = tags.meta_text(dataset, "TransferSyntaxUID")
    except _PARSE_ERRORS as error:
        raise FileFormatError(
            f"the header cannot be parsed: {str(error)[:120]}",
            where=source.name,
            code="FILE_BROKEN",
            todo="copy or export the file again",
        ) from error
    problems = []
    if not syntax:
        implicit, little = dataset.original_encoding
        syntax = IMPLICIT_LE if implicit or implicit is None else EXPLICIT_LE if little else EXPLICIT_BE
        problems.append(f"{tags.named('TransferSyntaxUID')} is missing; taken from the first elements")
    pixels = _locate(data, stream.tell(), size, syntax)
    if pixels is None and size > len(data):
        raise FileFormatError("no pixel data in the first bytes", where=source.name, code="FILE_BROKEN")
    _check_whole(source, dataset, data, size)
    return Instance(source, dataset, syntax, pixels, tuple(problems))


def _check_whole(source: Source, dataset: object, data: bytes, size: int) -> None:
    """Refuses a header that ends within an element: its last value is shorter than its length says."""
    elements = tags.raw_elements(dataset)  # type: ignore[arg-type]
    if not elements:
        raise FileFormatError(
            "the file holds no data elements",
            where=source.name,
            code="FILE_BROKEN",
            todo="copy or export the file again",
        )
    last = elements[next(reversed(list(elements)))]
    value, length = getattr(last, "value", None), getattr(last, "length", 0)
    short = (
        isinstance(value, bytes)
        and isinstance(length, int)
        and 0 < length != 0xFFFFFFFF
        and len(value) < length
    )
    if short and len(data) >= size:
        tag = int(last.tag)
        error = BrokenFileError(
            f"the file ends inside its header, within element ({tag >> 16:04x},{tag & 0xFFFF:04x})",
            where=source.name,
            code="FILE_TRUNCATED",
            todo="copy or export the file again",
        )
        error.series_instance_uid = tags.text(elements.get(tags.tag_of("SeriesInstanceUID")))
        raise error


def _locate(data: bytes, at: int, size: int, syntax: str) -> PixelLocation | None:
    """Finds the value of Pixel Data whose element starts at ``at``."""
    order = ">" if syntax == EXPLICIT_BE else "<"
    head = data[at : at + 12]
    if len(head) < 8:
        return None
    group, number = struct.unpack(order + "HH", head[:4])
    if (group << 16 | number) not in _PIXEL_TAGS:
        return None
    if number != 0x10:
        return PixelLocation(at, 0, 0, f"float {number:04x}")
    if syntax != IMPLICIT_LE and head[4:6] in _LONG_VR:
        if len(head) < 12:
            return None
        length, offset, vr = struct.unpack(order + "I", head[8:12])[0], at + 12, head[4:6].decode()
    else:
        length, offset, vr = struct.unpack(order + "I", head[4:8])[0], at + 8, ""
    return PixelLocation(offset, -1 if length == 0xFFFFFFFF else length, max(size - offset, 0), vr)


def require_pixels(instance: Instance) -> PixelLocation:
    """Location of an instance's integer pixel data.

    Raises:
        PixelError: there is none, or it is floating point.
    """
    where = f"{instance.label}, {tags.named('PixelData')}"
    if instance.pixels is None:
        raise PixelError(
            f"{tags.named('PixelData')} is missing",
            where=where,
            code="PIXEL_DATA_MISSING",
            todo="copy or export the instance again",
        )
    if instance.pixels.vr.startswith("float"):
        raise PixelError(
            "floating-point pixel data is not read",
            where=where,
            code="PIXEL_DATA_FLOAT",
            todo="export the series with integer pixels",
        )
    return instance.pixels


def read_range(instance: Instance, offset: int, buffer: memoryview) -> int:
    """Fills a buffer from a byte offset of the instance's file; returns how many bytes there were.

    Raises:
        FileFormatError: the file is gone or unreadable.
    """
    source = instance.source
    if source.path is None or instance.transfer_syntax == DEFLATED_LE:
        data = shared_bytes(instance, keep=offset > instance.pixels.offset if instance.pixels else False)
        data = data[offset : offset + len(buffer)]
        buffer[: len(data)] = data
        return len(data)
    try:
        with source.path.open("rb", buffering=0) as file:
            file.seek(offset)
            done = 0
            while done < len(buffer):
                got = file.readinto(buffer[done:])
                if not got:
                    break
                done += got
            return done
    except OSError as error:
        raise _unreadable(source, error) from error
