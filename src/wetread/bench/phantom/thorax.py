"""The chest's large shapes: body, cavity, mediastinum, heart, diaphragm and the lungs between them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .fields import Array, Frame, ramp, smooth_noise, smooth_sheet, smoothstep


@dataclass(frozen=True)
class Build:
    """One person's measures, mm. ``scale`` is the body's width over a common adult's."""

    scale: float
    body: tuple[float, float]
    cavity: tuple[float, float]
    corner: float
    apex_z: float
    base_z: float
    dome_z: tuple[float, float]
    drop: float
    shift_x: float
    middle: float
    front: float
    enhanced: float
    hilum_z: float

    def cavity_width(self, z_mm: Array) -> Array:
        """Share of the cavity's full width and depth at heights ``z_mm``."""
        t = np.clip((z_mm - self.base_z) / (self.apex_z - self.base_z), -1, 1.2)
        closing = np.clip((t - 0.3) / 0.72, 0, 1) ** 2.6
        return np.sqrt(np.clip(1 - closing, 0.0, 1)) * (1 - 0.05 * np.clip(0.3 - t, 0, 1))


def draw_build(rng: np.random.Generator, frame: Frame) -> Build:
    """Draws a build that fits the frame."""
    height, depth, width = frame.extent_mm
    scale = width / 340
    body = 0.5 * width * rng.uniform(0.86, 0.99), 0.5 * depth * rng.uniform(0.84, 0.97)
    wall = rng.uniform(18, 38) * scale
    dome = height * rng.uniform(0.22, 0.36)
    return Build(
        scale=scale,
        body=body,
        cavity=(body[0] - wall, body[1] - wall * rng.uniform(0.7, 1.0)),
        corner=rng.uniform(2.05, 2.6),
        apex_z=height - rng.uniform(4, 26) * scale,
        base_z=dome - rng.uniform(30, 80) * scale,
        dome_z=(dome, dome - rng.uniform(-4, 22) * scale),
        drop=rng.uniform(45, 95) * scale,
        shift_x=rng.uniform(-5, 5) * scale,
        middle=rng.uniform(20, 30) * scale,
        front=rng.uniform(2, 14) * scale,
        enhanced=float(rng.choice([0.0, 0.0, rng.uniform(60, 260)])),
        hilum_z=dome + (height - dome) * rng.uniform(0.32, 0.45),
    )


@dataclass(frozen=True)
class Shapes:
    """Signed distances in mm, positive inside (approximate away from the surface), and the diaphragm's height."""

    body: Array
    cavity: Array
    lung: Array
    heart: Array
    diaphragm: Array


def _power(value: Array, corner: float) -> Array:
    return np.abs(value) ** corner


def _rounded(frame: Frame, half: tuple[Array, Array], centre_y: float, corner: float) -> Array:
    """Depth in mm below a rounded box whose half widths (x, y) vary with z."""
    xp = frame.xp
    _, y, x = frame.axes()
    hx = xp.asarray(np.maximum(half[0], 1e-3).astype(np.float32)).reshape(-1, 1, 1)
    hy = xp.asarray(np.maximum(half[1], 1e-3).astype(np.float32)).reshape(-1, 1, 1)
    total = xp.abs(x / hx) ** corner + xp.abs((y - np.float32(centre_y)) / hy) ** corner
    return (1 - total) * (xp.minimum(hx, hy) / np.float32(corner))


def _heart(rng: np.random.Generator, build: Build, frame: Frame) -> Array:
    """Signed distance to the heart: a tilted ellipsoid, left of the middle, on the diaphragm."""
    z, y, x = frame.axes()
    s = build.scale
    size = np.array([rng.uniform(40, 52), rng.uniform(36, 48), rng.uniform(48, 66)]) * s
    centre = (
        build.dome_z[1] + rng.uniform(18, 38) * s,
        -build.cavity[1] * rng.uniform(0.25, 0.42),
        rng.uniform(12, 28) * s,
    )
    tilt, turn = rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.7)
    dz, dy, dx = z - np.float32(centre[0]), y - np.float32(centre[1]), x - np.float32(centre[2])
    u = dx * np.float32(np.cos(tilt)) - dz * np.float32(np.sin(tilt))
    w = dx * np.float32(np.sin(tilt)) + dz * np.float32(np.cos(tilt))
    v = dy * np.float32(np.cos(turn)) + u * np.float32(np.sin(turn))
    u = u * np.float32(np.cos(turn)) - dy * np.float32(np.sin(turn))
    total = (u / np.float32(size[2])) ** 2 + (v / np.float32(size[1])) ** 2 + (w / np.float32(size[0])) ** 2
    return (1 - total) * np.float32(size.min() / 2)


