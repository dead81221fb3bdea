"""A detector without learning: threshold inside the lungs, optional opening, size, compactness.

It shows what the phantoms ask for: where this does well, they are too easy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import ndimage
from scoring import Candidate, candidates

Array = np.ndarray
SETTINGS = tuple((hu, opening) for hu in (-600, -450, -300) for opening in (0, 1, 2))
"""Thresholds in HU and radii of the opening in voxels; the best is taken afterwards, in the baseline's favour."""


def lungs(hu: Array) -> Array:
    """Mask of the two lungs with vessels and what lies at their surface, from air inside the body; 1 mm voxels."""
    small = hu[::2, ::2, ::2]
    air = small < -500
    labels, count = ndimage.label(air)
    rim = np.concatenate(
        [labels[:, 0].ravel(), labels[:, -1].ravel(), labels[:, :, 0].ravel(), labels[:, :, -1].ravel()]
    )
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[np.unique(rim)] = 0
    sizes[0] = 0
    keep = np.isin(labels, np.flatnonzero(sizes > 0.15 * sizes.max()))
    wide = np.pad(keep, 8)
    near = ndimage.distance_transform_edt(~wide) <= 6
    closed = (ndimage.distance_transform_edt(near) > 6)[8:-8, 8:-8, 8:-8]
    full = closed.repeat(2, 0).repeat(2, 1).repeat(2, 2)[: hu.shape[0], : hu.shape[1], : hu.shape[2]]
    return np.pad(full, [(0, n - m) for n, m in zip(hu.shape, full.shape, strict=True)])


def compactness(marks: Array) -> Array:
    """For each voxel of a binary map, how ball-like its component is: the equivalent ball's volume over that of the
    ball with the component's radius of gyration, to the power 1/3 (1 for a ball); 0 outside 3.5 to 32 mm.
    """
    labels, count = ndimage.label(marks, np.ones((3, 3, 3)))
    value = np.zeros(count + 1, np.float32)
    for number, cut in enumerate(ndimage.find_objects(labels), 1):
        points = np.argwhere(labels[cut] == number)
        radius = (3 * len(points) / (4 * np.pi)) ** (1 / 3)
        if 3.5 <= 2 * radius <= 32:
            gyration = np.sqrt(((points - points.mean(0)) ** 2).sum(1).mean() + 0.25)
            value[number] = radius * np.sqrt(0.6) / gyration
    out: Array = value[labels]
    return out


def find(phantom: Any) -> dict[str, list[Candidate]]:
    """The baseline's findings for each setting."""
    hu = ndimage.uniform_filter(phantom.hu.astype(np.float32), 2)
    inside = lungs(phantom.hu)
    out = {}
    for level, opening in SETTINGS:
        marks = inside & (hu > level)
        if opening:
            marks = ndimage.binary_opening(marks, ndimage.generate_binary_structure(3, 1), opening)
        score = compactness(marks)
        out[f"{level} HU, opening {opening}"] = candidates(score > 0, score, phantom)
    return out
