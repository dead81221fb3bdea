"""``wetread phantoms``: chest CT phantoms with known nodules, as cases for calibration and the gate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def phantoms(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of cases.")],
    scans: Annotated[int, typer.Option("--scans", min=1, help="How many.")] = 4,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Of the first; the next ones count on.")
    ] = 1_000_000,
    shape: Annotated[str, typer.Option("--shape", help="Voxels: slices, rows, columns.")] = "160x200x260",
    spacing: Annotated[str, typer.Option("--spacing", help="Millimetres, in the same order.")] = "1x1x1",
    nodules: Annotated[str, typer.Option("--nodules", help="Least and most of a scan.")] = "1x6",
) -> None:
    """Make chest CT phantoms: a DICOM series and truth.nii.gz for each. Same seed, same phantom."""
    from wetread.bench.cases import write_phantoms

    a, b, c = (int(x) for x in _numbers("--shape", shape, 3))
    x, y, z = _numbers("--spacing", spacing, 3)
    low, high = (int(n) for n in _numbers("--nodules", nodules, 2))
    for path in write_phantoms(out, range(seed, seed + scans), (a, b, c), (x, y, z), (low, high)):
        typer.echo(f"wrote {path}")


def _numbers(option: str, text: str, count: int) -> list[float]:
    try:
        numbers = [float(part) for part in text.lower().split("x")]
    except ValueError:
        numbers = []
    if len(numbers) != count or min(numbers) < 0:
        raise typer.BadParameter(f"{text!r} is not {count} numbers joined by x", param_hint=option)
    return numbers
