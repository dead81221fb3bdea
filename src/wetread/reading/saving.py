"""Writing a reading: all outputs into a folder that is whole or absent."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from wetread.errors import Notice, OutputError
from wetread.findings import Reading
from wetread.nifti import write_mask
from wetread.reading.flow import Progress
from wetread.reading.output import OutputFolder
from wetread.reading.source import Loaded
from wetread.storage import write_bytes

if TYPE_CHECKING:
    from wetread.dicom.authorship import Sources
    from wetread.dicom.seg import WrittenSeg

_CANNOT_REFER = (
    "SEG_BUILD",
    "SR_BUILD",
)  # the source lacks what the standard requires, such as a frame of reference
SegKind = Literal["binary", "labelmap"]


@dataclass(frozen=True)
class SaveOptions:
    """What to write.

    Attributes:
        seg: type of the DICOM segmentation: ``binary`` (every viewer) or ``labelmap`` (few yet).
        report: whether the HTML report and the preview are written, too.
    """

    seg: SegKind = "binary"
    report: bool = True

    def __post_init__(self) -> None:
        if self.seg not in ("binary", "labelmap"):
            raise OutputError(f"segmentation type is {self.seg!r}", todo="choose binary or labelmap")


DEFAULT_OPTIONS = SaveOptions()


def save(
    reading: Reading,
    out: OutputFolder | Path | str,
    *,
    options: SaveOptions = DEFAULT_OPTIONS,
    progress: Progress | None = None,
) -> dict[str, Path]:
    """Writes ``mask.nii.gz``, ``findings.csv``, ``report.html``, ``preview.png``, ``reading.json``, and for DICOM
    sources ``seg.dcm`` and ``sr.dcm``.

    A classification has ``scores.csv`` in place of ``findings.csv``, and neither mask nor segmentation.

    Args:
        reading: as `wetread.read` returned it.
        out: a folder that is absent or empty.
        options: what to write.
        progress: called with ("write", done, total).

    Returns:
        Path of each output by its file name; no ``seg.dcm`` where there is nothing to segment.

    Raises:
        OutputError: the folder is not empty, the disk is full, or an object did not read back as written.
            Nothing is left behind.
    """
    origin = reading.origin
    if not isinstance(origin, Loaded):
        raise OutputError(
            "the reading does not hold its source", todo="save what `wetread.read` returned", code="NO_SOURCE"
        )
    folder = out if isinstance(out, OutputFolder) else OutputFolder(out)
    started = time.perf_counter()
    with folder.staging() as stage, ThreadPoolExecutor(2) as pool:
        notices: list[Notice] = []
        jobs: list[Callable[[], object]] = []
        if origin.series is not None:
            jobs.append(lambda: notices.extend(_write_dicom(reading, origin, stage, options)))
        mask = reading.mask
        if mask is not None:
            jobs.append(lambda: write_mask(stage / "mask.nii.gz", mask, reading.grid))
        jobs.append(lambda: _write_report(reading, origin, stage, options.report))
        futures = [pool.submit(job) for job in jobs]
        for done, future in enumerate(futures, start=1):
            future.result()
            if progress is not None:
                progress("write", done, len(jobs))
        written = replace(
            reading,
            notices=(*reading.notices, *notices),
            timings_s=reading.timings_s | {"save": time.perf_counter() - started},
        )
        text = json.dumps(written.to_json(), indent=2, ensure_ascii=False) + "\n"
        write_bytes(stage / "reading.json", text.encode())
        names = sorted(path.name for path in stage.iterdir())
    return {name: folder.path / name for name in names}


def _write_dicom(reading: Reading, loaded: Loaded, stage: Path, options: SaveOptions) -> list[Notice]:
    """SEG (where there is a mask) and SR, for the source slices."""
    from wetread.dicom.authorship import Sources
    from wetread.dicom.sr import write_sr

    series = loaded.series
    assert series is not None
    instances = {dataset.SOPInstanceUID: dataset for dataset in series.datasets}
    sources = Sources([item.ref for item in series.source_slices], instances)
    seg, notices = _write_seg(reading, loaded, stage, options, sources)
    try:
        write_sr(stage / "sr.dcm", reading, sources, seg=seg)
    except OutputError as error:
        if error.code not in _CANNOT_REFER:
            raise
        text = f"no DICOM report was written: {error}; reading.json holds the findings"
        notices.append(Notice("SR_OMITTED", text, reading.series_instance_uid))
    return notices


def _write_seg(
    reading: Reading, loaded: Loaded, stage: Path, options: SaveOptions, sources: Sources
) -> tuple[WrittenSeg | None, list[Notice]]:
    """The mask on the source slices, which differ from its own grid where a series was straightened."""
    from wetread.dicom.seg import write_seg

    series = loaded.series
    if series is None or reading.mask is None:
        return None, []
    labels = series.to_source(reading.mask)
    components = None if reading.components is None else series.to_source(reading.components)
    reason = "no voxel was marked"
    try:
        seg = write_seg(
            stage / "seg.dcm",
            reading,
            sources,
            labels=labels,
            components=components,
            kind="BINARY" if options.seg == "binary" else "LABELMAP",
        )
    except OutputError as error:
        if error.code not in _CANNOT_REFER:
            raise
        seg, reason = None, str(error)
    if seg is not None:
        return seg, []
    text = f"no DICOM segmentation was written: {reason}; mask.nii.gz holds the mask"
    return None, [Notice("SEG_OMITTED", text, reading.series_instance_uid)]


def _write_report(reading: Reading, origin: Loaded, stage: Path, pictures: bool) -> None:
    from wetread.report import write_report, write_table

    if pictures:
        write_report(reading, origin.volume, stage)
    else:
        write_table(reading, stage)
