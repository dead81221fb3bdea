"""Puts the chest together and gives the volume, its truth mask and the list of its nodules."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wetread.volume import Grid, Volume

from .fields import Array, Frame, Module, ramp, smooth_noise, smoothstep
from .lesions import Nodule, paint, place
from .mimics import Scene, fissures, paint_hila, paint_mimics, plugs
from .scanner import scan
from .skeleton import paint_bones
from .thorax import Build, draw_build, draw_shapes, paint_body
from .trees import airways, grow, vessels
from .tubes import Capsules, draw_distance, draw_share

DEMO_SHAPE = (112, 160, 208)
DEMO_SPACING_MM = (2.0, 1.6, 1.6)


@dataclass(frozen=True)
class Phantom:
    """A chest CT made by procedure, with its truth.

    ``hu`` is int16, ``truth`` uint8 (0 background, else a nodule's label), both (z, y, x) with z toward Superior,
    y toward Posterior, x toward Left (orientation codes "SPL"). ``mimics`` are look-alikes: name, (z, y, x) voxel.
    """

    hu: Array
    truth: Array
    spacing_mm: tuple[float, float, float]
    nodules: tuple[Nodule, ...]
    mimics: tuple[tuple[str, tuple[int, int, int]], ...]
    seed: int
    lung: Array | None = None

    def volume(self) -> Volume:
        """The image in the patient's coordinates (LPS mm), its middle at the origin; made by numpy only."""
        affine = np.zeros((4, 4))
        affine[2, 0], affine[1, 1], affine[0, 2] = self.spacing_mm
        affine[3, 3] = 1.0
        affine[:3, 3] = [-s * n / 2 for s, n in zip(self.spacing_mm, self.hu.shape, strict=True)][::-1]
        grid = Grid(self.hu.shape, affine, frame_of_reference=f"2.25.{10_000 + self.seed}")
        return Volume(np.asarray(self.hu), grid, "CT", ("phantom",))


def _great_vessels(rng: np.random.Generator, build: Build) -> tuple[Capsules, Capsules]:
    """Aorta, venae cavae, pulmonary trunk and arch branches; then trachea and main bronchi (lumina)."""
    s, cy, hz, top = build.scale, build.cavity[1], build.hilum_z, build.apex_z
    arch = hz + rng.uniform(38, 55) * s
    aorta = [
        (hz - 25 * s, -0.3 * cy, -5 * s),
        (hz + 15 * s, -0.38 * cy, -20 * s),
        (arch - 6 * s, -0.3 * cy, -16 * s),
    ]
    aorta += [
        (arch + 4 * s, -0.05 * cy, 2 * s),
        (arch - 4 * s, 0.25 * cy, 18 * s),
        (arch - 22 * s, 0.5 * cy, 24 * s),
    ]
    aorta += [(hz - 20 * s, 0.55 * cy, 23 * s), (hz - 80 * s, 0.6 * cy, 14 * s), (-40.0, 0.62 * cy, 6 * s)]
    cava = [
        (top + 10, -0.25 * cy, -22 * s),
        (hz + 30 * s, -0.15 * cy, -26 * s),
        (hz - 25 * s, -0.1 * cy, -26 * s),
    ]
    lower = [(hz - 50 * s, 0.0, -24 * s), (build.dome_z[0] - 25 * s, 0.15 * cy, -24 * s)]
    trunk = [
        (hz - 18 * s, -0.42 * cy, 20 * s),
        (hz + 14 * s, -0.2 * cy, 18 * s),
        (hz + 8 * s, 0.1 * cy, 34 * s),
    ]
    right = [(hz + 10 * s, -0.15 * cy, 14 * s), (hz + 4 * s, 0.0, -14 * s), (hz - 2 * s, 0.08 * cy, -38 * s)]
    lines = [(aorta, rng.uniform(11, 16)), (cava, rng.uniform(7, 10)), (lower, rng.uniform(9, 13))]
    lines += [(trunk, rng.uniform(11, 14)), (right, rng.uniform(8, 11))]
    for side in (-1, 1):
        veins = [(hz - 22 * s, 0.12 * cy, 0.0), (hz - 20 * s, 0.1 * cy, side * (build.middle + 8 * s))]
        lines.append((veins, rng.uniform(6, 9)))
        branch = [
            (arch, 0.0, side * 8 * s),
            (top + 2, 0.1 * cy, side * 20 * s),
            (top + 12, 0.1 * cy, side * 70 * s),
        ]
        lines.append((branch, rng.uniform(4, 6)))
    parts = []
    for points, radius in lines:
        mm = np.array([p + rng.normal(0, 2.5 * s, 3) for p in np.array(points)])
        t = np.linspace(0, len(mm) - 1, 6 * len(mm))
        curve = np.stack([np.interp(t, np.arange(len(mm)), mm[:, a]) for a in range(3)], 1)
        curve[1:-1] = (curve[:-2] + 2 * curve[1:-1] + curve[2:]) / 4
        parts.append(Capsules.chain(curve, radius * s * rng.uniform(0.93, 1.07, len(curve))))
    carina = np.array([hz + 22 * s, 0.12 * cy, 2 * s])
    pipes = [
        Capsules.chain(np.array([[top + 60, 0.02 * cy, 0.0], carina]), np.full(2, rng.uniform(7, 9.5) * s))
    ]
    for side in (-1, 1):
        end = np.array([hz + 2 * s, 0.15 * cy, side * (build.middle + 9 * s)])
        pipes.append(Capsules.chain(np.stack([carina, end]), np.full(2, rng.uniform(5, 7) * s)))
    return Capsules.joined(parts).split(8.0), Capsules.joined(pipes).split(8.0)


def _parenchyma(rng: np.random.Generator, scene: Scene) -> Array:
    """HU of lung tissue without vessels: gravity, patchiness, emphysema, dependent density."""
    frame, f32 = scene.frame, np.float32
    xp = frame.xp
    _, y, _ = frame.axes()
    coarse = smooth_noise(rng, frame, rng.uniform(14, 30))
    fine = smooth_noise(rng, frame, rng.uniform(2.2, 4.0))
    hu = f32(rng.uniform(-885, -780)) + y * f32(rng.uniform(0.05, 0.35)) + coarse * f32(rng.uniform(6, 22))
    hu = hu + fine * f32(rng.uniform(4, 26))
    if rng.random() < 0.35:
        holes = ramp(coarse * f32(0.5) + fine * f32(0.8) - f32(rng.uniform(0.7, 1.8)), 0.6, xp)
        hu += (f32(-975) - hu) * holes * f32(rng.uniform(0.5, 1.0))
    rim = smoothstep(rng.uniform(0.1, 0.5), 1.0, y / np.float32(scene.build.cavity[1]), xp)
    near = xp.exp(-xp.clip(scene.lung, 0, 60) * f32(1 / rng.uniform(1.5, 6)))
    return hu + rim * near * f32(rng.choice([0.0, rng.uniform(50, 420)])) * (1 + f32(0.4) * coarse)


def _trees(rng: np.random.Generator, scene: Scene) -> tuple[Capsules, Capsules, list[Array]]:
    """Vessels and airway lumina of both lungs, and the hila."""
    build = scene.build
    all_vessels, all_airways, roots = [], [], []
    for side in (-1, 1):
        points = scene.sample(rng, 2.0, 200.0, 8000)
        points = points[points[:, 2] * side > 0]
        many = int(rng.uniform(800, 1700))
        hilum = np.array([build.hilum_z, 0.1 * build.cavity[1], side * (build.middle + 7 * build.scale)])
        roots.append(hilum)
        if len(points) < 40:
            continue
        thin, power = rng.uniform(0.4, 0.6), rng.uniform(2.6, 3.0)
        for number, down in enumerate((0.0, -18.0 * build.scale)):
            ends = points[number * many : (number + 1) * many]
            ends = points[-many:] if len(ends) < many // 2 else ends
            root = hilum + np.array([down + rng.normal(0, 4), rng.normal(0, 4), 0])
            tree = grow(rng, root, ends)
            all_vessels.append(vessels(rng, tree, thin, power))
            if number == 0:
                all_airways.append(airways(rng, tree, thin, power, max(4, many // 90)))
    return Capsules.joined(all_vessels), Capsules.joined(all_airways), roots


def make_phantom(
    seed: int,
    shape: tuple[int, int, int] = DEMO_SHAPE,
    spacing_mm: tuple[float, float, float] = DEMO_SPACING_MM,
    nodules: tuple[int, int] = (1, 6),
    sizes_mm: tuple[float, float] = (4.0, 30.0),
    xp: Module = np,
    keep_lung: bool = False,
) -> Phantom:
    """Makes the chest CT number ``seed``: a chest that fills ``shape`` voxels of ``spacing_mm``, both (z, y, x).

    ``nodules`` bounds how many nodules are tried, ``sizes_mm`` their diameters; attached ones may come out
    smaller, and one of less than 3.5 mm is left out. The same arguments give the same phantom. With
    ``keep_lung`` the lung mask comes along (bool).
    """
    frame = Frame(shape, spacing_mm, xp)
    rngs = [np.random.default_rng([seed, part]) for part in range(9)]
    f32 = np.float32
    build = draw_build(rngs[0], frame)
    shapes = draw_shapes(rngs[0], build, frame)
    hu = paint_body(rngs[1], build, shapes, frame)
    hu, cover = paint_bones(rngs[2], build, hu, frame)
    mantle = f32(rngs[2].uniform(0.6, 1.6))
    lung = xp.where(cover > -3.5, xp.minimum(shapes.lung, -cover - mantle), shapes.lung)
    scene = Scene(frame, build, hu, lung)
    scene.hu = hu + (_parenchyma(rngs[3], scene) - hu) * ramp(lung, 1.0, xp)
    fissures(rngs[4], scene)
    great, pipes = _great_vessels(rngs[5], build)
    blood = f32(rngs[5].uniform(25, 55) + build.enhanced)
    wall = draw_distance(great, frame, 3.0)
    scene.hu += (f32(20) - scene.hu) * ramp(wall + 1, 1.0, xp) * (scene.hu < 20)
    scene.hu += (blood - scene.hu) * ramp(wall, 1.0, xp)
    scene.lung = xp.where(wall > -2.5, xp.minimum(lung, -wall - 1), lung)
    tubes, lumina, roots = _trees(rngs[6], scene)
    paint_hila(rngs[7], scene, roots)
    _paint_trees(rngs[6], scene, tubes, Capsules.joined([lumina, pipes]), blood)
    paint_mimics(rngs[7], scene, roots)
    truth = xp.zeros(shape, xp.uint8)
    done: list[Nodule] = []
    count = int(rngs[8].integers(nodules[0], nodules[1] + 1))
    for plan in place(rngs[8], scene, tubes, count, np.asarray(sizes_mm)):
        nodule = paint(rngs[8], scene, plan, truth, len(done) + 1)
        if nodule is not None:
            done.append(nodule)
    seen = scan(np.random.default_rng([seed, 99]), scene.hu, min(build.dome_z), frame)
    mimics = [(name, frame.index(np.array([point]))[0]) for name, point in scene.mimics]
    return Phantom(
        xp.rint(seen).astype(xp.int16),
        truth,
        spacing_mm,
        tuple(done),
        tuple((name, (int(p[0]), int(p[1]), int(p[2]))) for name, p in mimics),
        seed,
        scene.lung > 0 if keep_lung else None,
    )


def _paint_trees(
    rng: np.random.Generator, scene: Scene, tubes: Capsules, lumina: Capsules, blood: np.float32
) -> None:
    """Adds bronchial walls, vessels, and the air in bronchi that no mucus fills."""
    frame, f32 = scene.frame, np.float32
    walls = lumina.wider(np.clip(lumina.r_start * rng.uniform(0.2, 0.45), 0.35, 1.8))
    share = draw_share(walls, frame)
    scene.hu += (f32(10) - scene.hu) * share * (scene.hu < 10)
    share = draw_share(tubes, frame)
    scene.hu += (blood - scene.hu) * share * (scene.hu < blood)
    open_ones = lumina.pick(np.flatnonzero(~plugs(rng, lumina, 1.0)))
    scene.hu += (f32(rng.uniform(-1000, -940)) - scene.hu) * draw_share(open_ones, frame)