def _diaphragm(rng: np.random.Generator, build: Build, frame: Frame) -> Array:
    """Height in mm (1, y, x) of the diaphragm: a dome on each side, scalloped."""
    xp = frame.xp
    _, y, x = frame.axes()
    rough = smooth_sheet(rng, frame, 34 * build.scale, (1, 2)) * np.float32(3.0 * build.scale)
    rough = rough + smooth_sheet(rng, frame, 14 * build.scale, (1, 2)) * np.float32(0.9)
    height = None
    for side, top in ((-1, build.dome_z[0]), (1, build.dome_z[1])):
        centre = side * build.cavity[0] * rng.uniform(0.42, 0.52)
        reach = build.cavity[0] * rng.uniform(0.5, 0.6)
        across = ((x - np.float32(centre)) / np.float32(reach)) ** 2
        back = ((y + np.float32(0.15 * build.cavity[1])) / np.float32(build.cavity[1] * 0.95)) ** 2
        dome = np.float32(top) - np.float32(build.drop) * (across * np.float32(0.8) + back) + rough
        here = xp.where(x * side >= 0, dome, np.float32(-1e4))
        height = here if height is None else xp.maximum(height, here)
    return height


def _mediastinum(rng: np.random.Generator, build: Build, frame: Frame, wobble: Array) -> Array:
    """Signed distance (positive inside) to the slab of tissue between the lungs."""
    xp, s = frame.xp, build.scale
    z, y, x = frame.axes()
    depth = np.float32(build.cavity[1])
    top = smoothstep(build.apex_z - 75 * s, build.apex_z - 25 * s, z, xp)
    middle = np.float32(build.middle) + top * np.float32(rng.uniform(4, 14) * s)
    front = np.float32(build.front) + top * np.float32(rng.uniform(6, 20) * s)
    behind = np.float32(rng.uniform(15, 21) * s)
    rise = smoothstep(-0.85, -0.25, y / depth, xp)
    fall = smoothstep(0.15, 0.6, y / depth, xp)
    half = front + (middle - front) * rise - (middle - behind) * fall
    line = np.float32(build.shift_x) + smooth_sheet(rng, frame, 60 * s, (0, 1)) * np.float32(3 * s)
    return half + wobble - xp.abs(x - line)


def draw_shapes(rng: np.random.Generator, build: Build, frame: Frame) -> Shapes:
    """Draws the large shapes."""
    xp, s = frame.xp, build.scale
    z, y, x = frame.axes()
    heights = np.arange(frame.shape[0]) * frame.spacing_mm[0]
    wide = build.cavity_width(heights)
    rough = smooth_noise(rng, frame, rng.uniform(22, 34) * s)
    waist = 1 + 0.03 * np.sin(heights / frame.extent_mm[0] * 3 + rng.uniform(0, 6))
    shoulder = np.where(wide < 0.75, 0.75 - wide, 0) * rng.uniform(-0.35, 0.1)
    half = build.body[0] * (waist + shoulder), build.body[1] * (waist + shoulder * 0.6)
    body = _rounded(frame, half, 0.0, build.corner)
    body += rough * np.float32(2.5 * s)
    centre_y = rng.uniform(-3, 5) * s
    cavity = _rounded(frame, (build.cavity[0] * wide, build.cavity[1] * wide), centre_y, build.corner)
    fine = smooth_noise(rng, frame, rng.uniform(6, 10))
    cavity -= rough * np.float32(1.6 * s)
    cavity += fine * np.float32(rng.uniform(0.2, 0.7))
    wobble = rough * np.float32(rng.uniform(2, 6) * s) + fine * np.float32(rng.uniform(0.6, 2.0))
    wobble += smooth_noise(rng, frame, rng.uniform(11, 16)) * np.float32(rng.uniform(0.8, 3.0))
    lung = xp.minimum(cavity, -_mediastinum(rng, build, frame, wobble))
    heart = _heart(rng, build, frame) + wobble * np.float32(0.5)
    lung = xp.minimum(lung, -heart)
    diaphragm = _diaphragm(rng, build, frame)
    lung = xp.minimum(lung, (z - diaphragm) * np.float32(0.75) + fine * np.float32(0.4))
    spine_y = build.cavity[1] * 0.86
    spine = np.float32(rng.uniform(19, 24) * s) - xp.sqrt(
        (x - np.float32(build.shift_x * 0.3)) ** 2 + (y - np.float32(spine_y)) ** 2 * np.float32(0.8)
    )
    lung = xp.minimum(lung, -(spine + fine * np.float32(0.6)))
    return Shapes(body, cavity, lung, heart, diaphragm)


