"""Detection and overlap scores of nodule maps against a phantom's truth."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import ndimage

Array = np.ndarray
CLASSES: dict[str, Callable[[dict[str, Any]], bool]] = {
    "all": lambda n: True,
    "< 6 mm": lambda n: n["diameter_mm"] < 6,
    "6-10 mm": lambda n: 6 <= n["diameter_mm"] <= 10,
    "> 10 mm": lambda n: n["diameter_mm"] > 10,
    ">= 6 mm": lambda n: n["diameter_mm"] >= 6,
    "solid": lambda n: n["kind"] == "solid",
    "part-solid": lambda n: n["kind"] == "part-solid",
    "ground-glass": lambda n: n["kind"] == "ground-glass",
    "free": lambda n: n["attachment"] == "free",
    "at the pleura": lambda n: n["attachment"] == "pleura",
    "at a vessel": lambda n: n["attachment"] == "vessel",
}


@dataclass
class Candidate:
    """One connected finding. ``label`` is the nodule it hits (0: none), ``dice`` its overlap with that nodule."""

    volume_mm3: float
    score: float
    label: int
    dice: float
    centre: tuple[float, float, float]


def candidates(marks: Array, score: Array, phantom: Any, connectivity: int = 26) -> list[Candidate]:
    """Findings in a binary map. A finding hits the nodule with whose mask it shares most voxels, where its centroid
    is no farther from the nodule's than the nodule's radius (as LUNA16 has it) or their IoU is over 0.1.
    """
    truth = np.asarray(phantom.truth)
    spacing = np.array(phantom.spacing_mm)
    full = {6: 1, 18: 2, 26: 3}[connectivity]
    labels, _ = ndimage.label(marks, ndimage.generate_binary_structure(3, full))
    sizes = np.bincount(truth.ravel(), minlength=256)
    out = []
    for number, cut in enumerate(ndimage.find_objects(labels), 1):
        mine = labels[cut] == number
        count = int(mine.sum())
        shared = np.bincount(truth[cut][mine], minlength=256)
        shared[0] = 0
        best = int(shared.argmax()) if shared.any() else 0
        centre = np.argwhere(mine).mean(0) + [c.start for c in cut]
        dice = 0.0
        if best:
            nodule = phantom.nodules[best - 1]
            far = np.linalg.norm((centre - nodule.centre_voxel) * spacing)
            union = count + sizes[best] - shared[best]
            dice = 2 * shared[best] / (count + sizes[best])
            if far > nodule.diameter_mm / 2 and shared[best] / union <= 0.1:
                best, dice = 0, 0.0
        where = (float(centre[0]), float(centre[1]), float(centre[2]))
        out.append(
            Candidate(float(count * spacing.prod()), float(score[cut][mine].max()), best, float(dice), where)
        )
    return out


@dataclass
class Scan:
    """What was found in one scan and what is in it."""

    seed: int
    nodules: list[dict[str, Any]]
    found: list[Candidate]


def record(seed: int, phantom: Any, found: list[Candidate]) -> Scan:
    """What was found beside what is there."""
    return Scan(seed, [asdict(n) for n in phantom.nodules], found)


def summary(scans: Iterable[Scan], smallest_mm3: float = 0.0, least_score: float = 0.0) -> dict[str, Any]:
    """False positives a scan, and for each class of nodule: count, sensitivity, mean Dice of the found."""
    scans = list(scans)
    wrong, rows = 0, []
    for scan in scans:
        kept = [c for c in scan.found if c.volume_mm3 >= smallest_mm3 and c.score >= least_score]
        wrong += sum(c.label == 0 for c in kept)
        for nodule in scan.nodules:
            dice = max((c.dice for c in kept if c.label == nodule["label"]), default=0.0)
            rows.append((nodule, dice))
    classes = {}
    for name, belongs in CLASSES.items():
        dices = [d for n, d in rows if belongs(n)]
        hits = [d for d in dices if d > 0]
        classes[name] = {
            "nodules": len(dices),
            "sensitivity": len(hits) / len(dices) if dices else None,
            "dice": float(np.mean(hits)) if hits else None,
        }
    return {"scans": len(scans), "false_positives_per_scan": wrong / max(len(scans), 1), "classes": classes}


def at_one_false_positive(scans: list[Scan], smallest_mm3: float = 0.0) -> dict[str, Any]:
    """The summary at the lowest score threshold that leaves at most one false positive a scan."""
    scores = sorted(
        (c.score for s in scans for c in s.found if not c.label and c.volume_mm3 >= smallest_mm3),
        reverse=True,
    )
    limit = scores[len(scans)] + 1e-9 if len(scores) > len(scans) else 0.0
    return {**summary(scans, smallest_mm3, limit), "least_score": limit}


def table(results: dict[str, dict[str, Any]]) -> str:
    """A Markdown table of several summaries, one column pair each."""
    head = "| nodules | count |" + "".join(f" {n}: sensitivity | Dice of found |" for n in results)
    lines = [head, "|---|---|" + "---|---|" * len(results)]
    for name in CLASSES:
        first = next(iter(results.values()))["classes"][name]
        line = f"| {name} | {first['nodules']} |"
        for result in results.values():
            cell = result["classes"][name]
            for key in ("sensitivity", "dice"):
                line += f" {cell[key]:.3f} |" if cell[key] is not None else " - |"
        lines.append(line)
    line = "| false positives a scan | |"
    lines.append(line + "".join(f" {r['false_positives_per_scan']:.2f} | |" for r in results.values()))
    return "\n".join(lines)
