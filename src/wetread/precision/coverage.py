"""Whether calibration cases are like those that the gate judges by: scanners, kernels, slices, intensities."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wetread.errors import Notice
from wetread.precision.windows import TRUTH_FILE
from wetread.reading.flow import load_inputs
from wetread.reading.source import Loaded
from wetread.recipe import Recipe

THICKNESS_FACTOR = 1.25
"""Slices up to this much thinner or thicker than any that calibrated count as covered."""

INTENSITY_PART = 0.1
"""Part of the calibration cases' intensity range by which a case may exceed it."""

_VOXELS = 2_000_000


@dataclass(frozen=True)
class CaseFacts:
    """What is known of how one channel of a case was acquired.

    Attributes:
        case: path as it was given; channel: name in the recipe.
        manufacturer, model, kernel: as DICOM says them; empty where it does not, or for files.
        slice_mm: slice thickness; distance of slices where no thickness is told.
        low, high: 1st and 99.9th percentile of the intensities, in `unit`.
        unit: ``HU``; ``raw``; or ``sd``, distances from the mean in standard deviations of the voxels that are
            not 0, for recipes that scale each image by its own intensities.
    """

    case: str
    channel: str
    manufacturer: str
    model: str
    kernel: str
    slice_mm: float
    low: float
    high: float
    unit: str


@dataclass(frozen=True)
class CoverageReport:
    """Facts of both sets of cases, and what the gate's have that calibration lacks.

    Attributes:
        calibration, gate: a fact for each case and channel.
        warnings: one notice for each thing that is missing; their `where` names the gate's cases.
    """

    calibration: tuple[CaseFacts, ...]
    gate: tuple[CaseFacts, ...]
    warnings: tuple[Notice, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "calibration": [asdict(fact) for fact in self.calibration],
            "gate": [asdict(fact) for fact in self.gate],
            "warnings": [notice.to_json() for notice in self.warnings],
        }


def scan_facts(cases: Iterable[Path], recipe: Recipe) -> list[CaseFacts]:
    """Reads how each case was acquired; one case is in memory at a time.

    Args:
        cases: see `calibration_windows`.
        recipe: says which series are read.

    Raises:
        InputError: a case cannot be read.
    """
    facts = []
    own_scale = any(not step.local for step in recipe.steps)
    for case in cases:
        inputs = load_inputs(case, recipe, ignore=(TRUTH_FILE,))
        for channel, item in zip(recipe.channels, inputs.loaded, strict=True):
            facts.append(_facts(str(case), channel.name, item, own_scale))
    return facts


def _facts(case: str, channel: str, item: Loaded, own_scale: bool) -> CaseFacts:
    told = item.series.attributes if item.series is not None else {}
    thickness = told.get("slice_thickness_mm", "")
    try:
        slice_mm = float(thickness)
    except ValueError:
        slice_mm = max(item.volume.grid.spacing_mm)
    modality = item.volume.modality
    unit = "HU" if modality == "CT" else "sd" if own_scale else "raw"
    low, high = _intensities(item.volume.voxels, unit)
    return CaseFacts(
        case=case,
        channel=channel,
        manufacturer=told.get("manufacturer", ""),
        model=told.get("model", ""),
        kernel=told.get("kernel", ""),
        slice_mm=round(slice_mm, 4),
        low=low,
        high=high,
        unit=unit,
    )


def _intensities(voxels: NDArray[Any], unit: str) -> tuple[float, float]:
    """1st and 99.9th percentile of evenly chosen voxels."""
    step = max(1, voxels.size // _VOXELS)
    values = voxels.reshape(-1)[::step].astype(np.float64)
    if unit == "sd":
        inside = values[values != 0]
        if inside.size:
            spread = float(inside.std())
            values = (inside - inside.mean()) / (spread if spread > 0 else 1.0)
    low, high = np.percentile(values, [1.0, 99.9])
    return round(float(low), 4), round(float(high), 4)


def coverage(calibration: Sequence[CaseFacts], gate: Sequence[CaseFacts]) -> CoverageReport:
    """Compares calibration cases with the gate's, channel by channel.

    A scale that was found on other scanners, sharper or softer kernels, thinner or thicker slices or other
    intensities may clip what it never saw; the gate then fails for want of calibration, not of bits.
    """
    warnings: list[Notice] = []
    for channel in dict.fromkeys(fact.channel for fact in gate):
        seen = [fact for fact in calibration if fact.channel == channel]
        judged = [fact for fact in gate if fact.channel == channel]
        warnings += _missing(seen, judged, "COVERAGE_SCANNER", "scanner", _scanner)
        warnings += _missing(
            seen, judged, "COVERAGE_KERNEL", "convolution kernel", lambda f: _plain(f.kernel)
        )
        if seen:
            warnings += _thickness(seen, judged)
            warnings += _range(seen, judged)
    return CoverageReport(tuple(calibration), tuple(gate), tuple(warnings))


def _plain(text: str) -> str:
    return " ".join(text.upper().split())


def _scanner(fact: CaseFacts) -> str:
    return " ".join(filter(None, (_plain(fact.manufacturer), _plain(fact.model))))


def _missing(
    seen: Sequence[CaseFacts],
    judged: Sequence[CaseFacts],
    code: str,
    what: str,
    key: Callable[[CaseFacts], Hashable],
) -> list[Notice]:
    """A notice for each value that only the gate's cases have."""
    known = {key(fact) for fact in seen}
    new: dict[Hashable, list[CaseFacts]] = {}
    for fact in judged:
        if key(fact) and key(fact) not in known:
            new.setdefault(key(fact), []).append(fact)
    there = ", ".join(sorted(str(k) for k in known if k)) or "none that is told"
    return [
        Notice(code, f"no calibration case has the {what} {value}; they have: {there}", _cases(facts))
        for value, facts in new.items()
    ]


def _thickness(seen: Sequence[CaseFacts], judged: Sequence[CaseFacts]) -> list[Notice]:
    thin, thick = min(f.slice_mm for f in seen), max(f.slice_mm for f in seen)
    out = [
        fact
        for fact in judged
        if fact.slice_mm < thin / THICKNESS_FACTOR or fact.slice_mm > thick * THICKNESS_FACTOR
    ]
    if not out:
        return []
    found = ", ".join(f"{value:g}" for value in sorted({fact.slice_mm for fact in out}))
    text = f"slices of {found} mm; the calibration cases have {thin:g} to {thick:g} mm"
    return [Notice("COVERAGE_SLICES", text, _cases(out))]


def _range(seen: Sequence[CaseFacts], judged: Sequence[CaseFacts]) -> list[Notice]:
    same = [fact for fact in seen if fact.unit == judged[0].unit]
    if not same:
        text = f"intensities in {judged[0].unit}, the calibration cases' are in {seen[0].unit}"
        return [Notice("COVERAGE_INTENSITY", text, _cases(judged))]
    low, high = min(f.low for f in same), max(f.high for f in same)
    slack = INTENSITY_PART * (high - low)
    out = [fact for fact in judged if fact.low < low - slack or fact.high > high + slack]
    if not out:
        return []
    lowest, highest = min(f.low for f in out), max(f.high for f in out)
    text = (
        f"intensities from {lowest:g} to {highest:g} {out[0].unit}; "
        f"the calibration cases' reach from {low:g} to {high:g}"
    )
    return [Notice("COVERAGE_INTENSITY", text, _cases(out))]


def _cases(facts: Iterable[CaseFacts]) -> str:
    return ", ".join(dict.fromkeys(Path(fact.case).name for fact in facts))
