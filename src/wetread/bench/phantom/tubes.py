"""Thousands of tapered capsules (vessels, airways, ribs) drawn into a voxel grid at once.

Capsules are sorted by the size of their bounding box; each group is drawn as one array operation over
(capsules, box voxels), and overlaps are settled by an unordered minimum or maximum, so the result does not
depend on the order of drawing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .fields import Array, Frame

CHUNK = 3_000_000


@dataclass(frozen=True)
class Capsules:
    """Segments from ``start`` to ``end``, (n, 3) mm in (z, y, x), with radii (n,) mm at both ends."""

    start: Array
    end: Array
    r_start: Array
    r_end: Array

    def __len__(self) -> int:
        return len(self.start)

    def wider(self, by_mm: Array | float) -> Capsules:
        """The same capsules with larger radii."""
        return Capsules(self.start, self.end, self.r_start + by_mm, self.r_end + by_mm)

    def pick(self, which: Array) -> Capsules:
        """Some of the capsules, by number."""
        return Capsules(self.start[which], self.end[which], self.r_start[which], self.r_end[which])

    @staticmethod
    def joined(parts: list[Capsules]) -> Capsules:
        """All capsules of several sets."""
        columns = ([getattr(p, name) for p in parts] for name in ("start", "end", "r_start", "r_end"))
        return Capsules(*(np.concatenate(c) for c in columns))

    @staticmethod
    def chain(points: Array, radii: Array) -> Capsules:
        """A polyline (n, 3) mm with a radius (n,) mm at each point."""
        return Capsules(points[:-1], points[1:], radii[:-1], radii[1:])

    def split(self, longest_mm: float) -> Capsules:
        """The same capsules cut into pieces no longer than ``longest_mm`` or 1.5 radii, whichever is more."""
        length = np.linalg.norm(self.end - self.start, axis=1)
        limit = np.maximum(longest_mm, 1.5 * np.maximum(self.r_start, self.r_end))
        pieces = np.maximum(1, np.ceil(length / limit)).astype(int)
        which = np.repeat(np.arange(len(self)), pieces)
        k = np.arange(len(which)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        t0 = (k / pieces[which])[:, None]
        t1 = ((k + 1) / pieces[which])[:, None]
        way = (self.end - self.start)[which]
        taper = (self.r_end - self.r_start)[which]
        first, radius = self.start[which], self.r_start[which]
        return Capsules(
            first + t0 * way, first + t1 * way, radius + t0[:, 0] * taper, radius + t1[:, 0] * taper
        )


def _groups(capsules: Capsules, frame: Frame, reach_mm: float) -> Iterator[tuple[Array, Array, int]]:
    """Yields (capsule numbers, lowest voxel of each box, box edge in voxels), small boxes first."""
    spacing, origin = np.asarray(frame.spacing_mm), np.asarray(frame.origin_mm)
    margin = (np.maximum(capsules.r_start, capsules.r_end) + reach_mm)[:, None]
    low = np.floor((np.minimum(capsules.start, capsules.end) - margin - origin) / spacing).astype(np.int64)
    high = np.ceil((np.maximum(capsules.start, capsules.end) + margin - origin) / spacing).astype(np.int64)
    seen = np.all((high >= 0) & (low < np.asarray(frame.shape)), axis=1)
    edge = (high - low + 1).max(axis=1)
    for size in (4, 5, 6, 7, 8, 10, 12, 16, 20, 26, 34, 48, 64, 96, 128, 192, 256):
        which = np.flatnonzero(seen & (edge <= size))
        seen &= edge > size
        step = max(1, CHUNK // size**3)
        for at in range(0, len(which), step):
            part = which[at : at + step]
            yield part, low[part], size


def _distances(
    capsules: Capsules, frame: Frame, reach_mm: float, squash_z: float
) -> Iterator[tuple[Array, Array, Array, Array]]:
    """Yields (flat voxel index, distance to the axis, radius there, capsule number) for voxels near each chunk."""
    xp, shape = frame.xp, frame.shape
    scale = np.array([1 / squash_z, 1.0, 1.0])
    spacing, origin = np.asarray(frame.spacing_mm), np.asarray(frame.origin_mm)
    for which, low, size in _groups(capsules, frame, reach_mm / squash_z if squash_z < 1 else reach_mm):
        line = np.arange(size)
        cells = [xp.asarray(low[:, a, None] + line[None]) for a in range(3)]
        a = capsules.start[which] * scale
        way = capsules.end[which] * scale - a
        square = np.maximum((way**2).sum(1), 1e-9)
        every = slice(None)
        pick = [(every, every, None, None), (every, None, every, None), (every, None, None, every)]
        one = (every, None, None, None)
        rel: list[Array] = []
        along: Array = 0.0
        for axis in range(3):
            mm = (cells[axis] * spacing[axis] + origin[axis]) * scale[axis] - xp.asarray(a[:, axis])[:, None]
            rel.append(mm.astype(xp.float32)[pick[axis]])
            along = along + rel[axis] * xp.asarray((way[:, axis] / square).astype(np.float32))[one]
        along = xp.clip(along, 0, 1)
        far: Array = 0.0
        for axis in range(3):
            far = far + (rel[axis] - along * xp.asarray(way[:, axis].astype(np.float32))[one]) ** 2
        r0 = xp.asarray(capsules.r_start[which].astype(np.float32))[one]
        r1 = xp.asarray((capsules.r_end[which] - capsules.r_start[which]).astype(np.float32))[one]
        radius = r0 + along * r1
        inside = [(c >= 0) & (c < n) for c, n in zip(cells, shape, strict=True)]
        near = far < (radius + np.float32(reach_mm)) ** 2
        near &= inside[0][pick[0]] & inside[1][pick[1]] & inside[2][pick[2]]
        flat = (cells[0][pick[0]] * shape[1] + cells[1][pick[1]]) * shape[2] + cells[2][pick[2]]
        flat = xp.broadcast_to(flat, near.shape)
        number = xp.broadcast_to(xp.asarray(which)[one], near.shape)
        yield flat[near], xp.sqrt(far[near]), radius[near], number[near]


def draw_distance(capsules: Capsules, frame: Frame, reach_mm: float, squash_z: float = 1.0) -> Array:
    """Signed distance in mm to the union's surface, positive inside, cut off at ``-reach_mm``; float32.

    ``squash_z`` < 1 flattens, > 1 stretches the cross-section along z (ribs are taller than thick).
    """
    out = frame.xp.full(int(np.prod(frame.shape)), -reach_mm, frame.xp.float32)
    for flat, distance, radius, _ in _distances(capsules, frame, reach_mm, squash_z):
        frame.xp.maximum.at(out, flat, radius - distance)
    return out.reshape(frame.shape)


def draw_share(capsules: Capsules, frame: Frame) -> Array:
    """Share (0 to 1) of each voxel covered by the union; a tube thinner than a voxel covers its area's part."""
    xp, voxel = frame.xp, frame.voxel_mm
    out = xp.zeros(int(np.prod(frame.shape)), xp.float32)
    for flat, distance, radius, _ in _distances(capsules, frame, voxel / 2, 1.0):
        share = xp.clip((radius - distance) * np.float32(1 / voxel) + np.float32(0.5), 0, 1)
        share *= xp.minimum(np.float32(1), np.float32(np.pi / voxel**2) * radius * radius)
        xp.maximum.at(out, flat, share)
    return out.reshape(frame.shape)
