"""Raw values of DICOM elements, read without the cost and the warnings of full conversion.

pydicom keeps an element as raw bytes until it is asked for. Geometry needs some twenty elements of each
slice, so they are parsed from those bytes here, strictly: what is not a number is an error, never a guess.
Value representations and their encodings: DICOM PS3.5 section 6.2.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Lock
from typing import Any, cast

from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset

_BINARY = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FD": "d", "FL": "f", "OW": "H", "US or SS": "H"}
_LONGEST_BINARY = 64
CONVERSION_ERRORS = (
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    NotImplementedError,
    OverflowError,
    struct.error,
    LookupError,
    EOFError,
    RecursionError,
    OSError,
)

Elements = Mapping[int, Any]
_tags: dict[str, int] = {}


def tag_of(keyword: str) -> int:
    """Tag of a keyword of the data dictionary, such as 0x00280010 for ``Rows``."""
    tag = _tags.get(keyword)
    if tag is None:
        found = tag_for_keyword(keyword)
        if found is None:
            raise KeyError(keyword)
        tag = _tags[keyword] = int(found)
    return tag


def named(keyword: str) -> str:
    """A keyword as messages show it: ``(0028,0010) Rows``."""
    tag = tag_of(keyword)
    return f"({tag >> 16:04x},{tag & 0xFFFF:04x}) {keyword_for_tag(tag)}"


def raw_elements(dataset: Dataset) -> Elements:
    """The elements of a data set by tag, as they are held: raw ones stay raw."""
    return cast(Elements, dataset._dict)


def meta_text(dataset: Dataset, keyword: str) -> str:
    """Value of an element of the file meta information as text, ``""`` where either is absent."""
    meta = getattr(dataset, "file_meta", None)
    return text(raw_elements(meta).get(tag_of(keyword))) if isinstance(meta, Dataset) else ""


def text(element: Any) -> str:
    """Value of an element as text; several values are joined by backslashes, absent or empty gives ``""``."""
    value = None if element is None else element.value
    if value is None:
        return ""
    if isinstance(value, bytes):
        if _representation(element) in _BINARY and len(value) <= _LONGEST_BINARY:
            try:
                return "\\".join(f"{number:.10g}" for number in numbers(element))
            except ValueError:
                return value.hex()
        return value.decode("latin-1").strip("\0 ")
    if isinstance(value, str):
        return value.strip("\0 ")
    if isinstance(value, int | float):
        return str(value)
    try:
        return "\\".join(str(part).strip("\0 ") for part in value)
    except TypeError:
        return str(value)


def numbers(element: Any) -> tuple[float, ...]:
    """Values of a numeric element of any representation (DS, IS, US, SS, FD, …).

    Raises:
        ValueError: a part is not a number, or the bytes do not fit the representation.
    """
    value = None if element is None else element.value
    if value is None:
        return ()
    if isinstance(value, bytes):
        code = _BINARY.get(_representation(element))
        if code is not None:
            size = struct.calcsize(code)
            if len(value) % size:
                raise ValueError(f"{len(value)} bytes, expected a multiple of {size}")
            order = "<" if getattr(element, "is_little_endian", True) else ">"
            return tuple(map(float, struct.unpack(f"{order}{len(value) // size}{code}", value)))
        content = value.decode("latin-1").strip("\0 ")
        return tuple(float(part) for part in content.split("\\")) if content else ()
    if isinstance(value, int | float):
        return (float(value),)
    if isinstance(value, str):
        return tuple(float(part) for part in value.split("\\")) if value else ()
    try:
        return tuple(float(part) for part in value)
    except TypeError as error:
        raise ValueError(str(error)) from error


def _representation(element: Any) -> str:
    """Value representation of a raw element, from the data dictionary where the file does not give it."""
    vr = element.VR if isinstance(element, RawDataElement) else None
    if vr in (None, "UN"):
        try:
            return str(dictionary_VR(element.tag))
        except KeyError:
            return "UN"
    return str(vr)


def items(dataset: Dataset, keyword: str) -> list[Dataset]:
    """Items of a sequence, empty where it is absent.

    Raises:
        ValueError: the element is there and is no sequence.
    """
    tag = tag_of(keyword)
    if tag not in raw_elements(dataset):
        return []
    try:
        value = dataset[tag].value
    except CONVERSION_ERRORS as error:
        raise ValueError(f"{named(keyword)} cannot be read: {error}") from error
    if value is None:
        return []
    found = list(value) if not isinstance(value, str | bytes | int | float) else None
    if found is None or not all(isinstance(item, Dataset) for item in found):
        raise ValueError(f"{named(keyword)} is not a sequence")
    return found


def decoded(dataset: Dataset, keyword: str) -> str:
    """Text of an element in the character set of its data set; undecodable parts fall back to Latin-1."""
    element = raw_elements(dataset).get(tag_of(keyword))
    if element is None:
        return ""
    try:
        return text(dataset[tag_of(keyword)])
    except CONVERSION_ERRORS:
        return text(element)


_quiet_lock = Lock()
_quiet_depth = 0
_quiet_saved: Any = None


@contextmanager
def quiet() -> Iterator[None]:
    """Silences pydicom's warnings about what is checked here anyway; safe in several threads at once."""
    global _quiet_depth, _quiet_saved  # noqa: PLW0603 - the filters are global too
    with _quiet_lock:
        _quiet_depth += 1
        if _quiet_depth == 1:
            _quiet_saved = warnings.catch_warnings()
            _quiet_saved.__enter__()
            warnings.filterwarnings("ignore", module=r"pydicom|highdicom|gdcm|openjpeg|jpeg_ls|_pyjpegls")
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_depth -= 1
            if _quiet_depth == 0:
                _quiet_saved.__exit__(None, None, None)
                _quiet_saved = None
