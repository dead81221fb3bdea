"""What looks like a nodule and is none: plaques, bands, hilar nodes, thick fissures, patches, plugs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from .fields import Array, Frame, ramp, smooth_noise, smooth_sheet
from .thorax import Build
from .tubes import Capsules


@dataclass
class Scene:
    """The chest while it is painted: HU, signed distance to the lung's surface (mm, positive in the lung), and
    where the look-alikes are, (z, y, x) mm with their names.
    """

    frame: Frame
    build: Build
    hu: Array
    lung: Array
    mimics: list[tuple[str, tuple[float, float, float]]] = field(default_factory=list)

    def box(self, centre_mm: Array, reach_mm: float) -> tuple[tuple[slice, slice, slice], list[Array]] | None:
        """Slices of the box around a point, and (z, y, x) mm from the point; None where the box is empty."""
        frame, cuts, offsets = self.frame, [], []
        for axis in range(3):
            step, origin = frame.spacing_mm[axis], frame.origin_mm[axis]
            low = max(0, int(np.ceil((centre_mm[axis] - reach_mm - origin) / step)))
            high = min(frame.shape[axis], int((centre_mm[axis] + reach_mm - origin) / step) + 1)
            if high <= low:
                return None
            cuts.append(slice(low, high))
            form = [1, 1, 1]
            form[axis] = -1
            line = np.arange(low, high) * step + origin - centre_mm[axis]
            offsets.append(frame.xp.asarray(line.astype(np.float32)).reshape(form))
        return (cuts[0], cuts[1], cuts[2]), offsets

    def blend(self, cut: tuple[slice, slice, slice], value: Array | float, share: Array) -> None:
        """Mixes ``value`` (HU) into a box, by ``share``."""
        part = self.hu[cut]
        self.hu[cut] = part + (value - part) * share

    def note(self, name: str, point: Array) -> None:
        """Remembers a look-alike at ``point``, mm."""
        self.mimics.append((name, (float(point[0]), float(point[1]), float(point[2]))))

    def sample(self, rng: np.random.Generator, low_mm: float, high_mm: float, count: int) -> Array:
        """Up to ``count`` random points (n, 3) mm whose depth in the lung is between the bounds."""
        span, origin = np.asarray(self.frame.extent_mm), np.asarray(self.frame.origin_mm)
        points = origin + rng.random((max(6000, 250 * count), 3)) * span
        depth = self.frame.look_up(self.lung, points)
        return points[(depth > low_mm) & (depth < high_mm)][:count]


def _plaques(rng: np.random.Generator, scene: Scene, rate: float) -> None:
    """Local thickenings of the lung's surface, always much wider than thick."""
    xp = scene.frame.xp
    for point in scene.sample(rng, -1.0, 1.0, int(rng.poisson(7 * rate))):
        wide = rng.uniform(4.5, 18)
        thick = rng.uniform(0.7, min(5.0, 0.32 * wide))
        found = scene.box(point, 2.4 * wide)
        if found is None:
            continue
        cut, (dz, dy, dx) = found
        stretch = rng.uniform(0.6, 1.7, 3).astype(np.float32)
        near = xp.exp(
            (dz**2 * stretch[0] + dy**2 * stretch[1] + dx**2 * stretch[2]) * np.float32(-0.5 / wide**2)
        )
        share = ramp(np.float32(thick) * near - np.float32(0.35) - scene.lung[cut], 1.0, xp) * (near > 0.05)
        share *= ramp(scene.lung[cut] + np.float32(1.0), 1.0, xp)
        value = rng.uniform(10, 70) if rng.random() < 0.85 else rng.uniform(200, 600)
        scene.blend(cut, np.float32(value), share)
        scene.note("plaque", point)


def _caps(rng: np.random.Generator, scene: Scene, rate: float) -> None:
    """Ragged thickening over an apex."""
    xp, build = scene.frame.xp, scene.build
    for side in (-1, 1):
        if rng.random() > 0.45 * rate:
            continue
        point = np.array([build.apex_z - 6, 0.3 * build.cavity[1] * 0.4, side * build.cavity[0] * 0.35])
        found = scene.box(point, 32)
        if found is None:
            continue
        cut, (dz, dy, dx) = found
        shape = np.broadcast_shapes(dz.shape, dy.shape, dx.shape)
        small = Frame((shape[0], shape[1], shape[2]), scene.frame.spacing_mm, xp)
        rough = smooth_noise(rng, small, rng.uniform(5, 9))
        near = xp.exp((dz**2 + dy**2 + dx**2) * np.float32(-1 / 400))
        thick = (np.float32(rng.uniform(1, 4)) + rough * np.float32(1.6)) * near
        share = ramp(thick - scene.lung[cut], 1.2, xp) * (near > 0.1) * ramp(scene.lung[cut] + 1, 1.0, xp)
        scene.blend(cut, np.float32(rng.uniform(0, 60)), share)
        scene.note("cap", point)


