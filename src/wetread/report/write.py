"""All files for people at once."""

from __future__ import annotations

from pathlib import Path

from wetread.findings import Reading
from wetread.report.page import write_page
from wetread.report.preview import write_preview
from wetread.report.table import write_table
from wetread.volume import Volume


def write_report(reading: Reading, volume: Volume, folder: Path | str) -> tuple[Path, Path, Path]:
    """Writes ``findings.csv`` (or ``scores.csv``), ``report.html`` and ``preview.png`` into a folder.

    Args:
        reading: on the volume's grid.
        volume: intensities that were read; of several channels the first is shown.
        folder: is made where it does not exist.

    Returns:
        The three paths, in that order.

    Raises:
        OutputError: a file could not be written.
    """
    folder = Path(folder)
    paths = write_table(reading, folder), folder / "report.html", folder / "preview.png"
    write_page(reading, volume, paths[1])
    write_preview(reading, volume, paths[2])
    return paths
