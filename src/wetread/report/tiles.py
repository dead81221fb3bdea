"""Pictures of slices: windowed, scaled to millimetres, with outlines, letters and a scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from wetread.findings import Finding, LabelInfo, Reading
from wetread.report.planes import Plane
from wetread.volume import Volume

Color = tuple[int, int, int]
Window = tuple[float, float]
LUNG: Window = (-1350.0, 150.0)
SOFT_TISSUE: Window = (-160.0, 240.0)
INK: Color = (236, 240, 244)
FAINT: Color = (150, 160, 170)
_SCALES_MM = (2, 5, 10, 20, 50, 100)


@dataclass(frozen=True)
class View:
    """Which part of which slice is shown.

    Attributes:
        plane: how the slice is cut.
        index: of the slice along the plane's normal.
        centre: row and column, as displayed, in the middle of the picture.
        side_mm: width and height of the square picture.
        pixels: width and height of the picture.
    """

    plane: Plane
    index: int
    centre: tuple[float, float]
    side_mm: float
    pixels: int


def window_for(reading: Reading, voxels: NDArray[Any]) -> Window:
    """Grey levels that suit the modality and what lies around the findings.

    CT: the lung window where the middle of the values around the findings (or, without findings, a fair part
    of all voxels) is that of aerated lung, else the soft-tissue window, in HU. Others: from the 1st to the
    99.5th percentile of what is not background.
    """
    if reading.modality == "CT":
        return LUNG if _is_lung(reading, voxels) else SOFT_TISSUE
    sample = (
        voxels[tuple(slice(None, None, max(1, n // 96)) for n in voxels.shape)].ravel().astype(np.float64)
    )
    inside = sample[sample > sample.min()]
    if not inside.size:
        return float(sample.min()), float(sample.min()) + 1.0
    lower, upper = np.percentile(inside, (1.0, 99.5))
    return float(lower), float(max(upper, lower + 1e-6))


def _is_lung(reading: Reading, voxels: NDArray[Any]) -> bool:
    if not reading.findings:
        sample = voxels[tuple(slice(None, None, max(1, n // 64)) for n in voxels.shape)]
        return bool(((sample > -980) & (sample < -600)).mean() > 0.04)
    around = []
    for finding in reading.findings[:5]:
        box = tuple(
            slice(max(0, low - 8), min(n, high + 9))
            for (low, high), n in zip(finding.bounding_box, voxels.shape, strict=True)
        )
        around.append(voxels[box].ravel())
    return bool((np.concatenate(around) < -500).mean() > 0.3)


def grey(plane: NDArray[Any], window: Window) -> Image.Image:
    """8-bit picture of a slice."""
    lower, upper = window
    scaled = (plane.astype(np.float32) - np.float32(lower)) * np.float32(255.0 / (upper - lower))
    return Image.fromarray(np.clip(scaled, 0, 255).astype(np.uint8))


def tile(
    volume: Volume,
    reading: Reading,
    view: View,
    window: Window,
    *,
    emphasis: int = 0,
    frame: tuple[tuple[float, float], float] | None = None,
) -> Image.Image:
    """One square picture with outlines, orientation letters and a scale.

    Args:
        volume: intensities, three axes.
        reading: components or, without findings there, label mask, on the volume's grid.
        view: what is shown.
        window: grey levels, lower and upper.
        emphasis: number of the finding whose outline is drawn strongly; 0 for all.
        frame: centre (row, column) and side in mm of a square to be marked.
    """
    plane, size = view.plane, (view.pixels, view.pixels)
    canvas = Image.new("RGB", size)
    source, target = _boxes(view)
    picture = grey(plane.cut(volume.voxels, view.index), window)
    shown = (target[2] - target[0], target[3] - target[1])
    if min(shown) > 0:
        canvas.paste(picture.resize(shown, Image.Resampling.BICUBIC, box=source).convert("RGB"), target[:2])
        _outlines(canvas, reading, view, (source, target), emphasis)
    draw = ImageDraw.Draw(canvas)
    if frame is not None:
        _frame(draw, view, frame)
    _letters(draw, view)
    _scale(draw, view)
    return canvas


def _boxes(view: View) -> tuple[tuple[float, float, float, float], tuple[int, int, int, int]]:
    """The part of the slice that is seen (pixel edges: left, top, right, bottom) and where it is pasted."""
    source, target = [], []
    for axis in (1, 0):
        spacing, count, centre = view.plane.spacing_mm[axis], view.plane.shape[axis], view.centre[axis] + 0.5
        half = view.side_mm / 2 / spacing
        low, high = max(0.0, centre - half), min(float(count), centre + half)
        per_pixel = view.pixels / (2 * half)
        start = round((low - centre + half) * per_pixel)
        source.append((low, high))
        target.append((start, min(view.pixels, round((high - centre + half) * per_pixel))))
    (left, right), (top, bottom) = source
    (x0, x1), (y0, y1) = target
    return (left, top, right, bottom), (x0, y0, x1, y1)


def _outlines(
    canvas: Image.Image,
    reading: Reading,
    view: View,
    boxes: tuple[tuple[float, float, float, float], tuple[int, int, int, int]],
    emphasis: int,
) -> None:
    """Anti-aliased outlines of everything that is marked in the slice, the emphasised finding last.

    What has one colour is drawn at once: findings of one label do not touch.
    """
    colors = {info.index: info.color for info in reading.labels}
    marked: NDArray[Any] | None = reading.mask
    if reading.components is not None:
        marked = reading.components
        colors = {f.number: colors.get(f.label_index, INK) for f in reading.findings}
    if marked is None:
        return
    cut = view.plane.cut(marked, view.index)
    groups: dict[Color, list[int]] = {}
    for value in np.unique(cut[cut > 0]).tolist():
        if value != emphasis:
            groups.setdefault(colors.get(value, INK), []).append(value)
    for color, values in groups.items():
        inside = np.isin(cut, values)
        _stroke(canvas, inside, boxes, bright(color), (1.0, 0.6) if emphasis else (1.8, 1.0))
    if emphasis and (cut == emphasis).any():
        _stroke(canvas, cut == emphasis, boxes, bright(colors.get(emphasis, INK)), (1.8, 1.0))


def _stroke(
    canvas: Image.Image,
    inside: NDArray[np.bool_],
    boxes: tuple[tuple[float, float, float, float], tuple[int, int, int, int]],
    color: Color,
    pen: tuple[float, float],
) -> None:
    """Draws the level 0.5 of the interpolated mask with a pen of a width in picture pixels and an opacity.

    The distance to the line is (value − 0.5) / |gradient|, to first order.
    """
    width, opacity = pen
    source, target = boxes
    shown = (target[2] - target[0], target[3] - target[1])
    mask = Image.fromarray(inside.astype(np.float32))
    level = np.asarray(mask.resize(shown, Image.Resampling.BILINEAR, box=source))
    if min(level.shape) < 2:
        return
    down, right = np.gradient(level)
    slope = np.hypot(down, right)
    distance = np.abs(level - 0.5) / np.maximum(slope, 1e-6)
    alpha = np.clip(width / 2 + 0.5 - distance, 0, 1) * opacity
    halo = np.clip(width / 2 + 1.6 - distance, 0, 1) * 0.45 * opacity
    part = canvas.crop(target)
    part.paste((0, 0, 0), mask=Image.fromarray((halo * 255).astype(np.uint8)))
    part.paste(color, mask=Image.fromarray((alpha * 255).astype(np.uint8)))
    canvas.paste(part, target[:2])


def bright(color: Color) -> Color:
    """The colour, lightened where it would not stand out from dark tissue."""
    top = max(color)
    if top >= 200:
        return color
    factor = 200 / max(top, 1)
    return (
        min(255, int(color[0] * factor)),
        min(255, int(color[1] * factor)),
        min(255, int(color[2] * factor)),
    )


@cache
def font(size: float) -> Any:
    """Pillow's own typeface, so that no file of the system is needed."""
    return ImageFont.load_default(size)