def _bands(rng: np.random.Generator, scene: Scene, rate: float) -> None:
    """Scars and plate atelectases: thin curved sheets."""
    xp = scene.frame.xp
    for point in scene.sample(rng, 0.5, 14.0, int(rng.poisson(3.5 * rate))):
        long, wide = rng.uniform(7, 26), rng.uniform(3.5, 14)
        found = scene.box(point, 2.2 * long)
        if found is None:
            continue
        cut, (dz, dy, dx) = found
        turn = np.linalg.qr(rng.standard_normal((3, 3)))[0].astype(np.float32)
        u, v, w = (dz * t[0] + dy * t[1] + dx * t[2] for t in turn)
        bow, wave = np.float32(rng.normal(0, 0.012)), np.float32(rng.uniform(0, 1.0))
        off = w + bow * u * u + wave * xp.sin(u * np.float32(rng.uniform(0.1, 0.4)))
        near = xp.exp(-(u**2) / np.float32(2 * long**2) - (v**2) / np.float32(2 * wide**2))
        half = np.float32(rng.uniform(0.5, 2.0)) * near
        share = ramp(half - xp.abs(off), 1.0, xp) * xp.minimum(half * 2, 1) * ramp(scene.lung[cut], 1.0, xp)
        scene.blend(cut, np.float32(rng.uniform(-150, 40)), share * (near > 0.12))
        scene.note("band", point)


def _patches(rng: np.random.Generator, scene: Scene, rate: float) -> None:
    """Ill-defined hazes and consolidations, too large and ragged for a nodule."""
    xp = scene.frame.xp
    for point in scene.sample(rng, 0.5, 25.0, int(rng.poisson(0.5 * rate))):
        size = rng.uniform(15, 32)
        found = scene.box(point, 1.7 * size)
        if found is None:
            continue
        cut, (dz, dy, dx) = found
        shape = np.broadcast_shapes(dz.shape, dy.shape, dx.shape)
        small = Frame((shape[0], shape[1], shape[2]), scene.frame.spacing_mm, xp)
        rough = smooth_noise(rng, small, rng.uniform(6, 11)) + smooth_noise(rng, small, 3.5) * np.float32(0.5)
        near = np.float32(1.2) - (dz**2 + dy**2 + dx**2) * np.float32(1.6 / size**2)
        dense = rng.random() < 0.4
        share = ramp(near + rough * np.float32(0.7 if dense else 0.45), 0.5 if dense else 1.6, xp)
        share *= ramp(scene.lung[cut], 1.0, xp)
        value = np.float32(rng.uniform(-120, 30) if dense else rng.uniform(-680, -450))
        part = scene.hu[cut]
        scene.hu[cut] = xp.maximum(part, part + (value - part) * share)
        scene.note("patch", point)


def _ball(scene: Scene, point: Array, radii: Array, value: float, inside: bool) -> None:
    """A plain ellipsoid; only beyond the lung's surface where ``inside`` is false."""
    found = scene.box(point, float(radii.max()) + 2)
    if found is None:
        return
    cut, (dz, dy, dx) = found
    xp = scene.frame.xp
    r = radii.astype(np.float32)
    far = xp.sqrt((dz / r[0]) ** 2 + (dy / r[1]) ** 2 + (dx / r[2]) ** 2)
    share = ramp((1 - far) * r.min(), 1.0, xp)
    if inside:
        share = share * ramp(scene.lung[cut] + np.float32(0.5), 1.0, xp)
    part = scene.hu[cut]
    scene.hu[cut] = xp.where(part > 150, part, part + (np.float32(value) - part) * share)


