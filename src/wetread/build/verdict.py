"""The gate's verdict: limits, the scores of every case, figures, and the table in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from wetread.build.metrics import SIZE_CLASSES, Sensitivity, auc, mean
from wetread.engines.base import EngineInfo
from wetread.package import GateRecord
from wetread.package.manifest import Precision

_KEYS = {"< 6 mm": "under_6_mm", "6-10 mm": "6_to_10_mm", "> 10 mm": "over_10_mm"}


@dataclass(frozen=True)
class GateLimits:
    """What a candidate may lose against the float32 original.

    Attributes:
        max_dice_drop: mean over cases and labels of the Dice lost; against the truth where there is one, else
            one minus the Dice against the original's own mask.
        min_lesion_mm: a lesion of this long axis or more that the original finds must not be lost.
        max_top1_drop, max_auc_drop: for classifiers.
    """

    max_dice_drop: float = 0.005
    min_lesion_mm: float = 6.0
    max_top1_drop: float = 0.005
    max_auc_drop: float = 0.005


@dataclass(frozen=True)
class LabelScore:
    """Overlap of one label in one case.

    Attributes:
        label: its name.
        reference: Dice of the original against the truth; None where there is no truth.
        candidate: Dice of the candidate, against the truth or else against the original.
        empty: nobody marks a voxel: truth, original and candidate agree on nothing, which says little.
    """

    label: str
    reference: float | None
    candidate: float
    empty: bool = False

    @property
    def drop(self) -> float:
        """Dice that the candidate loses; negative where it gains."""
        return (1.0 if self.reference is None else self.reference) - self.candidate


@dataclass(frozen=True)
class LostLesion:
    """A lesion that the original finds and the candidate does not."""

    label: str
    long_axis_mm: float
    centroid_lps_mm: tuple[float, float, float]


@dataclass(frozen=True)
class Detection:
    """Lesions of one reader in one case: sensitivity by size class, and findings that are none."""

    by_size: dict[str, Sensitivity]
    false_positives: int


@dataclass(frozen=True)
class ClassScore:
    """Classes of one case.

    Attributes:
        truth: names of the true classes; those that the original decides for where there is no truth.
        reference, candidate: score of each label.
        reference_top, candidate_top: the most probable class decided for; empty for none.
    """

    truth: tuple[str, ...]
    reference: dict[str, float]
    candidate: dict[str, float]
    reference_top: str
    candidate_top: str

    def right(self, top: str) -> bool:
        """Whether a top class is a true one; none at all is right where no class is true."""
        return top in self.truth if top else not self.truth


@dataclass(frozen=True)
class CaseScore:
    """Everything that was measured on one case.

    Attributes:
        name: of the case.
        truth: whether there was a truth to compare with.
        labels: overlap.
        agreement: share of voxels with the same label in both masks.
        reference, candidate: detection, where lesions are the task.
        lost: lesions of any size that the original finds and the candidate does not.
        classes: where classes are the task.
        failure: why the candidate gave no reading; empty where it gave one.
    """

    name: str
    truth: bool
    labels: tuple[LabelScore, ...] = ()
    agreement: float | None = None
    reference: Detection | None = None
    candidate: Detection | None = None
    lost: tuple[LostLesion, ...] = ()
    classes: ClassScore | None = None
    failure: str = ""

    def hopeless(self, limits: GateLimits) -> bool:
        """Whether this case alone fails the gate: no reading, or a lesion lost that must not be."""
        return bool(self.failure) or any(lesion.long_axis_mm >= limits.min_lesion_mm for lesion in self.lost)


@dataclass(frozen=True)
class GateResult:
    """One run of the gate.

    Attributes:
        package: hash of the package that was judged.
        engine: backend, precision, device and version that it was judged on.
        limits: what it was judged by.
        cases: scores in the order of the cases.
        notes: what else is to be known, such as that not every case was read.
    """

    package: str
    engine: EngineInfo
    limits: GateLimits
    cases: tuple[CaseScore, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def passed(self) -> bool:
        """Whether every limit was kept on at least one case."""
        return not self.failures

    @cached_property
    def failures(self) -> tuple[str, ...]:
        """Limits that were not kept, in words, the cases named."""
        figures, limits = self.figures, self.limits
        found = [f"{c.name}: no reading: {c.failure}" for c in self.cases if c.failure]
        if not self.cases:
            found.append("no case was read")
        for key, limit, name in (
            ("mean_dice_drop", limits.max_dice_drop, "mean Dice drop"),
            ("top1_drop", limits.max_top1_drop, "drop of top-1 accuracy"),
            ("auc_drop", limits.max_auc_drop, "drop of the AUC"),
        ):
            if figures.get(key, 0.0) > limit:
                found.append(f"the {name} is {figures[key]:.4f}, allowed {limit:g}")
        for case in self.cases:
            for lesion in case.lost:
                if lesion.long_axis_mm >= limits.min_lesion_mm:
                    at = ", ".join(f"{x:.0f}" for x in lesion.centroid_lps_mm)
                    found.append(
                        f"{case.name}: a {lesion.label} of {lesion.long_axis_mm:.1f} mm at ({at}) mm LPS is lost"
                    )
        return tuple(found)

    @cached_property
    def figures(self) -> dict[str, float]:
        """What was measured over all cases, by name; what the task does not have is left out."""
        return {
            "cases": float(len(self.cases)),
            **_overlap(self.cases),
            **_detection(self.cases, self.limits.min_lesion_mm),
            **_classification(self.cases),
        }

    def record(self) -> GateRecord:
        """The summary for the package's ``gate.json``."""
        precision: Precision = self.engine.precision  # type: ignore[assignment]  # checked by the record
        note = "; ".join((*self.failures, *self.notes))
        kept = {name: round(value, 6) for name, value in self.figures.items() if name != "cases"}
        return GateRecord(
            backend=self.engine.backend,
            precision=precision,
            status="passed" if self.passed else "failed",
            cases=len(self.cases),
            figures=kept,
            device=self.engine.device,
            note=note,
        )

    def to_json(self) -> dict[str, Any]:
        """The whole table as plain data."""
        return {
            "package": self.package,
            "engine": asdict(self.engine),
            "passed": self.passed,
            "failures": list(self.failures),
            "notes": list(self.notes),
            "limits": asdict(self.limits),
            "figures": {name: round(value, 6) for name, value in self.figures.items()},
            "cases": [_case_json(case) for case in self.cases],
        }

    def rows(self) -> list[tuple[str, str, str, str]]:
        """The summary's table: figure, original, candidate, limit."""
        f, rows = self.figures, []

        def add(name: str, key: str, limit: str = "") -> None:
            if key in f:
                before = f.get(f"reference_{key}")
                rows.append((name, "" if before is None else _text(before), _text(f[key]), limit))

        add("mean Dice", "mean_dice")
        add("mean Dice drop", "mean_dice_drop", f"≤ {self.limits.max_dice_drop:g}")
        add("voxels that agree", "agreement")
        for size in SIZE_CLASSES:
            add(f"sensitivity {size}", f"sensitivity_{_KEYS[size]}")
        add("false positives a scan", "false_positives_per_scan")
        add(f"lesions ≥ {self.limits.min_lesion_mm:g} mm lost", "lesions_lost", "0")
        add("top-1 accuracy", "top1", f"drop ≤ {self.limits.max_top1_drop:g}")
        add("AUC", "auc", f"drop ≤ {self.limits.max_auc_drop:g}")
        return rows

    def headline(self) -> str:
        """One sentence: what was judged, on how many cases, with which verdict."""
        with_truth = sum(case.truth for case in self.cases)
        truth = f"{with_truth} with a truth, " if with_truth else "compared with float32 alone, "
        return (
            f"{self.engine.backend} in {self.engine.precision}: {'passed' if self.passed else 'FAILED'} on "
            f"{len(self.cases)} held-out case{'s' if len(self.cases) != 1 else ''} "
            f"({truth}none of which calibrated it)"
        )

    def markdown(self) -> str:
        """The table as Markdown."""
        lines = [self.headline(), "", "| figure | float32 | candidate | limit |", "|---|---|---|---|"]
        lines += [f"| {' | '.join(row)} |" for row in self.rows()]
        labels = [label.label for label in self.cases[0].labels] if self.cases else []
        if labels:
            lines += [
                "",
                f"| case | {' | '.join(f'Dice {name}' for name in labels)} | agree | lost | failed |",
            ]
            lines.append("|---|" + "---|" * (len(labels) + 3))
            for case in self.cases:
                cells = [_pair(score) for score in case.labels] or [""] * len(labels)
                agree = "" if case.agreement is None else _text(case.agreement)
                cells += [agree, str(len(case.lost)), case.failure]
                lines.append(f"| {case.name} | {' | '.join(cells)} |")
        lines += [f"\n{text}" for text in (*self.failures, *self.notes)]
        return "\n".join(lines) + "\n"


