"""The findings, or the scores of a classification, as a table."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable
from pathlib import Path

from wetread.findings import Finding, Reading
from wetread.storage import write_bytes

_Cell = str | int | float
_COLUMNS: tuple[tuple[str, Callable[[Finding], _Cell]], ...] = (
    ("number", lambda f: f.number),
    ("label", lambda f: f.label),
    ("volume_ml", lambda f: f.volume_ml),
    ("long_axis_mm", lambda f: f.long_axis_mm),
    ("short_axis_mm", lambda f: f.short_axis_mm),
    ("diameter_3d_mm", lambda f: f.diameter_3d_mm),
    ("centroid_l_mm", lambda f: f.centroid_lps_mm[0]),
    ("centroid_p_mm", lambda f: f.centroid_lps_mm[1]),
    ("centroid_s_mm", lambda f: f.centroid_lps_mm[2]),
    ("first_slice", lambda f: f.slice_range[0]),
    ("last_slice", lambda f: f.slice_range[1]),
    ("first_slice_uid", lambda f: f.slice_uids[0]),
    ("last_slice_uid", lambda f: f.slice_uids[1]),
    ("mean_intensity", lambda f: f.mean),
    ("sd_intensity", lambda f: f.sd),
    ("max_probability", lambda f: f.max_probability),
    ("mean_probability", lambda f: f.mean_probability),
    ("voxels", lambda f: f.voxels),
    ("tracking_uid", lambda f: f.tracking_uid),
)
SCORES_HEADER = ("label", "probability", "decided")
CSV_HEADER = (*(name for name, _ in _COLUMNS), "intensity_unit")


def intensity_unit(reading: Reading) -> str:
    """Unit of the voxels: Hounsfield units for CT, else none."""
    return "HU" if reading.modality == "CT" else ""


def write_csv(reading: Reading, path: Path | str) -> None:
    """Writes one line for each finding, in UTF-8 (RFC 4180); without findings the header alone.

    Lengths are in mm, the centroid in LPS mm, intensities in the unit that the last column names, slices count
    from 0; an empty cell is a number that is not known.

    Raises:
        OutputError: the file could not be written.
    """
    unit = intensity_unit(reading)
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    writer.writerow(CSV_HEADER)
    for finding in reading.findings:
        writer.writerow([*(_cell(get(finding)) for _, get in _COLUMNS), unit])
    write_bytes(path, stream.getvalue().encode())


def write_scores(reading: Reading, path: Path | str) -> None:
    """Writes one line for each label of a classification: name, probability, whether the reading decides for it.

    Raises:
        OutputError: the file could not be written.
    """
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    writer.writerow(SCORES_HEADER)
    for name, score in reading.scores.items():
        writer.writerow([_cell(name), f"{score:.6g}", int(name in reading.classes)])
    write_bytes(path, stream.getvalue().encode())


def write_table(reading: Reading, folder: Path | str) -> Path:
    """Writes the table that suits the task, ``findings.csv`` or ``scores.csv``, and returns its path.

    Raises:
        OutputError: the file could not be written.
    """
    path = Path(folder) / ("scores.csv" if reading.scores else "findings.csv")
    (write_scores if reading.scores else write_csv)(reading, path)
    return path


def _cell(value: _Cell) -> _Cell:
    """Floats with six significant decimals; text that a spreadsheet would run as a formula is quoted."""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}" if abs(value) < 1e-3 else f"{value:.4f}"
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@"):
        return "'" + value
    return value