def paint_body(rng: np.random.Generator, build: Build, shapes: Shapes, frame: Frame) -> Array:
    """HU of everything but lungs, bones and vessels: skin, fat, muscle, mediastinal fat, heart, organs, air."""
    xp, s = frame.xp, build.scale
    z, y, x = frame.axes()
    f32 = np.float32
    grain = smooth_noise(rng, frame, rng.uniform(7, 12))
    fat, muscle = f32(rng.uniform(-115, -85)), f32(rng.uniform(35, 65))
    hu = fat + grain * f32(7)
    wall = build.body[0] - build.cavity[0]
    meat = ramp(shapes.cavity + f32(wall * rng.uniform(0.35, 0.8)) + grain * f32(1.5), 2.0, xp)
    strand = ramp(grain - f32(rng.uniform(0.9, 1.6)), 0.5, xp)
    hu += (muscle - hu) * meat * (1 - strand * f32(0.8))
    inner = ramp(shapes.cavity - f32(2.5), 1.5, xp)
    mix = ramp(grain + f32(rng.uniform(-0.7, 0.9)), 1.2, xp)
    hu += (fat + (muscle - fat) * mix - hu) * inner
    hu += (f32(40 + build.enhanced * 0.7) + grain * f32(5) - hu) * ramp(shapes.heart - f32(3), 2.0, xp)
    under = ramp(shapes.diaphragm - z - f32(rng.uniform(2, 4)), 2.0, xp) * inner
    liver = ramp(f32(rng.uniform(10, 40) * s) - x, 6.0, xp)
    organ = f32(rng.uniform(40, 60)) + liver * f32(rng.uniform(0, 60)) + grain * f32(6)
    hu += (organ - hu) * under * ramp(grain + f32(1.4) + liver, 0.8, xp)
    if rng.random() < 0.6:
        ball = (z - f32(build.dome_z[1] - 26 * s)) ** 2 + (y + f32(rng.uniform(-10, 30) * s)) ** 2
        ball = ball + ((x - f32(build.cavity[0] * 0.45)) * f32(0.7)) ** 2
        gas = f32(rng.uniform(10, 24) * s) - xp.sqrt(ball) + grain * f32(rng.uniform(0.5, 4))
        hu += (f32(-990) - hu) * ramp(gas, 1.2, xp) * under
    skin = ramp(f32(2.0) - xp.abs(shapes.body - f32(1.0)), 1.0, xp)
    hu += (f32(20) - hu) * skin * f32(0.8)
    outside = ramp(-shapes.body, 1.0, xp)
    hu += (f32(-1000) - hu) * outside
    return _paint_table(rng, build, hu, frame)


def _paint_table(rng: np.random.Generator, build: Build, hu: Array, frame: Frame) -> Array:
    """Adds the table's shells behind the body."""
    xp = frame.xp
    _, y, x = frame.axes()
    curve = np.float32(build.body[1] + rng.uniform(2, 10)) - x * x * np.float32(rng.uniform(0, 4e-4))
    shell = ramp(np.float32(1.6) - xp.abs(y - curve), 1.0, xp)
    shell = shell * (hu < -900)
    return hu + shell * np.float32(rng.uniform(500, 950))