def _text(value: float) -> str:
    return f"{value:.0f}" if value == int(value) and value > 1 else f"{value:.4f}"


def _pair(score: LabelScore) -> str:
    before = "" if score.reference is None else f"{score.reference:.4f} → "
    return before + f"{score.candidate:.4f}" + (" (empty)" if score.empty else "")


def _overlap(cases: Sequence[CaseScore]) -> dict[str, float]:
    """Dice and agreement; labels that nobody marks in a case would only dilute the mean and are left out."""
    scores = [score for case in cases for score in case.labels if not score.empty]
    if not any(case.labels for case in cases):
        return {}
    before = mean([s.reference for s in scores if s.reference is not None])
    figures = {
        "mean_dice": mean([s.candidate for s in scores]),
        "mean_dice_drop": mean([s.drop for s in scores]) if scores else 0.0,
        "worst_dice_drop": max((s.drop for s in scores), default=0.0),
        "agreement": mean([c.agreement for c in cases if c.agreement is not None]),
        "reference_mean_dice": before,
    }
    return {name: value for name, value in figures.items() if value is not None}


def _detection(cases: Sequence[CaseScore], smallest_mm: float) -> dict[str, float]:
    scored = [case for case in cases if case.reference is not None and case.candidate is not None]
    if not scored:
        return {}
    figures: dict[str, float] = {}
    for prefix, who in (("reference_", [c.reference for c in scored]), ("", [c.candidate for c in scored])):
        detections = [d for d in who if d is not None]
        for size in SIZE_CLASSES:
            value = _total(d.by_size[size] for d in detections).value
            if value is not None:
                figures[f"{prefix}sensitivity_{_KEYS[size]}"] = value
        figures[f"{prefix}false_positives_per_scan"] = sum(d.false_positives for d in detections) / len(
            scored
        )
    figures["lesions_lost"] = float(
        sum(lesion.long_axis_mm >= smallest_mm for c in scored for lesion in c.lost)
    )
    return figures


