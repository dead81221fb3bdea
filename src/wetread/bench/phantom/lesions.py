"""Nodules: solid, part-solid, ground-glass; round, oval, lobulated, spiculated; free or attached."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .fields import Array, Frame, ramp, smooth_noise, to_host
from .mimics import Scene
from .tubes import Capsules


@dataclass(frozen=True)
class Nodule:
    """One nodule as drawn. ``label`` is its value in the truth mask; ``centre_mm`` and ``centre_voxel`` are the
    mask's centroid, (z, y, x); ``diameter_mm`` is that of the ball with the mask's volume.
    """

    label: int
    centre_mm: tuple[float, float, float]
    centre_voxel: tuple[float, float, float]
    diameter_mm: float
    volume_mm3: float
    kind: str
    attachment: str
    margin: str


@dataclass(frozen=True)
class Plan:
    """A nodule to be drawn: middle (z, y, x) mm and radius mm."""

    centre: Array
    radius: float
    kind: str
    attachment: str
    margin: str


def _directions(rng: np.random.Generator, count: int) -> Array:
    way = rng.standard_normal((count, 3))
    return (way / np.linalg.norm(way, axis=1, keepdims=True)).astype(np.float32)


def place(
    rng: np.random.Generator, scene: Scene, vessels: Capsules, count: int, sizes_mm: Array
) -> list[Plan]:
    """Places up to ``count`` nodules, diameters log-uniform between ``sizes_mm``, apart from one another."""
    plans: list[Plan] = []
    thick = vessels.pick(np.flatnonzero(vessels.r_start > 0.8))
    for _ in range(count * 6):
        if len(plans) >= count:
            break
        kind = str(rng.choice(["solid", "part-solid", "ground-glass"], p=[0.66, 0.17, 0.17]))
        low = max(sizes_mm[0], 4.0 if kind == "solid" else 6.0)
        radius = 0.5 * float(np.exp(rng.uniform(np.log(low), np.log(max(sizes_mm[1], low + 0.1)))))
        attachment = str(rng.choice(["free", "pleura", "vessel"], p=[0.34, 0.30, 0.36]))
        if attachment == "free":
            points = scene.sample(rng, radius * 1.15 + 1.5, 90.0, 40)
        elif attachment == "pleura":
            points = scene.sample(rng, radius * 0.35, radius * 0.95, 40)
        else:
            at = thick.start[rng.integers(len(thick), size=40)]
            points = at + _directions(rng, 40) * (radius * rng.uniform(0.3, 1.15))
            points = points[scene.frame.look_up(scene.lung, points) > radius * 0.8]
        apart = [
            p for p in points if all(np.linalg.norm(p - q.centre) > radius + q.radius + 4 for q in plans)
        ]
        if not apart:
            continue
        margin = str(rng.choice(["smooth", "lobulated", "spiculated"], p=[0.4, 0.4, 0.2]))
        margin = "smooth" if radius < 3 and margin == "spiculated" else margin
        plans.append(Plan(apart[0], radius, kind, attachment, margin))
    return plans


def _surface(
    rng: np.random.Generator, plan: Plan, offsets: list[Array], scene: Scene
) -> tuple[Array, Array, Array]:
    """Distance in mm inside the nodule's surface, distance from its middle, and the direction's three parts."""
    xp = scene.frame.xp
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    spread = 0.16 if plan.margin == "smooth" else 0.22
    axes = np.exp(rng.normal(0, spread, 3))
    axes /= np.prod(axes) ** (1 / 3)
    dz, dy, dx = offsets
    local = [(dz * np.float32(t[0]) + dy * np.float32(t[1]) + dx * np.float32(t[2])) for t in turn]
    scaled = xp.sqrt(
        sum((c * np.float32(1 / a)) ** 2 for c, a in zip(local, axes, strict=True))
    ) + np.float32(1e-3)
    far = xp.sqrt(dz * dz + dy * dy + dx * dx) + np.float32(1e-3)
    way = xp.stack(xp.broadcast_arrays(dz / far, dy / far, dx / far))
    swell = xp.zeros_like(far)
    size = {"smooth": 0.05, "lobulated": 0.24, "spiculated": 0.13}[plan.margin]
    for direction in _directions(rng, 4 if plan.margin == "smooth" else 9):
        dot = xp.tensordot(xp.asarray(direction), way, axes=(0, 0))
        swell += np.float32(rng.normal(0, size)) * xp.exp((dot - 1) * np.float32(rng.uniform(2.5, 9)))
    edge = np.float32(plan.radius) * xp.clip(1 + swell, 0.55, 1.6)
    return (edge - scaled) * xp.clip(far / scaled, 0.6, 1.5), far, way


def _spicules(rng: np.random.Generator, plan: Plan, far: Array, way: Array, scene: Scene) -> Array:
    """Share of each voxel in thin rays that leave the surface."""
    xp = scene.frame.xp
    share = xp.zeros_like(far)
    for direction in _directions(rng, int(rng.integers(8, 22))):
        reach = np.float32(plan.radius * rng.uniform(0.35, 1.0))
        dot = xp.tensordot(xp.asarray(direction), way, axes=(0, 0))
        aside = far * xp.sqrt(xp.clip(1 - dot * dot, 0, 1))
        run = xp.clip((far - np.float32(plan.radius * 0.8)) / reach, 0, 1)
        thin = np.float32(rng.uniform(0.5, 1.1)) * (1 - run)
        share = xp.maximum(
            share, ramp(thin - aside, 1.0, xp) * xp.minimum(thin * 1.4, 1) * (dot > 0) * (run < 1)
        )
    return share


def _inside(
    rng: np.random.Generator, plan: Plan, depth: Array, way: Array, far: Array, small: Frame
) -> Array:
    """HU within the nodule."""
    xp, f32 = small.xp, np.float32
    grain = smooth_noise(rng, small, rng.uniform(2.5, 5))
    if plan.kind == "ground-glass":
        return f32(rng.uniform(-560, -300)) + grain * f32(rng.uniform(10, 50))
    base = f32(rng.uniform(-50, 100)) + grain * f32(rng.uniform(3, 18))
    if plan.kind == "part-solid":
        shift = xp.tensordot(xp.asarray(_directions(rng, 1)[0]), way, axes=(0, 0)) * f32(rng.uniform(0, 0.4))
        core = (
            depth - f32(plan.radius * rng.uniform(0.3, 0.65)) + shift * far + grain * f32(0.12 * plan.radius)
        )
        glass = f32(rng.uniform(-580, -350)) + grain * f32(30)
        return glass + (base - glass) * ramp(core, 1.5, xp)
    luck = rng.random()
    if luck < 0.07:
        base = base + f32(rng.uniform(200, 800)) * ramp(
            depth - f32(plan.radius * rng.uniform(0, 0.6)), 1.5, xp
        )
    elif luck < 0.12:
        base = base + f32(rng.uniform(150, 600)) * ramp(grain - f32(rng.uniform(0.3, 1.2)), 0.6, xp)
    elif luck < 0.16 and plan.radius > 5:
        hole = depth - f32(plan.radius * rng.uniform(0.5, 0.75)) + grain * f32(0.8)
        base = base + (f32(-900) - base) * ramp(hole, 1.5, xp)
    return base


def paint(rng: np.random.Generator, scene: Scene, plan: Plan, truth: Array, label: int) -> Nodule | None:
    """Draws one nodule into HU and truth; None (and nothing drawn) where under 3.5 mm of it lie in the lung."""
    found = scene.box(plan.centre, 2.2 * plan.radius + 3)
    if found is None:
        return None
    cut, offsets = found
    frame, xp = scene.frame, scene.frame.xp
    depth, far, way = _surface(rng, plan, offsets, scene)
    small = Frame((depth.shape[0], depth.shape[1], depth.shape[2]), frame.spacing_mm, xp)
    lung = scene.lung[cut]
    mask = (depth > 0) & (lung > -0.25) & (truth[cut] == 0)
    voxels = to_host(xp.stack(xp.nonzero(mask), 1))
    volume = float(len(voxels) * np.prod(frame.spacing_mm))
    diameter = (6 * volume / np.pi) ** (1 / 3)
    if diameter < 3.5:
        return None
    soft = {
        "solid": rng.uniform(1.0, 1.6),
        "part-solid": rng.uniform(1.2, 2.5),
        "ground-glass": rng.uniform(1.5, 3),
    }
    share = ramp(depth, soft[plan.kind], xp)
    value = _inside(rng, plan, depth, way, far, small)
    if plan.margin == "spiculated":
        share = xp.maximum(share, _spicules(rng, plan, far, way, scene) * np.float32(0.8))
    share *= ramp(lung + np.float32(0.6), 1.0, xp)
    part = scene.hu[cut]
    mixed = part + (value - part) * share
    if plan.kind in {"ground-glass", "part-solid"}:
        mixed = xp.maximum(part, mixed)
    scene.hu[cut] = xp.where(part > 250, part, mixed)
    truth[cut] = xp.where(mask, truth.dtype.type(label), truth[cut])
    centre = voxels.mean(0) + [c.start for c in cut]
    mm = centre * frame.spacing_mm + frame.origin_mm
    return Nodule(
        label,
        (float(mm[0]), float(mm[1]), float(mm[2])),
        (float(centre[0]), float(centre[1]), float(centre[2])),
        float(diameter),
        volume,
        plan.kind,
        plan.attachment,
        plan.margin,
    )
