"""Splitting: which slices of one Series Instance UID belong to one volume.

A series may hold more than one volume: echoes, phases, b-values, time points, Dixon images, localisers.
Slices are always told apart by frame of reference, by orientation (more than 5°) and by whether they are
localisers. Everything else, image type and acquisition number included, splits only where positions repeat:
in one head CT 21 acquisition numbers belong to 28 slices of a single volume.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from wetread.dicom.geometry import SAME_POSITION_MM, SPLIT_DEGREES
from wetread.dicom.header import SliceHeader
from wetread.dicom.plane import plane_directions
from wetread.errors import GeometryError

_LOCALISERS = ("LOCALIZER", "SCOUT", "TOPOGRAM", "SCANOGRAM", "SURVEY")

# What can differ between slices at one position, most telling first: name for people, keyword or private tag.
_KEYS: tuple[tuple[str, str], ...] = (
    ("stack", "StackID"),
    ("matrix", "Rows"),
    ("image type", "ImageType"),
    ("echo", "EchoNumbers"),
    ("echo time", "EchoTime"),
    ("inversion time", "InversionTime"),
    ("flip angle", "FlipAngle"),
    ("b-value", "DiffusionBValue"),
    ("b-value", "private"),
    ("diffusion direction", "DiffusionGradientOrientation"),
    ("temporal position", "TemporalPositionIdentifier"),
    ("temporal position", "TemporalPositionIndex"),
    ("temporal position", "TemporalPositionTimeOffset"),
    ("cardiac phase", "NominalPercentageOfCardiacPhase"),
    ("trigger time", "TriggerTime"),
    ("contrast agent", "ContrastBolusAgent"),
    ("kernel", "ConvolutionKernel"),
    ("slice thickness", "SliceThickness"),
    ("tube voltage", "KVP"),
    ("sequence", "SequenceName"),
    ("protocol", "ProtocolName"),
    ("acquisition", "AcquisitionNumber"),
    ("acquisition time", "AcquisitionDateTime"),
    ("acquisition time", "AcquisitionTime"),
    ("content time", "ContentTime"),
)
# Private b-values: GE (0043,1039), Siemens (0019,100c), Philips (2001,1003).
_PRIVATE_B = (0x00431039, 0x0019100C, 0x20011003)


@dataclass(frozen=True)
class Group:
    """Slices of one volume candidate.

    Attributes:
        slices: in the order given.
        reason: why they were split from the rest of their series, empty where they were not.
    """

    slices: tuple[SliceHeader, ...]
    reason: str = ""


def split(slices: Sequence[SliceHeader]) -> tuple[Group, ...]:
    """Splits the slices of one series into volume candidates, in the order of their first slices.

    Slices without a readable place stay with the largest group, so that its geometry names what is missing
    instead of leaving them out.
    """
    placed = [header for header in slices if _has_plane(header)]
    lost = [header for header in slices if not _has_plane(header)]
    if not placed:
        return (Group(tuple(slices)),) if slices else ()
    groups = [Group(tuple(placed))]
    groups = _always(groups, "frame of reference", lambda header: header.frame_of_reference)
    groups = _always(groups, "localiser", lambda header: "yes" if is_localiser(header) else "no")
    groups = [part for group in groups for part in _by_orientation(group)]
    groups = [part for group in groups for part in _by_keys(group, 0)]
    if lost:
        largest = max(range(len(groups)), key=lambda k: len(groups[k].slices))
        groups[largest] = Group((*groups[largest].slices, *lost), groups[largest].reason)
    return tuple(groups)


def is_localiser(header: SliceHeader) -> bool:
    """True where Image Type says localiser or scout (PS3.3 C.8.2.1.1.1)."""
    return any(part in _LOCALISERS for part in header.image_type)


def _has_plane(header: SliceHeader) -> bool:
    try:
        plane_directions(header)
    except GeometryError:
        return False
    return header.has_place


def _always(groups: list[Group], name: str, key: Callable[[SliceHeader], str]) -> list[Group]:
    """Splits every group by a key, whether positions repeat or not."""
    return [part for group in groups for part in _partition(group, name, key)]


def _partition(group: Group, name: str, key: Callable[[SliceHeader], str]) -> list[Group]:
    parts: dict[str, list[SliceHeader]] = defaultdict(list)
    for header in group.slices:
        parts[key(header)].append(header)
    if len(parts) == 1:
        return [group]
    return [
        Group(tuple(part), _because(group.reason, f"{name} {value or 'not given'}"))
        for value, part in parts.items()
    ]


def _because(before: str, reason: str) -> str:
    return f"{before}; {reason}" if before else reason


def _by_orientation(group: Group) -> list[Group]:
    """Splits planes that differ by more than 5°; smaller differences are for geometry to refuse."""
    parts: list[tuple[np.ndarray, list[SliceHeader]]] = []
    known: dict[tuple[float, ...], int] = {}
    limit = 2 * np.sin(np.radians(SPLIT_DEGREES) / 2)
    for header in group.slices:
        at = known.get(header.orientation)
        if at is None:
            plane = plane_directions(header)
            near = (
                k
                for k, (other, _) in enumerate(parts)
                if np.linalg.norm(plane - other, axis=1).max() <= limit
            )
            at = next(near, len(parts))
            if at == len(parts):
                parts.append((plane, []))
            known[header.orientation] = at
        parts[at][1].append(header)
    if len(parts) == 1:
        return [group]
    return [
        Group(tuple(part), _because(group.reason, f"orientation {k}"))
        for k, (_, part) in enumerate(parts, start=1)
    ]


def _by_keys(group: Group, start: int) -> list[Group]:
    """Splits by the first key, from ``start`` on, that tells slices at one position apart."""
    places = _places(group.slices)
    repeats = max(Counter(places).values())
    if repeats == 1:
        return [group]
    for number in range(start, len(_KEYS)):
        name, keyword = _KEYS[number]
        values = [_value(header, keyword) for header in group.slices]
        if len(set(values)) == 1 or not _separates(places, values):
            continue
        if len(set(values)) <= repeats:
            parts = _partition(group, name, _lookup(group.slices, values))
        else:
            ranks = _ranks(places, values)
            if ranks is None:
                continue
            parts = _partition(group, f"{name}, in order,", _lookup(group.slices, ranks))
        return [piece for part in parts for piece in _by_keys(part, number + 1)]
    return [group]


def _lookup(slices: Sequence[SliceHeader], values: Sequence[str]) -> Callable[[SliceHeader], str]:
    table = {id(header): value for header, value in zip(slices, values, strict=True)}
    return lambda header: table[id(header)]


def _places(slices: Sequence[SliceHeader]) -> list[int]:
    """Number of the position along the normal that each slice holds; equal numbers are equal positions."""
    normal = plane_directions(slices[0])[0]
    along = np.array([header.position for header in slices]) @ normal
    order = np.argsort(along, kind="stable")
    steps = np.concatenate([[0], np.cumsum(np.diff(along[order]) >= SAME_POSITION_MM)])
    places = np.empty(len(slices), np.int64)
    places[order] = steps
    return [int(place) for place in places]


def _separates(places: list[int], values: list[str]) -> bool:
    """True where at some repeated position the values differ."""
    seen: dict[int, str] = {}
    return any(seen.setdefault(place, value) != value for place, value in zip(places, values, strict=True))


def _ranks(places: list[int], values: list[str]) -> list[str] | None:
    """Rank of each value among those at its position, where every position has as many different values."""
    by_place: dict[int, set[str]] = defaultdict(set)
    for place, value in zip(places, values, strict=True):
        by_place[place].add(value)
    sizes = {len(found) for found in by_place.values()}
    if len(sizes) != 1 or any(count != sizes.copy().pop() for count in Counter(places).values()):
        return None
    ranked = {place: sorted(found, key=_order) for place, found in by_place.items()}
    return [str(ranked[place].index(value) + 1) for place, value in zip(places, values, strict=True)]


def _order(value: str) -> tuple[float, str]:
    try:
        return float(value), value
    except ValueError:
        return 0.0, value


def _value(header: SliceHeader, keyword: str) -> str:
    if keyword == "ImageType":
        return "\\".join(header.image_type)
    if keyword == "Rows":
        return f"{header.text('Rows')}×{header.text('Columns')}"
    if keyword == "private":
        return header.private(_PRIVATE_B)
    return header.text(keyword)