def _total(parts: Iterable[Sensitivity]) -> Sensitivity:
    total = Sensitivity()
    for part in parts:
        total += part
    return total


def _classification(cases: Sequence[CaseScore]) -> dict[str, float]:
    scored = [case.classes for case in cases if case.classes is not None]
    if not scored:
        return {}
    figures: dict[str, float] = {}
    tops = {
        "reference_top1": [c.right(c.reference_top) for c in scored],
        "top1": [c.right(c.candidate_top) for c in scored],
    }
    figures |= {name: sum(right) / len(scored) for name, right in tops.items()}
    figures["top1_drop"] = figures["reference_top1"] - figures["top1"]
    areas: dict[str, list[float]] = {"reference_auc": [], "auc": []}
    for label in scored[0].candidate:
        true = [label in c.truth for c in scored]
        for name, scores in (
            ("reference_auc", [c.reference[label] for c in scored]),
            ("auc", [c.candidate[label] for c in scored]),
        ):
            area = auc(scores, true)
            if area is not None:
                areas[name].append(area)
    for name, values in areas.items():
        area = mean(values)
        if area is not None:
            figures[name] = area
    if "auc" in figures:
        figures["auc_drop"] = figures["reference_auc"] - figures["auc"]
    return figures


def _case_json(case: CaseScore) -> dict[str, Any]:
    data: dict[str, Any] = {"name": case.name, "truth": case.truth}
    if case.failure:
        return data | {"failure": case.failure}
    if case.labels:
        data["labels"] = [asdict(score) | {"drop": score.drop} for score in case.labels]
        data["agreement"] = case.agreement
    for name, found in (("reference", case.reference), ("candidate", case.candidate)):
        if found is not None:
            data[name] = asdict(found)
    if case.reference is not None:
        data["lost"] = [asdict(lesion) for lesion in case.lost]
    if case.classes is not None:
        data["classes"] = asdict(case.classes)
    return data