def paint_hila(rng: np.random.Generator, scene: Scene, roots: list[Array]) -> None:
    """The ragged tissue in which the large vessels and bronchi enter the lung."""
    xp = scene.frame.xp
    for root in roots:
        size = rng.uniform(9, 20) * scene.build.scale
        found = scene.box(root, 1.7 * size)
        if found is None:
            continue
        cut, (dz, dy, dx) = found
        shape = np.broadcast_shapes(dz.shape, dy.shape, dx.shape)
        small = Frame((shape[0], shape[1], shape[2]), scene.frame.spacing_mm, xp)
        rough = smooth_noise(rng, small, rng.uniform(4, 7))
        near = 1 - (dz**2 * np.float32(0.5) + dy**2 + dx**2 * np.float32(1.6)) * np.float32(1 / size**2)
        share = ramp(near * np.float32(4) + rough * np.float32(rng.uniform(0.8, 2.2)), 1.2, xp)
        scene.blend(cut, np.float32(rng.uniform(-60, 40)), share * (scene.hu[cut] < 0))
        scene.note("hilum", root)


def _nodes(rng: np.random.Generator, scene: Scene, roots: list[Array], rate: float) -> None:
    """Hilar and mediastinal lymph nodes whose middle lies in the mediastinum, so that they bulge a little."""
    for root in roots:
        count = int(rng.poisson(3 * rate))
        points = root + rng.normal(0, 13, (60, 3))
        depth = scene.frame.look_up(scene.lung, points)
        for point in points[(depth < -1.0) & (depth > -9)][:count]:
            deep = -float(scene.frame.look_up(scene.lung, point[None])[0])
            radii = np.minimum(rng.uniform(3, 8, 3), deep + 2.5)
            _ball(scene, point, radii, rng.uniform(20, 70), False)
            scene.note("node", point)


def _specks(rng: np.random.Generator, scene: Scene, rate: float) -> None:
    """Dots too small to count (under 3 mm)."""
    for point in scene.sample(rng, 1.0, 40.0, int(rng.poisson(5 * rate))):
        radii = rng.uniform(0.5, 1.3) * rng.uniform(0.8, 1.1, 3)
        _ball(scene, point, radii, float(rng.choice([30.0, 60.0, 400.0])), True)
        scene.note("speck", point)


def plugs(rng: np.random.Generator, airways: Capsules, rate: float) -> Array:
    """Which bronchial pieces are filled with mucus: a few runs of neighbours; boolean (n,)."""
    filled = np.zeros(len(airways), bool)
    for _ in range(int(rng.poisson(1.2 * rate))):
        centre = airways.start[rng.integers(len(airways))]
        near = np.linalg.norm(airways.start - centre, axis=1)
        filled |= (near < rng.uniform(5, 12)) & (airways.r_start < 2.2)
    return filled


def fissures(rng: np.random.Generator, scene: Scene) -> None:
    """An oblique fissure on each side and a horizontal one on the right, thick in places."""
    frame, build, f32 = scene.frame, scene.build, np.float32
    xp = frame.xp
    z, y, x = frame.axes()
    wave = smooth_sheet(rng, frame, 40 * build.scale, (1, 2)) * f32(4 * build.scale)
    wave = wave + smooth_sheet(rng, frame, 12, (1, 2)) * f32(0.8)
    thick = f32(rng.uniform(0.15, 0.7)) + xp.maximum(
        smooth_sheet(rng, frame, 11, (1, 2)) - f32(rng.uniform(0.9, 2.6)), 0
    ) * f32(rng.uniform(0.6, 2.0))
    slope = xp.where(x > 0, f32(rng.uniform(0.7, 1.5)), f32(rng.uniform(0.7, 1.5)))
    level = xp.where(x > 0, f32(build.hilum_z + rng.normal(0, 8)), f32(build.hilum_z + rng.normal(-6, 8)))
    off = (z - level - slope * y - wave) / xp.sqrt(1 + slope * slope)
    share = ramp(thick * f32(0.5) - xp.abs(off), 1.0, xp) * xp.minimum(thick, 1)
    flat = z - f32(build.hilum_z + rng.uniform(0, 14)) + wave * f32(0.7)
    front = (x < 0) & (y < f32(5))
    share = xp.maximum(share, ramp(thick * f32(0.5) - xp.abs(flat), 1.0, xp) * xp.minimum(thick, 1) * front)
    share *= ramp(scene.lung, 1.0, xp)
    scene.hu += (f32(0) - scene.hu) * share


def paint_mimics(rng: np.random.Generator, scene: Scene, roots: list[Array]) -> None:
    """Adds a person's share of look-alikes."""
    rate = float(rng.choice([0.4, 1.0, 1.8]))
    few: list[Callable[[np.random.Generator, Scene, float], None]] = [
        _plaques,
        _caps,
        _bands,
        _patches,
        _specks,
    ]
    for draw in few:
        draw(rng, scene, rate)
    _nodes(rng, scene, roots, rate)
