"""Loading a CT series from its folder to an array in HU, against SimpleITK's series reader.

    python benchmarks/load_series.py [FOLDER] [--out docs/benchmarks] [--repeat 9]

Variants take turns in one process after a warm-up of each, so the files are in the page cache for both. Times
run from the folder's name to the array: wetread finds and groups the files, checks all positions and reads;
SimpleITK lists the series' files (GetGDCMSeriesFileNames) and reads them; its array is a view, not a copy. Arrays and
affines are compared before anything is timed. A third row times wetread with one thread.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import common
import numpy as np
import SimpleITK as sitk

from wetread.dicom import open_study

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("WETREAD_TEST_DATA", ROOT.parent / "shared" / "data"))
Loaded = tuple[np.ndarray, np.ndarray]


def by_wetread(folder: Path, threads: int | None = None) -> Loaded:
    with open_study(folder) as study:
        if len(study.series) != 1:
            raise SystemExit(f"{folder} holds {len(study.series)} series, expected 1")
        volume, _ = study.series[0].volume(threads=threads)
    return volume.voxels, volume.grid.affine


def by_simpleitk(folder: Path) -> Loaded:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = (np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing())[:, ::-1]
    affine[:3, 3] = image.GetOrigin()
    by_simpleitk.keep = image  # the view lives as long as the image
    return sitk.GetArrayViewFromImage(image), affine


def check(folder: Path) -> tuple[int, ...]:
    """Both readers give the same array at the same place."""
    ours, theirs = by_wetread(folder), by_simpleitk(folder)
    np.testing.assert_array_equal(ours[0], theirs[0])
    np.testing.assert_allclose(ours[1], theirs[1], atol=1e-6)
    return ours[0].shape


def measure(variants: dict[str, Callable[[], Loaded]], repeat: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(repeat + 1):
        for name, run in variants.items():
            start = time.perf_counter()
            run()
            if turn:
                times[name].append(time.perf_counter() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=DATA / "lidc-idri-0314" / "dicom")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks")
    parser.add_argument("--repeat", type=int, default=9)
    args = parser.parse_args()
    shape = check(args.folder)
    times = measure(
        {
            "wetread": lambda: by_wetread(args.folder),
            "SimpleITK series reader": lambda: by_simpleitk(args.folder),
            "wetread, one thread": lambda: by_wetread(args.folder, threads=1),
        },
        max(args.repeat, 3),
    )
    base = statistics.median(times["SimpleITK series reader"])
    rows = [
        {"reader": name, **common.summary(values), "of SimpleITK": f"{statistics.median(values) / base:.2f}"}
        for name, values in times.items()
    ]
    paired = statistics.median(
        a / b for a, b in zip(times["wetread"], times["SimpleITK series reader"], strict=True)
    )
    machine = common.machine("wetread", "SimpleITK", "pydicom", "numpy")
    name = args.folder.parent.name if args.folder.name == "dicom" else args.folder.name
    data = {
        "machine": machine,
        "series": name,
        "shape": list(shape),
        "rows": rows,
        "median_of_paired_ratios": round(paired, 3),
        "arrays_equal": True,
        "times_s": times,
    }
    text = (
        f"{name}, {shape[0]} slices of {shape[1]}×{shape[2]}, from folder to array in HU; "
        f"arrays and affines equal.\n\n{common.table(rows)}\n\n"
        f"Median of the ratios of neighbouring runs: {paired:.2f}.\n\n"
        f"{machine['processor']}, {machine['cores']} cores, {machine['versions']}, {machine['date']}."
    )
    common.write(args.out, "load_series", "Loading a CT series", data, text)
    print(text)


if __name__ == "__main__":
    main()
