"""The report as one page of HTML that needs nothing else: no scripts, no fonts, no links out."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from wetread.findings import Finding, Reading
from wetread.report.planes import Plane, planes_of
from wetread.report.preview import first_channel, headline, volume_text
from wetread.report.style import STYLE
from wetread.report.table import intensity_unit
from wetread.report.tiles import Window, close_view, color_of, tile, whole_view, window_for
from wetread.storage import write_bytes
from wetread.volume import Volume

_TILE = 360
_MOST_PICTURED = 20
_QUALITY = 84
_BANNER = "Research only. Not a medical device. Not for clinical use."
_PROVENANCE = (
    ("Package", "package"),
    ("Version", "package_version"),
    ("Package hash", "package_hash"),
    ("Engine", "engine"),
    ("Precision", "precision"),
    ("Device", "device"),
    ("Gate", "gate"),
    ("wetread", "wetread_version"),
    ("Created", "created"),
    ("Windows run", "windows_run"),
    ("Windows skipped", "windows_skipped"),
    ("Intended use", "intended_use"),
)


def write_page(reading: Reading, volume: Volume, path: Path | str) -> None:
    """Writes the report: findings with pictures in three planes, notices, provenance and timings.

    Args:
        reading: on the volume's grid.
        volume: intensities; of several channels the first is shown.
        path: of the file.

    Raises:
        OutputError: the file could not be written.
    """
    write_bytes(path, page(reading, volume).encode())


def page(reading: Reading, volume: Volume) -> str:
    """The text that `write_page` writes; everything that comes from outside is escaped."""
    volume = first_channel(volume)
    made = reading.provenance
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">",
        f"<title>{escape(headline(reading))} · wetread</title><style>{STYLE}</style></head><body>",
        f'<div class="banner" role="note">{_BANNER}</div><main>',
        f"<header><h1>{escape(headline(reading))}</h1>",
        f'<span class="soft">{escape(made.package)} {escape(made.package_version)} · '
        f"{escape(_state(reading))}</span></header>",
        _study(reading),
        _table(reading),
        _scores(reading),
        *_pictures(reading, volume),
        _notices(reading),
        '<div class="columns">',
        _provenance(reading),
        _timings(reading),
        "</div>",
        f"<footer>{escape(made.intended_use)} Lengths run from edge to edge of voxels; axes are measured in "
        "the source slices. Made by wetread.</footer></main></body></html>",
    ]
    return "\n".join(part for part in parts if part)


def _state(reading: Reading) -> str:
    return "final" if reading.status == "final" else f"{reading.status}: the scan was not complete"


def _study(reading: Reading) -> str:
    grid = reading.grid
    shape = " × ".join(str(n) for n in grid.shape)
    spacing = " × ".join(f"{s:.3g}" for s in grid.spacing_mm)
    rows = [
        ("Modality", reading.modality or "not stated"),
        ("Study", reading.study_instance_uid),
        ("Series", reading.series_instance_uid),
        ("Sources", ", ".join(reading.provenance.sources)),
        ("Grid", f"{shape} voxels of {spacing} mm, axes {grid.axis_codes}"),
    ]
    return f'<section class="card">{_definitions(rows)}</section>'


def _definitions(rows: Iterable[tuple[str, str]]) -> str:
    cells = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in rows if value)
    return f"<dl>{cells}</dl>"


def _table(reading: Reading) -> str:
    if not reading.findings:
        return ""
    unit = intensity_unit(reading)
    mean = f"Mean ± SD ({unit})" if unit else "Mean ± SD"
    head = (
        "Volume (ml)",
        "Long axis (mm)",
        "Short axis (mm)",
        "3D (mm)",
        mean,
        "Peak p",
        "Centre LPS (mm)",
        "Slices",
    )
    rows = "".join(_row(reading, finding) for finding in reading.findings)
    return (
        '<h2>Findings</h2><div class="card scroll"><table><thead><tr><th class="left">Finding</th>'
        + "".join(f"<th>{escape(name)}</th>" for name in head)
        + f"</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _scores(reading: Reading) -> str:
    """Probability of each label of a classification, as numbers and bars."""
    if not reading.scores:
        return ""
    rows = "".join(
        f'<tr><th class="left" scope="row">{escape(name)}</th>'
        f'<td><span class="bar" style="width:{100 * min(max(score, 0.0), 1.0):.1f}%"></span></td>'
        f"<td>{score:.3f}</td><td>{'decided for' if name in reading.classes else ''}</td></tr>"
        for name, score in reading.scores.items()
    )
    head = '<tr><th class="left">Label</th><th></th><th>Probability</th><th></th></tr>'
    table = f'<table class="times"><thead>{head}</thead><tbody>{rows}</tbody></table>'
    return f'<h2>Scores</h2><section class="card scroll">{table}</section>'


def _row(reading: Reading, finding: Finding) -> str:
    first, last = finding.slice_range
    cells = (
        f"{finding.volume_ml:.3f}",
        f"{finding.long_axis_mm:.1f}",
        f"{finding.short_axis_mm:.1f}",
        f"{finding.diameter_3d_mm:.1f}",
        f"{finding.mean:.0f} ± {finding.sd:.0f}" if np.isfinite(finding.mean) else "–",
        f"{finding.max_probability:.2f}" if np.isfinite(finding.max_probability) else "–",
        ", ".join(f"{c:.1f}" for c in finding.centroid_lps_mm).replace("-", "−"),
        f"{first + 1}–{last + 1}",
    )
    return (
        f'<tr><th class="left" scope="row">{_dot(reading, finding)} {finding.number} {escape(finding.label)}</th>'
        + "".join(f"<td>{cell.replace('-', '−')}</td>" for cell in cells)
        + "</tr>"
    )


def _dot(reading: Reading, finding: Finding) -> str:
    red, green, blue = (int(c) for c in color_of(reading.labels, finding))
    return f'<span class="dot" style="background:rgb({red},{green},{blue})"></span>'


def _pictures(reading: Reading, volume: Volume) -> Iterable[str]:
    planes, window = planes_of(volume.grid), window_for(reading, volume.voxels)
    if not reading.findings:
        figures = [
            _figure(
                tile(
                    volume, reading, whole_view(plane, volume.grid.shape[plane.axes[0]] // 2, _TILE), window
                ),
                f"{plane.name}, middle of the volume",
            )
            for plane in planes
        ]
        yield f'<section class="card"><div class="views three">{"".join(figures)}</div></section>'
        return
    yield "<h2>Key slices</h2>"
    for finding in reading.findings[:_MOST_PICTURED]:
        yield _card(reading, volume, finding, planes, window)
    left = len(reading.findings) - _MOST_PICTURED
    if left > 0:
        yield f'<p class="soft">{left} smaller findings are in the table only.</p>'


def _card(
    reading: Reading, volume: Volume, finding: Finding, planes: tuple[Plane, Plane, Plane], window: Window
) -> str:
    figures = []
    for plane in planes:
        view = close_view(volume, reading, finding, plane, _TILE)
        if plane.name == "axial":
            overview = whole_view(plane, view.index, _TILE)
            whole = tile(
                volume, reading, overview, window, emphasis=finding.number, frame=(view.centre, view.side_mm)
            )
            figures.append(_figure(whole, "axial, whole slice"))
        picture = tile(volume, reading, view, window, emphasis=finding.number)
        count = volume.grid.shape[plane.axes[0]]
        figures.append(_figure(picture, f"{plane.name}, {view.index + 1} of {count}"))
    return (
        f'<section class="card finding"><header><h3>{_dot(reading, finding)} {finding.number} '
        f'{escape(finding.label)}</h3><span class="soft">{finding.long_axis_mm:.1f} × '
        f"{finding.short_axis_mm:.1f} mm · {volume_text(finding.volume_ml)}</span></header>"
        f'<div class="views">{"".join(figures)}</div></section>'
    )


def _figure(picture: Image.Image, caption: str) -> str:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=_QUALITY, subsampling=0)
    data = base64.b64encode(stream.getvalue()).decode()
    text = escape(caption.capitalize())
    return (
        f'<figure><img width="{picture.width}" height="{picture.height}" alt="{text}" '
        f'src="data:image/jpeg;base64,{data}"><figcaption>{text}</figcaption></figure>'
    )


def _notices(reading: Reading) -> str:
    if not reading.notices:
        return ""
    items = "".join(
        f"<li><code>{escape(notice.code)}</code> {escape(notice.text)}"
        + (f' <span class="soft">{escape(notice.where)}</span>' if notice.where else "")
        + "</li>"
        for notice in reading.notices
    )
    return f'<h2>Notices</h2><section class="card"><ul class="notices">{items}</ul></section>'


def _provenance(reading: Reading) -> str:
    rows = [(name, str(getattr(reading.provenance, field))) for name, field in _PROVENANCE]
    return f'<div><h2>Provenance</h2><section class="card">{_definitions(rows)}</section></div>'


def _timings(reading: Reading) -> str:
    if not reading.timings_s:
        return ""
    longest = max(*reading.timings_s.values(), 1e-9)
    rows = "".join(
        f'<tr><td class="left">{escape(name)}</td><td><span class="bar" style="width:{100 * seconds / longest:.1f}%">'
        f"</span></td><td>{seconds:.2f} s</td></tr>"
        for name, seconds in reading.timings_s.items()
    )
    return f'<div><h2>Timings</h2><section class="card"><table class="times">{rows}</table></section></div>'
