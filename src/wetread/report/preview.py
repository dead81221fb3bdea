"""One overview picture of a reading."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from wetread.findings import Finding, Reading
from wetread.report.planes import planes_of
from wetread.report.tiles import (
    FAINT,
    INK,
    Color,
    bright,
    close_view,
    color_of,
    font,
    tile,
    whole_view,
    window_for,
    write_text,
)
from wetread.storage import write_bytes
from wetread.volume import Volume

_TILE, _GAP, _MARGIN, _HEAD, _CAPTION = 384, 10, 24, 84, 40
_BACK: Color = (13, 17, 22)
_LINE: Color = (44, 52, 61)
_MOST, _MOST_SCORES = 3, 4


def write_preview(reading: Reading, volume: Volume, path: Path | str) -> None:
    """Writes a PNG: up to three of the largest findings in three planes, or three middle planes without any.

    Args:
        reading: on the volume's grid.
        volume: intensities; of several channels the first is shown.
        path: of the file.

    Raises:
        OutputError: the file could not be written.
    """
    stream = io.BytesIO()
    preview_picture(reading, first_channel(volume)).save(stream, "PNG", compress_level=4)
    write_bytes(path, stream.getvalue())


def preview_picture(reading: Reading, volume: Volume) -> Image.Image:
    """The picture that `write_preview` writes."""
    findings = reading.findings[:_MOST]
    rows = max(1, len(findings))
    width = 2 * _MARGIN + 3 * _TILE + 2 * _GAP
    height = _HEAD + rows * (_TILE + _CAPTION + _GAP) + _MARGIN
    canvas = Image.new("RGB", (width, height), _BACK)
    draw = ImageDraw.Draw(canvas)
    _head(draw, reading, width)
    planes, window = planes_of(volume.grid), window_for(reading, volume.voxels)
    for row in range(rows):
        finding = findings[row] if findings else None
        top = _HEAD + row * (_TILE + _CAPTION + _GAP)
        _caption(draw, reading, finding, top, width)
        for column, plane in enumerate(planes):
            at = (_MARGIN + column * (_TILE + _GAP), top + _CAPTION)
            if finding is None:
                view = whole_view(plane, volume.grid.shape[plane.axes[0]] // 2, _TILE)
            else:
                view = close_view(volume, reading, finding, plane, _TILE)
            picture = tile(volume, reading, view, window, emphasis=finding.number if finding else 0)
            canvas.paste(picture, at)
            draw.rectangle((*at, at[0] + _TILE - 1, at[1] + _TILE - 1), outline=_LINE)
            label = (at[0] + 9, at[1] + 8)
            write_text(draw, label, plane.name.capitalize(), size=15, color=INK, anchor="lt")
    return canvas


def first_channel(volume: Volume) -> Volume:
    """The volume itself, or its first channel."""
    if volume.voxels.ndim == 3:
        return volume
    return Volume(np.asarray(volume.voxels[0]), volume.grid, volume.modality, volume.sources[:1])


def headline(reading: Reading) -> str:
    """How many findings, or which class, in words."""
    if reading.scores:
        named = ", ".join(f"{name} (p {reading.scores[name]:.2f})" for name in reading.classes)
        return named or f"None of {', '.join(reading.scores)}"
    count = len(reading.findings)
    names = sorted({finding.label for finding in reading.findings})
    if count:
        return f"{count} finding{'s' if count > 1 else ''}: {', '.join(names)}"
    looked_for = [info.name for info in reading.labels if info.lesion]
    return f"No {' or '.join(looked_for) or 'lesion'} found"


def sizes(finding: Finding) -> str:
    """Axes, volume and peak probability of a finding in one line."""
    text = f"{finding.long_axis_mm:.1f} × {finding.short_axis_mm:.1f} mm   {volume_text(finding.volume_ml)}"
    if np.isfinite(finding.max_probability):
        text += f"   p {finding.max_probability:.2f}"
    return text


def volume_text(volume_ml: float) -> str:
    """Millilitres with as many decimals as say something."""
    return f"{volume_ml:.1f} ml" if volume_ml >= 10 else f"{volume_ml:.2f} ml"


def _head(draw: ImageDraw.ImageDraw, reading: Reading, width: int) -> None:
    made = reading.provenance
    draw.text((_MARGIN, 20), headline(reading), fill=INK, font=font(26))
    state = "" if reading.status == "final" else "   provisional"
    draw.text((_MARGIN, 54), f"{made.package} {made.package_version}{state}", fill=FAINT, font=font(15))
    draw.text((width - _MARGIN, 26), "wetread", fill=INK, font=font(18), anchor="rt")
    draw.text(
        (width - _MARGIN, 54),
        "Research only. Not for clinical use.",
        fill=(240, 170, 70),
        font=font(15),
        anchor="rt",
    )


def _caption(
    draw: ImageDraw.ImageDraw, reading: Reading, finding: Finding | None, top: int, width: int
) -> None:
    middle = top + _CAPTION / 2 + 2
    if finding is None:
        draw.text((_MARGIN, middle), "Middle of the volume", fill=FAINT, font=font(15), anchor="lm")
        first = sorted(reading.scores.items(), key=lambda item: -item[1])[:_MOST_SCORES]
        text = "   ".join(f"{name} {score:.2f}" for name, score in first)
        draw.text((width - _MARGIN, middle), text, fill=FAINT, font=font(16), anchor="rm")
        return
    color = bright(color_of(reading.labels, finding))
    draw.rectangle((_MARGIN, middle - 9, _MARGIN + 4, middle + 9), fill=color)
    name = f"{finding.number}  {finding.label}"
    draw.text((_MARGIN + 14, middle), name, fill=INK, font=font(17), anchor="lm")
    text = sizes(finding).replace("×", "x")  # Pillow's typeface has no multiplication sign
    draw.text((width - _MARGIN, middle), text, fill=FAINT, font=font(16), anchor="rm")
