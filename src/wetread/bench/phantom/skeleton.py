"""Bones: ribs with their cartilage, spine, sternum, clavicles and shoulder blades."""

from __future__ import annotations

import numpy as np

from .fields import Array, Frame, ramp, smooth_noise, smoothstep
from .thorax import Build
from .tubes import Capsules, draw_distance


def _rib_points(build: Build, angle: Array, z_mm: Array, out_mm: float, side: int) -> Array:
    """Points (n, 3) mm around the cavity: angle 0 at the spine, pi at the sternum."""
    wide = np.maximum(build.cavity_width(z_mm), 0.22)
    sine, cosine = np.sin(angle), np.cos(angle)
    norm = (np.abs(sine) ** build.corner + np.abs(cosine) ** build.corner) ** (1 / build.corner)
    x = side * (build.cavity[0] * wide + out_mm) * sine / norm
    y = (build.cavity[1] * wide + out_mm) * cosine / norm
    return np.stack([z_mm, y, x], 1)


def ribs(rng: np.random.Generator, build: Build) -> tuple[Capsules, Capsules]:
    """Bony ribs and their cartilages."""
    s = build.scale
    gap = rng.uniform(20, 27) * s
    drop = rng.uniform(35, 75) * s
    bone, soft = [], []
    thick = rng.uniform(3.2, 4.6) * s
    for number in range(13):
        top = build.apex_z + rng.uniform(2, 8) * s - number * gap
        if top < -60 * s:
            continue
        for side in (-1, 1):
            turn = np.linspace(0.22, rng.uniform(0.68, 0.8) if number < 10 else 0.5, 30) * np.pi
            fall = drop * (0.35 + 0.65 * min(number / 4, 1))
            z = top - fall * smoothstep(0, np.pi, turn, np) + rng.normal(0, 1.0)
            off = thick + rng.uniform(-1.2, 2.6)
            points = _rib_points(build, turn, z, off, side)
            points += np.sin(turn * rng.uniform(2, 5) + rng.uniform(0, 6))[:, None] * rng.normal(0, 0.8, 3)
            radius = np.full(len(turn), thick * rng.uniform(0.9, 1.1))
            radius[-3:] *= rng.uniform(1.0, 1.45)
            bone.append(Capsules.chain(points, radius))
            if number < 8:
                on = np.linspace(turn[-1], 0.96 * np.pi, 10)
                rise = smoothstep(0, 1, np.linspace(0, 1, 10), np) * rng.uniform(-4, 8) * s * number / 3
                tail = _rib_points(build, on, z[-1] + rise, off + rng.uniform(-1, 1), side)
                tail[0] = points[-1]
                soft.append(Capsules.chain(tail, np.full(10, radius[0] * rng.uniform(1.0, 1.4))))
    return Capsules.joined(bone), Capsules.joined(soft)


def _girdle(rng: np.random.Generator, build: Build) -> Capsules:
    """Clavicles, shoulder blades, sternum and spinous processes, as thick lines."""
    s, (cx, cy), (bx, by) = build.scale, build.cavity, build.body
    lines: list[tuple[list[tuple[float, float, float]], float]] = []
    top = build.apex_z
    sternum = [(top - 40 * s - k * 28 * s, -cy * (0.8 + 0.05 * min(k, 3)) - 8 * s, 0.0) for k in range(5)]
    for shift in (-9, 0, 9):
        lines.append(([(z, y, shift * s + build.shift_x * 0.3) for z, y, _ in sternum], 5.5 * s))
    for side in (-1, 1):
        lines.append(
            ([(top - 32 * s, -cy * 0.72, side * 16 * s), (top - 8 * s, -cy * 0.45, side * cx * 0.9)], 5.5 * s)
        )
        back = rng.uniform(0.75, 0.95)
        for k in range(5):
            z = top - (30 + 22 * k) * s
            inner = (z, cy * back + 4 * s, side * cx * (0.62 + 0.02 * k))
            outer = (z, cy * back * 0.72, side * (cx + (bx - cx) * 0.55))
            lines.append(([inner, outer], rng.uniform(2.2, 4.0) * s))
    for k in range(14):
        z = top + 10 * s - k * 24 * s
        lines.append(([(z, cy * 0.98, 0.0), (z - 12 * s, min(cy * 0.98 + 30 * s, by - 8), 0.0)], 3.2 * s))
        for side in (-1, 1):
            lines.append(([(z, cy, side * 10 * s), (z + 2 * s, cy + 4 * s, side * 30 * s)], 4.0 * s))
    return Capsules.joined([Capsules.chain(np.array(p), np.full(len(p), r)) for p, r in lines])


def _spine(rng: np.random.Generator, build: Build, frame: Frame) -> Array:
    """Signed distance to the vertebral bodies, parted by discs, less the canal."""
    xp, s = frame.xp, build.scale
    z, y, x = frame.axes()
    pitch = rng.uniform(22, 26) * s
    phase = xp.abs(((z + np.float32(rng.uniform(0, 24))) % np.float32(pitch)) - np.float32(pitch / 2))
    around = xp.sqrt(
        ((x - np.float32(build.shift_x * 0.3)) * np.float32(0.92)) ** 2
        + (y - np.float32(build.cavity[1] * 0.86)) ** 2
    )
    radius = np.float32(rng.uniform(15, 18) * s) + smoothstep(7 * s, 11 * s, phase, xp) * np.float32(1.5 * s)
    body = xp.minimum(radius - around, np.float32(pitch / 2 - 2 * s) - phase)
    canal = xp.sqrt(x * x + (y - np.float32(build.cavity[1] * 0.86 + 23 * s)) ** 2)
    ring = np.float32(4.0 * s) - xp.abs(canal - np.float32(11 * s))
    return xp.maximum(body, xp.minimum(ring, np.float32(pitch / 2 - 5 * s) - phase))


def paint_bones(rng: np.random.Generator, build: Build, hu: Array, frame: Frame) -> tuple[Array, Array]:
    """Adds bones; gives HU, and the signed distance to ribs and cartilage (mm, positive inside, at least -4)."""
    xp, s, f32 = frame.xp, build.scale, np.float32
    bone, soft = ribs(rng, build)
    tall = rng.uniform(1.15, 1.5)
    cover = draw_distance(Capsules.joined([bone, soft]), frame, 4.0, tall)
    hard = draw_distance(bone, frame, 3.0, tall)
    gristle = draw_distance(soft, frame, 3.0, tall)
    hard = xp.maximum(hard, draw_distance(_girdle(rng, build).split(12.0), frame, 3.0))
    hard = xp.maximum(hard, _spine(rng, build, frame))
    speck = smooth_noise(rng, frame, rng.uniform(3, 5))
    mantle = ramp(cover + f32(rng.uniform(0.8, 2.2)), 1.0, xp)
    hu = hu + (f32(rng.uniform(10, 50)) - hu) * mantle * (hu < 30)
    cartilage = f32(rng.uniform(80, 130)) + xp.maximum(speck - f32(rng.uniform(0.8, 2.5)), 0) * f32(250)
    hu += (cartilage - hu) * ramp(gristle, 1.0, xp)
    marrow = f32(rng.uniform(90, 260)) + speck * f32(40)
    shell = f32(rng.uniform(450, 900))
    inside = marrow + (shell - marrow) * ramp(f32(rng.uniform(1.2, 2.2) * s) - hard, 1.0, xp)
    hu += (inside - hu) * ramp(hard, 1.0, xp)
    return hu, cover
