"""Plain data of a reading; importing it needs numpy alone."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wetread.errors import Notice
from wetread.volume import Grid


@dataclass(frozen=True)
class Finding:
    """One lesion.

    Attributes:
        number: 1-based, in the order of decreasing volume within the reading.
        label: name of the recipe's label; ``label_index`` its value in the mask.
        tracking_uid: DICOM UID, the same for the same lesion in the same frame of reference.
        centroid_lps_mm: centre of mass of the component's voxels, LPS millimetres.
        volume_ml: component's volume in millilitres.
        long_axis_mm: largest in-plane diameter over the source slices (edge to edge of voxels).
        short_axis_mm: largest diameter perpendicular to it in the same slice.
        diameter_3d_mm: largest distance between any two voxels of the component, edge to edge.
        axis_points_lps_mm: end points of long axis, then of short axis (four points), LPS millimetres.
        slice_range: first and last index along the axis that counts slices, inclusive: axis 0 of a grid of
            source slices, else (NIfTI) the axis nearest to superior/inferior.
        slice_uids: SOP Instance UIDs of those two slices, empty strings where there are none.
        mean, sd: intensity statistics inside the component (HU for CT).
        max_probability, mean_probability: of the network, 0 to 1; NaN where it gives none.
        voxels: number of voxels on the source grid.
        bounding_box: first and last index along each axis of the grid, inclusive.
    """

    number: int
    label: str
    label_index: int
    tracking_uid: str
    centroid_lps_mm: tuple[float, float, float]
    volume_ml: float
    long_axis_mm: float
    short_axis_mm: float
    diameter_3d_mm: float
    axis_points_lps_mm: tuple[tuple[float, float, float], ...]
    slice_range: tuple[int, int]
    slice_uids: tuple[str, str]
    mean: float
    sd: float
    max_probability: float
    mean_probability: float
    voxels: int
    bounding_box: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

    def to_json(self) -> dict[str, Any]:
        """All fields as plain data; numbers that are not known (NaN) become None."""
        return {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in asdict(self).items()
        }


@dataclass(frozen=True)
class LabelInfo:
    """What a value of the mask means: index, name, colour (sRGB) and codes (value, scheme, meaning).

    ``lesion`` tells whether its connected components are findings; an organ's are not.
    """

    index: int
    name: str
    color: tuple[int, int, int]
    category: tuple[str, str, str]
    type: tuple[str, str, str]
    anatomy: tuple[str, str, str] | None = None
    lesion: bool = True


@dataclass(frozen=True)
class Provenance:
    """What made the reading: package with hash, engine with precision and device, versions, overrides."""

    package: str
    package_version: str
    package_hash: str
    engine: str
    precision: str
    device: str
    wetread_version: str
    created: str
    intended_use: str
    gate: str = "passed"
    sources: tuple[str, ...] = ()
    windows_run: int = 0
    windows_skipped: int = 0


@dataclass(frozen=True, eq=False)
class Reading:
    """The answer to one study.

    Attributes:
        mask: uint8 label values on ``grid``, shape ``grid.shape``; None where the task is classification.
        grid: the source grid of the reference channel.
        components: int32 on the same grid, value = finding's number, 0 elsewhere; None where not asked for.
        findings: lesions, largest first.
        labels: meaning of the mask's values.
        notices: what was repaired or assumed.
        timings_s: seconds for each stage.
        status: ``final`` or ``provisional``.
        scores: of a classification, the probability of each label by its name; else empty.
        classes: of a classification, the labels that the reading decides for, the most probable first. Under
            softmax that is one, or none where a class that no label reads is more probable (or the only label
            stays below its threshold); under sigmoid all that reach their thresholds.
        origin: the reference channel as it was loaded (image, DICOM headers), for the writers; set by
            `wetread.read`, not written out.
    """

    mask: NDArray[np.uint8] | None
    grid: Grid
    findings: tuple[Finding, ...]
    labels: tuple[LabelInfo, ...]
    provenance: Provenance
    notices: tuple[Notice, ...] = ()
    timings_s: dict[str, float] = field(default_factory=dict)
    components: NDArray[np.int32] | None = None
    study_instance_uid: str = ""
    series_instance_uid: str = ""
    modality: str = ""
    status: str = "final"
    scores: dict[str, float] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    origin: Any = field(default=None, repr=False)

    @property
    def top_class(self) -> str:
        """The most probable class that the reading decides for; empty where there is none."""
        return self.classes[0] if self.classes else ""

    def to_json(self) -> dict[str, Any]:
        """The reading without its arrays: what ``reading.json`` holds."""
        scored = {"scores": dict(self.scores), "classes": list(self.classes)} if self.scores else {}
        return {
            "format": 1,
            "status": self.status,
            "study_instance_uid": self.study_instance_uid,
            "series_instance_uid": self.series_instance_uid,
            "modality": self.modality,
            "findings": [finding.to_json() for finding in self.findings],
            "labels": [asdict(label) for label in self.labels],
            **scored,
            "notices": [notice.to_json() for notice in self.notices],
            "grid": self.grid.to_json(),
            "timings_s": {name: round(seconds, 4) for name, seconds in self.timings_s.items()},
            "provenance": asdict(self.provenance),
        }


def tracking_uid(frame_of_reference: str, label: str, centroid_lps_mm: tuple[float, float, float]) -> str:
    """UID derived from frame of reference, label and place (2.25 form of DICOM PS3.5 B.2).

    The place is the centroid rounded to whole millimetres, so that the same lesion read twice in the same
    frame of reference has the same UID.
    """
    place = ",".join(str(math.floor(c + 0.5)) for c in centroid_lps_mm)
    digest = hashlib.sha256(f"wetread-lesion|{frame_of_reference}|{label}|{place}".encode()).digest()
    number = int.from_bytes(digest[:16], "big")
    number = number & ~(0xF << 76) | (0x5 << 76)  # version 5 and variant 1 of RFC 4122
    number = number & ~(0x3 << 62) | (0x2 << 62)
    return f"2.25.{number}"