def write_text(
    draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, *, size: float, color: Color, anchor: str
) -> None:
    """Text with a dark rim, readable on any tissue."""
    draw.text(at, text, fill=color, font=font(size), anchor=anchor, stroke_width=1, stroke_fill=(0, 0, 0))


def _letters(draw: ImageDraw.ImageDraw, view: View) -> None:
    n, size = view.pixels, max(11.0, view.pixels / 24)
    left, right, top, bottom = view.plane.letters
    for text, at, anchor in (
        (left, (6, n / 2), "lm"),
        (right, (n - 6, n / 2), "rm"),
        (top, (n / 2, 5), "mt"),
        (bottom, (n / 2, n - 5), "mb"),
    ):
        write_text(draw, at, text, size=size, color=FAINT, anchor=anchor)


def _scale(draw: ImageDraw.ImageDraw, view: View) -> None:
    length_mm = max((s for s in _SCALES_MM if s <= view.side_mm / 3.2), default=_SCALES_MM[0])
    length, n = length_mm / view.side_mm * view.pixels, view.pixels
    y, right = n - 10, n - 10
    draw.line([(right - length, y), (right, y)], fill=(0, 0, 0), width=4)
    draw.line([(right - length, y), (right, y)], fill=INK, width=2)
    write_text(draw, (right, y - 6), f"{length_mm} mm", size=max(10.0, n / 28), color=INK, anchor="rb")


def _frame(draw: ImageDraw.ImageDraw, view: View, frame: tuple[tuple[float, float], float]) -> None:
    (row, column), side_mm = frame
    scale = view.pixels / view.side_mm
    x = view.pixels / 2 + (column - view.centre[1]) * view.plane.spacing_mm[1] * scale
    y = view.pixels / 2 + (row - view.centre[0]) * view.plane.spacing_mm[0] * scale
    half = side_mm / 2 * scale
    draw.rectangle((x - half, y - half, x + half, y + half), outline=FAINT, width=1)


def whole_view(plane: Plane, index: int, pixels: int) -> View:
    """The whole slice."""
    middle = ((plane.shape[0] - 1) / 2, (plane.shape[1] - 1) / 2)
    return View(plane, index, middle, max(plane.extent_mm), pixels)


def close_view(volume: Volume, reading: Reading, finding: Finding, plane: Plane, pixels: int) -> View:
    """A finding from near: the slice in which it is largest, at least 80 mm wide, kept inside the volume."""
    low, high = finding.bounding_box[plane.axes[0]]
    index = (low + high) // 2
    if reading.components is not None:
        box = tuple(slice(a, b + 1) for a, b in finding.bounding_box)
        others = tuple(axis for axis in range(3) if axis != plane.axes[0])
        index = low + int(np.argmax((reading.components[box] == finding.number).sum(axis=others)))
    side = max(80.0, 2.6 * finding.diameter_3d_mm)
    middle = np.array([(a + b) / 2 for a, b in finding.bounding_box])
    row, column = plane.place(middle)
    centre = []
    for at, count, spacing in zip((row, column), plane.shape, plane.spacing_mm, strict=True):
        reach = min(side / 2 / spacing, count / 2)
        centre.append(float(np.clip(at, reach - 0.5, count - reach - 0.5)))
    return View(plane, index, (centre[0], centre[1]), side, pixels)


def color_of(labels: Sequence[LabelInfo], finding: Finding) -> Color:
    """Display colour of a finding's label."""
    return next((info.color for info in labels if info.index == finding.label_index), INK)
