"""Resampling a chest CT to 1 mm: wetread against SimpleITK, in one run.

    python benchmarks/resample.py [FOLDER] [--reps 9] [--out DIR]

FOLDER holds one DICOM series; without it a synthetic volume of 275×512×512 int16 at 0.781×0.781×1.0 mm is
used. Both resample the same int16 voxels to float32 on the same 1 mm lattice, linearly, with each library's
default number of threads. The variants alternate after a warm-up of each; the table gives medians, quartiles
and extremes. Values are compared at all samples between the source's voxel centres (outside, the two
extrapolate by different rules), to 0.005 HU: float32 sums of values up to 3000 HU.
Writes resample.json and resample.md into DIR and prints the table.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import numpy as np
import SimpleITK as sitk

from wetread.geometry import axis_maps, lattice_grid, resample
from wetread.volume import Grid

TOLERANCE_HU = 5e-3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", nargs="?", help="folder of one DICOM series; default: a synthetic volume")
    parser.add_argument("--reps", type=int, default=9, help="repetitions of each variant (at least 5)")
    parser.add_argument("--spacing", type=float, default=1.0, help="target spacing in mm")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for resample.json and resample.md")
    options = parser.parse_args()
    reps = max(5, options.reps)

    image, voxels, grid = load(options.folder)
    target = lattice_grid(grid, "SPL", (options.spacing,) * 3)
    variants: dict[str, Callable[[], Any]] = {
        "wetread": lambda: resample(voxels, grid, target),
        "SimpleITK": simpleitk(image, target),
    }
    worst = largest_difference(grid, target, variants)
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(reps + 1):  # the first round warms up
        for name in variants if number % 2 else reversed(variants):
            began = time.perf_counter()
            variants[name]()
            if number:
                times[name].append(time.perf_counter() - began)
    machine: dict[str, Any] = common.machine("wetread", "numpy", "SimpleITK")
    report = {
        "benchmark": "resample",
        "source": Path(options.folder).name if options.folder else "synthetic",
        "shape": list(grid.shape),
        "spacing_mm": list(grid.spacing_mm),
        "target_shape": list(target.shape),
        "target_spacing_mm": options.spacing,
        "repetitions": reps,
        "seconds": {name: summary(values) for name, values in times.items()},
        "ratio_of_medians": float(np.median(times["wetread"]) / np.median(times["SimpleITK"])),
        "largest_difference_hu": worst,
        "tolerance_hu": TOLERANCE_HU,
        "values_agree": worst <= TOLERANCE_HU,
        "machine": {**machine, "load_average": list(os.getloadavg())},
        "versions": {**machine["versions"], "python": machine["python"]},
    }
    text = markdown(report)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "resample.json").write_text(json.dumps(report, indent=1) + "\n")
    (options.out / "resample.md").write_text(text)
    print(text)
    return 0 if report["values_agree"] else 1


def load(folder: str | None) -> tuple[sitk.Image, np.ndarray, Grid]:
    """SimpleITK's image, its voxels as int16 [z, y, x], and their grid."""
    if folder:
        reader = sitk.ImageSeriesReader()
        series = sorted(reader.GetGDCMSeriesIDs(folder))
        if len(series) != 1:
            raise SystemExit(f"{folder} holds {len(series)} series, expected one")
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(folder, series[0]))
        image = sitk.Cast(reader.Execute(), sitk.sitkInt16)
    else:
        rng = np.random.default_rng(0)
        image = sitk.GetImageFromArray(rng.integers(-1000, 1500, (275, 512, 512), dtype=np.int16))
        image.SetSpacing((0.781, 0.781, 1.0))
        image.SetOrigin((-200.3, -180.7, -310.4))
    direction = np.array(image.GetDirection()).reshape(3, 3)
    affine = np.eye(4)
    affine[:3, :3] = (direction * image.GetSpacing())[:, ::-1]
    affine[:3, 3] = image.GetOrigin()
    voxels = sitk.GetArrayFromImage(image)
    return image, voxels, Grid(voxels.shape, affine)


def simpleitk(image: sitk.Image, target: Grid) -> Callable[[], sitk.Image]:
    job = sitk.ResampleImageFilter()
    job.SetInterpolator(sitk.sitkLinear)
    job.SetOutputPixelType(sitk.sitkFloat32)
    job.SetSize(target.shape[::-1])
    job.SetOutputSpacing(target.spacing_mm[::-1])
    job.SetOutputOrigin(target.origin_mm.tolist())
    job.SetOutputDirection(target.directions[:, ::-1].ravel().tolist())
    return lambda: job.Execute(image)


def largest_difference(source: Grid, target: Grid, variants: dict[str, Callable[[], Any]]) -> float:
    maps = axis_maps(source, target)
    assert maps is not None
    between = [np.flatnonzero((m.coordinates >= 0) & (m.coordinates <= m.source_count - 1)) for m in maps]
    box = tuple(slice(int(b[0]), int(b[-1]) + 1) for b in between)
    ours, theirs = variants["wetread"](), sitk.GetArrayFromImage(variants["SimpleITK"]())
    return float(np.abs(ours[box] - theirs[box]).max())


def summary(values: list[float]) -> dict[str, float]:
    low, median, high = np.percentile(values, [25, 50, 75])
    return {
        "median": float(median),
        "quartile_1": float(low),
        "quartile_3": float(high),
        "min": min(values),
        "max": max(values),
    }


def markdown(report: dict[str, Any]) -> str:
    shape = "×".join(map(str, report["shape"]))
    spacing = "×".join(f"{s:.3g}" for s in report["spacing_mm"])
    lines = [
        f"Resampling {shape} int16 ({spacing} mm, {report['source']}) to {report['target_spacing_mm']} mm "
        f"float32, linear, {report['repetitions']} repetitions",
        "",
        "| | median s | quartiles | min–max |",
        "|---|---|---|---|",
    ]
    for name, s in report["seconds"].items():
        lines.append(
            f"| {name} {report['versions'][name]} | {s['median']:.3f} | {s['quartile_1']:.3f}–{s['quartile_3']:.3f} "
            f"| {s['min']:.3f}–{s['max']:.3f} |"
        )
    lines += [
        "",
        f"wetread / SimpleITK: {report['ratio_of_medians']:.2f}. Largest difference "
        f"{report['largest_difference_hu']:.1e} HU (tolerance {report['tolerance_hu']} HU). "
        f"{report['machine']['processor']}, {report['machine']['cores']} cores, numpy "
        f"{report['versions']['numpy']}, Python {report['versions']['python']}.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
