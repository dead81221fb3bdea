"""Headers: one `Instance` for each file, one `SliceHeader` for each slice in it.

A slice is a single-frame instance or one frame of a multi-frame one; the frame's functional groups stand
before the instance's own elements (DICOM PS3.3 C.7.6.16). Values are parsed when they are asked for, so that
a file with a fault in one element can still be listed; asking for that element then names instance and tag.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from pydicom.dataset import Dataset

from wetread.dicom import tags
from wetread.errors import GeometryError, PixelError, WetreadError
from wetread.volume import SliceRef

_PADDING_LIMIT = "PixelPaddingRangeLimit"


@dataclass(frozen=True)
class Source:
    """Where the bytes of an instance are: a file, or memory.

    Attributes:
        name: how messages call it, relative to the study.
        path: the file, or None.
        data: the bytes where there is no file.
    """

    name: str
    path: Path | None = None
    data: bytes | None = None


@dataclass(frozen=True)
class PixelLocation:
    """Where the value of Pixel Data lies.

    Attributes:
        offset: first byte of the value.
        length: bytes of the value, or -1 where it is undefined (encapsulated).
        available: bytes that the file really holds from the offset on.
        vr: value representation, empty in implicit VR.
    """

    offset: int
    length: int
    available: int
    vr: str = ""


@dataclass(frozen=True, eq=False)
class Instance:
    """The header of one DICOM instance, without its pixels.

    Attributes:
        source: where it was read from.
        dataset: all elements before Pixel Data, with ``file_meta``.
        transfer_syntax: Transfer Syntax UID.
        pixels: where Pixel Data lies, None where the instance has none.
        problems: what is wrong with the file itself (truncation), for notices.
    """

    source: Source
    dataset: Dataset
    transfer_syntax: str
    pixels: PixelLocation | None
    problems: tuple[str, ...] = field(default=())

    def text(self, keyword: str) -> str:
        """Value of an element of the instance as text, ``""`` where it is absent."""
        return tags.text(tags.raw_elements(self.dataset).get(tags.tag_of(keyword)))

    @property
    def sop_instance_uid(self) -> str:
        """SOP Instance UID, or an empty string."""
        return self.text("SOPInstanceUID")

    @property
    def series_instance_uid(self) -> str:
        """Series Instance UID, or an empty string."""
        return self.text("SeriesInstanceUID")

    @cached_property
    def modality(self) -> str:
        """Modality, such as ``CT``."""
        return self.text("Modality").upper()

    @property
    def label(self) -> str:
        """How messages name the instance: UID and file."""
        return f"instance {self.sop_instance_uid or 'without UID'} ({self.source.name})"


class SliceHeader:
    """One slice: its place, its matrix and how its stored values become real ones.

    Args:
        instance: the instance that holds it.
        frame: 1-based frame number, 0 in a single-frame instance.
        groups: elements of the frame's functional groups by tag; they come before the instance's.
    """

    def __init__(self, instance: Instance, frame: int = 0, groups: tags.Elements | None = None) -> None:
        self.instance = instance
        self.frame = frame
        self.groups = groups

    def _element(self, keyword: str) -> object:
        tag = tags.tag_of(keyword)
        if self.groups is not None:
            found = self.groups.get(tag)
            if found is not None:
                return found
        return tags.raw_elements(self.instance.dataset).get(tag)

    def where(self, keyword: str = "") -> str:
        """Instance, frame and tag, for messages."""
        place = self.instance.label
        if self.frame:
            place += f", frame {self.frame}"
        return f"{place}, {tags.named(keyword)}" if keyword else place

    def text(self, keyword: str) -> str:
        """Value as text, ``""`` where it is absent."""
        return tags.text(self._element(keyword))

    def private(self, candidates: tuple[int, ...]) -> str:
        """Value of the first of some private elements that is there, as text; raw bytes as hexadecimal."""
        for tag in candidates:
            element = tags.raw_elements(self.instance.dataset).get(tag)
            if element is None:
                continue
            content = tags.text(element)
            return content if content.isprintable() else content.encode("latin-1", "replace").hex()
        return ""

    def has(self, keyword: str) -> bool:
        """True where the element is there and not empty."""
        return bool(self.text(keyword))

    def numbers(
        self, keyword: str, count: int, error: type[WetreadError] = GeometryError
    ) -> tuple[float, ...]:
        """Finite values of a required element.

        Raises:
            WetreadError: of the given class: absent (``TAG_MISSING``), not ``count`` finite numbers
                (``TAG_INVALID``).
        """
        element = self._element(keyword)
        try:
            values = tags.numbers(element)
        except ValueError:
            values = (math.nan,)
        if not values:
            raise error(
                f"{tags.named(keyword)} is missing",
                where=self.where(keyword),
                code="TAG_MISSING",
                todo="export the series again with all of its attributes",
            )
        if len(values) != count or not all(map(math.isfinite, values)):
            raise error(
                f"{tags.named(keyword)} is '{tags.text(element)[:80]}', expected {count} finite "
                f"number{'s' if count > 1 else ''}",
                where=self.where(keyword),
                code="TAG_INVALID",
                todo="repair the element or export the series again",
            )
        return values

    def number(
        self, keyword: str, default: float | None = None, error: type[WetreadError] = PixelError
    ) -> float:
        """One finite value; the default where the element is absent and a default is given."""
        if default is not None and not self.has(keyword):
            return default
        return self.numbers(keyword, 1, error)[0]

    def _whole(self, keyword: str, default: int | None = None) -> int:
        value = self.number(keyword, None if default is None else float(default))
        if value != int(value):
            raise PixelError(
                f"{tags.named(keyword)} is {value:g}, expected a whole number",
                where=self.where(keyword),
                code="TAG_INVALID",
            )
        return int(value)

    @cached_property
    def position(self) -> tuple[float, ...]:
        """Image Position (Patient): centre of the first voxel, LPS mm."""
        return self.numbers("ImagePositionPatient", 3)

    @cached_property
    def orientation(self) -> tuple[float, ...]:
        """Image Orientation (Patient): direction of rising column index, then of rising row index."""
        return self.numbers("ImageOrientationPatient", 6)

    @property
    def has_place(self) -> bool:
        """True where position and orientation can be read."""
        try:
            return bool(self.position and self.orientation)
        except GeometryError:
            return False

    @cached_property
    def pixel_spacing(self) -> tuple[float, float]:
        """Pixel Spacing in mm: between rows, between columns."""
        rows, columns = self.numbers("PixelSpacing", 2)
        if min(rows, columns) <= 0:
            raise GeometryError(
                f"{tags.named('PixelSpacing')} is {rows:g}\\{columns:g}, expected positive mm",
                where=self.where("PixelSpacing"),
                code="TAG_INVALID",
            )
        return rows, columns

    @cached_property
    def thickness(self) -> float | None:
        """Slice Thickness in mm, None where it is absent, zero or unreadable."""
        try:
            value = self.number("SliceThickness", 0.0)
        except PixelError:
            return None
        return value if value > 0 else None

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Rows and Columns."""
        rows, columns = self._whole("Rows"), self._whole("Columns")
        for keyword, value in (("Rows", rows), ("Columns", columns)):
            if value < 1:
                raise PixelError(
                    f"{tags.named(keyword)} is {value}, expected at least 1",
                    where=self.where(keyword),
                    code="TAG_INVALID",
                )
        return rows, columns

    @cached_property
    def bits(self) -> tuple[int, int]:
        """Bits Allocated and Bits Stored."""
        allocated = self._whole("BitsAllocated")
        stored = self._whole("BitsStored", allocated)
        if allocated not in (8, 16, 32):
            raise PixelError(
                f"{tags.named('BitsAllocated')} is {allocated}, expected 8, 16 or 32",
                where=self.where("BitsAllocated"),
                code="BITS",
            )
        if not 1 <= stored <= allocated:
            raise PixelError(
                f"{tags.named('BitsStored')} is {stored}, expected 1 to {allocated}",
                where=self.where("BitsStored"),
                code="BITS",
            )
        high = self._whole("HighBit", stored - 1)
        if high != stored - 1:
            raise PixelError(
                f"{tags.named('HighBit')} is {high}, expected {stored - 1}",
                where=self.where("HighBit"),
                code="BITS",
            )
        return allocated, stored

    @cached_property
    def signed(self) -> bool:
        """Pixel Representation: True for two's complement."""
        value = self._whole("PixelRepresentation")
        if value not in (0, 1):
            raise PixelError(
                f"{tags.named('PixelRepresentation')} is {value}, expected 0 or 1",
                where=self.where("PixelRepresentation"),
                code="TAG_INVALID",
            )
        return value == 1

    @cached_property
    def inverted(self) -> bool:
        """True for MONOCHROME1.

        Raises:
            PixelError: any photometric interpretation other than MONOCHROME1 and MONOCHROME2.
        """
        kind = self.text("PhotometricInterpretation").upper()
        samples = self._whole("SamplesPerPixel", 1)
        if samples != 1:
            raise PixelError(
                f"{tags.named('SamplesPerPixel')} is {samples} ({kind or 'colour'}), expected 1",
                where=self.where("SamplesPerPixel"),
                code="PHOTOMETRIC",
                todo="colour images are not read; choose the original series",
            )
        if kind not in ("MONOCHROME1", "MONOCHROME2"):
            raise PixelError(
                f"{tags.named('PhotometricInterpretation')} is '{kind}', expected MONOCHROME1 or MONOCHROME2",
                where=self.where("PhotometricInterpretation"),
                code="PHOTOMETRIC" if kind else "TAG_MISSING",
                todo="colour and palette images are not read; choose the original series",
            )
        return kind == "MONOCHROME1"

    @cached_property
    def rescale(self) -> tuple[float, float]:
        """Rescale Slope and Intercept; (1, 0) where neither is given and the modality allows that.

        Raises:
            PixelError: only one of them is there, or neither in a CT (Hounsfield units would be unknown).
        """
        present = [self.has("RescaleSlope"), self.has("RescaleIntercept")]
        if not any(present) and (self.instance.modality != "CT" or self.has("ModalityLUTSequence")):
            return 1.0, 0.0
        slope, intercept = self.number("RescaleSlope"), self.number("RescaleIntercept")
        if slope == 0:
            raise PixelError(
                f"{tags.named('RescaleSlope')} is 0", where=self.where("RescaleSlope"), code="TAG_INVALID"
            )
        return slope, intercept

    @cached_property
    def padding(self) -> tuple[int, int] | None:
        """Lowest and highest stored value that marks padding, or None (PS3.3 C.7.5.1.1.2)."""
        if not self.has("PixelPaddingValue"):
            return None
        first = self._stored("PixelPaddingValue")
        last = self._stored(_PADDING_LIMIT) if self.has(_PADDING_LIMIT) else first
        return min(first, last), max(first, last)

    def _stored(self, keyword: str) -> int:
        """A stored pixel value given as an element of representation US or SS."""
        value = self._whole(keyword)
        allocated, _ = self.bits
        if self.signed and value >= 1 << (allocated - 1):
            value -= 1 << allocated
        elif not self.signed and value < 0:
            value += 1 << allocated
        return value

    @cached_property
    def image_type(self) -> tuple[str, ...]:
        """Values of Image Type (or Frame Type), upper case."""
        kind = self.text("FrameType") or self.text("ImageType")
        return tuple(part.strip().upper() for part in kind.split("\\")) if kind else ()

    @cached_property
    def frame_of_reference(self) -> str:
        """Frame of Reference UID, or an empty string."""
        return self.text("FrameOfReferenceUID")

    @cached_property
    def instance_number(self) -> int:
        """Instance Number, 0 where it is absent or unreadable; for order and messages only."""
        try:
            return int(self.number("InstanceNumber", 0.0))
        except PixelError:
            return 0

    @cached_property
    def ref(self) -> SliceRef:
        """The slice's identity in a grid."""
        return SliceRef(self.instance.sop_instance_uid, self.frame, self.instance.text("SOPClassUID"))
