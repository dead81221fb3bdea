"""Phantoms are reproducible, look like CT in numbers, and their truth is where they say."""

from __future__ import annotations

import numpy as np
import pytest

from wetread.bench.phantom import Phantom, make_phantom
from wetread.bench.phantom.fields import Frame, blur, smooth_noise, white_noise
from wetread.bench.phantom.trees import grow
from wetread.bench.phantom.tubes import Capsules, draw_distance, draw_share

SHAPE, SPACING_MM = (80, 120, 160), (3.0, 2.0, 2.0)


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return make_phantom(3, SHAPE, SPACING_MM, nodules=(8, 8), sizes_mm=(8.0, 24.0), keep_lung=True)


def test_same_seed_same_phantom(phantom: Phantom) -> None:
    again = make_phantom(3, SHAPE, SPACING_MM, nodules=(8, 8), sizes_mm=(8.0, 24.0))
    assert np.array_equal(again.hu, phantom.hu)
    assert np.array_equal(again.truth, phantom.truth)
    assert again.nodules == phantom.nodules


def test_other_seed_other_phantom(phantom: Phantom) -> None:
    other = make_phantom(4, SHAPE, SPACING_MM)
    assert np.mean(other.hu != phantom.hu) > 0.5


def test_types_and_hounsfield_ranges(phantom: Phantom) -> None:
    assert phantom.hu.dtype == np.int16 and phantom.hu.shape == SHAPE
    assert phantom.truth.dtype == np.uint8 and phantom.truth.shape == SHAPE
    assert phantom.hu.min() >= -1024 and phantom.hu.max() <= 3071
    assert phantom.lung is not None
    inside = phantom.hu[phantom.lung & (phantom.truth == 0)]
    assert -950 < np.median(inside) < -720
    assert (phantom.hu > 300).sum() > 1000, "bones"
    assert 1500 < phantom.lung.sum() * np.prod(SPACING_MM) / 1000 < 9000, "lungs in ml"


def test_orientation(phantom: Phantom) -> None:
    """z grows toward Superior (lungs narrow upward), y toward Posterior (the spine's bone), x toward Left (heart)."""
    assert phantom.lung is not None
    spine = phantom.hu[:, SHAPE[1] // 2 :, 70:90] > 200
    front = phantom.hu[:, : SHAPE[1] // 2, 70:90] > 200
    assert spine.sum() > 2 * front.sum()
    right, left = phantom.lung[:, :, :80].sum(), phantom.lung[:, :, 80:].sum()
    assert right > left, "the heart takes room from the left lung"


def test_nodules_lie_where_they_say(phantom: Phantom) -> None:
    assert len(phantom.nodules) >= 5
    voxel = float(np.prod(SPACING_MM))
    for nodule in phantom.nodules:
        where = np.argwhere(phantom.truth == nodule.label)
        assert len(where) * voxel == pytest.approx(nodule.volume_mm3)
        assert (6 * nodule.volume_mm3 / np.pi) ** (1 / 3) == pytest.approx(nodule.diameter_mm)
        assert np.allclose(where.mean(0), nodule.centre_voxel)
        mm = np.array(nodule.centre_voxel) * SPACING_MM + Frame(SHAPE, SPACING_MM).origin_mm
        assert np.allclose(mm, nodule.centre_mm)
    assert set(np.unique(phantom.truth)) == {0, *(n.label for n in phantom.nodules)}


def test_solid_nodules_are_denser_than_lung(phantom: Phantom) -> None:
    solid = [n for n in phantom.nodules if n.kind == "solid" and n.diameter_mm > 9]
    assert solid
    for nodule in solid:
        assert np.median(phantom.hu[phantom.truth == nodule.label]) > -400


def test_no_nodules_when_none_are_asked() -> None:
    empty = make_phantom(5, (40, 80, 100), (6.0, 3.0, 3.2), nodules=(0, 0))
    assert not empty.nodules and not empty.truth.any()


def test_white_noise_is_white() -> None:
    noise = white_noise(Frame((20, 100, 100), (1, 1, 1)), key=7)
    assert abs(noise.mean()) < 0.01 and noise.std() == pytest.approx(1, abs=0.01)
    assert abs(np.mean(noise[:, :, 1:] * noise[:, :, :-1])) < 0.01
    assert abs(np.mean(noise[:, 1:] * noise[:, :-1])) < 0.01
    assert not np.array_equal(noise, white_noise(Frame((20, 100, 100), (1, 1, 1)), key=8))


def test_smooth_noise_has_unit_size_and_its_scale() -> None:
    rng = np.random.default_rng(0)
    noise = smooth_noise(rng, Frame((60, 60, 60), (1, 1, 1)), 4.0)
    assert noise.std() == pytest.approx(1, abs=0.35)
    step = np.abs(np.diff(noise, axis=2)).mean()
    assert step < 0.35 * noise.std()


def test_blur_keeps_a_constant_and_the_sum() -> None:
    field = np.full((9, 11, 13), 5, np.float32)
    assert np.allclose(blur(field, (1.0, 0.7, 0.0), np), 5, atol=1e-5)
    point = np.zeros((15, 15, 15), np.float32)
    point[7, 7, 7] = 1
    assert blur(point, (1.0, 1.0, 1.0), np).sum() == pytest.approx(1, abs=1e-5)


def test_capsule_against_its_formula() -> None:
    """Signed distance within 1e-4 mm (float32) of the formula in float64, wherever it is not cut off."""
    frame = Frame((24, 28, 32), (1.0, 0.8, 1.2))
    a, b = np.array([6.0, -4.0, -8.0]), np.array([15.0, 5.0, 9.0])
    one = Capsules(a[None], b[None], np.array([2.0]), np.array([3.5]))
    drawn = draw_distance(one, frame, 3.0)
    z, y, x = (v.astype(float) for v in frame.axes())
    points = np.stack(np.broadcast_arrays(z, y, x), -1) - a
    t = np.clip(points @ (b - a) / ((b - a) @ (b - a)), 0, 1)
    exact = 2.0 + 1.5 * t - np.linalg.norm(points - t[..., None] * (b - a), axis=-1)
    assert np.allclose(drawn, np.maximum(exact, -3.0), atol=1e-4)


def test_thin_tube_covers_its_volume() -> None:
    frame = Frame((40, 40, 40), (1.0, 1.0, 1.0))
    for radius in (0.4, 0.8, 3.0):
        line = Capsules(np.array([[5.0, 0.3, 0.2]]), np.array([[35.0, 0.3, 0.2]]), *np.full((2, 1), radius))
        area = draw_share(line, frame)[15:25].sum() / 10
        assert area == pytest.approx(np.pi * radius**2, rel=0.35)


def test_tree_reaches_every_target() -> None:
    rng = np.random.default_rng(1)
    targets = rng.uniform(0, 50, (37, 3))
    tree = grow(rng, np.array([-5.0, 0.0, 0.0]), targets)
    ends = tree.end[tree.served == 1]
    assert len(ends) == len(targets)
    gap = np.linalg.norm(ends[:, None] - targets[None], axis=2).min(0)
    assert np.all(gap < 1e-9)
    assert tree.served[0] == len(targets)
