"""Branching trees that fill a lung: arteries with their bronchi, and veins.

A set of end points is divided again and again along its longest direction; each division is a bifurcation on
the way to the middle of its points. Radii follow the number of end points served (Murray's law).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .fields import Array
from .tubes import Capsules


@dataclass(frozen=True)
class Tree:
    """Edges from ``start`` to ``end`` (n, 3) mm, each serving ``served`` (n,) end points."""

    start: Array
    end: Array
    served: Array


def _halve(rng: np.random.Generator, points: Array, group: Array, count: Array) -> tuple[Array, Array]:
    """Sorts points by group and by place along each group's longest direction; gives the order and the new groups."""
    total = np.zeros((len(count), 3))
    np.add.at(total, group, points)
    off = points - (total / count[:, None])[group]
    spread = np.zeros((len(count), 3, 3))
    np.add.at(spread, group, off[:, :, None] * off[:, None, :])
    spread += np.eye(3) * 1e-3
    axis = np.linalg.eigh(spread)[1][:, :, 2] + 0.25 * rng.standard_normal((len(count), 3))
    along = (off * axis[group]).sum(1)
    order = np.lexsort((along, group))
    first = np.cumsum(count) - count
    rank = np.arange(len(points)) - first[group[order]]
    cut = np.clip(np.rint(count * rng.uniform(0.25, 0.75, len(count))), 1, np.maximum(count - 1, 1))
    return order, group[order] * 2 + (rank >= cut[group[order]])


def grow(rng: np.random.Generator, root_mm: Array, targets_mm: Array) -> Tree:
    """A tree from ``root_mm`` (3,) to every target (n, 3)."""
    points = np.asarray(targets_mm, float)
    group = np.zeros(len(points), np.int64)
    parents = np.asarray(root_mm, float)[None]
    starts, ends, served = [], [], []
    for _ in range(40):
        if not len(points):
            break
        count = np.bincount(group)
        total = np.zeros((len(count), 3))
        np.add.at(total, group, points)
        step = rng.uniform(0.28, 0.5, len(count))
        step[count == 1] = 1
        here = parents + step[:, None] * (total / count[:, None] - parents)
        starts.append(parents)
        ends.append(here)
        served.append(count)
        alive = (count > 1)[group]
        points, group = points[alive], group[alive]
        if not len(points):
            break
        old, group = np.unique(group, return_inverse=True)
        order, new = _halve(rng, points, group, np.bincount(group))
        points = points[order]
        keep, group = np.unique(new, return_inverse=True)
        parents = here[old][keep // 2]
    return Tree(np.concatenate(starts), np.concatenate(ends), np.concatenate(served))


def _bend(points: Array, phases: Array, waves: Array, size_mm: float) -> Array:
    """Points moved by a smooth random displacement of about ``size_mm``."""
    angle = points @ waves.T + phases
    moved: Array = points + size_mm * np.stack([np.sin(angle[:, k::3]).sum(1) for k in range(3)], 1)
    return moved


def vessels(rng: np.random.Generator, tree: Tree, end_radius_mm: float, power: float) -> Capsules:
    """The tree's vessels: winding, tapering, radius = ``end_radius_mm`` × served^(1/power)."""
    radius = end_radius_mm * tree.served ** (1 / power) * rng.uniform(0.88, 1.12, len(tree.served))
    straight = Capsules(tree.start, tree.end, radius * 1.04, radius * 0.96).split(3.0)
    waves = rng.standard_normal((9, 3)) * np.repeat([0.05, 0.11, 0.22], 3)[:, None]
    phases = rng.uniform(0, 2 * np.pi, 9)
    size = rng.uniform(0.6, 1.6)
    return Capsules(
        _bend(straight.start, phases, waves, size),
        _bend(straight.end, phases, waves, size),
        straight.r_start,
        straight.r_end,
    )


def airways(
    rng: np.random.Generator, tree: Tree, end_radius_mm: float, power: float, fewest: int
) -> Capsules:
    """Lumina of the bronchi that run beside a tree's arteries, for edges that serve ``fewest`` or more points."""
    lane = np.flatnonzero(tree.served >= fewest)
    radius = end_radius_mm * tree.served[lane] ** (1 / power)
    side = rng.standard_normal(3)
    side /= np.linalg.norm(side)
    shift = (2.1 * radius + 1.2)[:, None] * side
    inner = radius * rng.uniform(0.75, 1.0)
    return Capsules(tree.start[lane] + shift, tree.end[lane] + shift, inner, inner * 0.95).split(4.0)
