import itertools

import numpy as np
import pytest
from scipy import ndimage

from wetread.errors import RecipeError
from wetread.geometry.components import bounding_box, label_components


@pytest.mark.parametrize(("connectivity", "rank"), [(6, 1), (18, 2), (26, 3)])
def test_same_partition_as_scipy_value_by_value(connectivity, rank):
    rng = np.random.default_rng(1)
    mask = (rng.random((12, 13, 14)) < 0.3).astype(np.uint8) * rng.integers(1, 3, (12, 13, 14), np.uint8)
    found = label_components(mask, connectivity)
    assert found.dtype == np.int32
    total = 0
    for value in (1, 2):
        oracle, count = ndimage.label(mask == value, ndimage.generate_binary_structure(3, rank))
        total += count
        pairs = np.unique(np.stack([oracle[mask == value], found[mask == value]]), axis=1)
        assert pairs.shape[1] == count == len(set(pairs[1]))
    assert found.max() == total
    assert (found > 0).tolist() == (mask > 0).tolist()


def test_numbers_follow_the_first_voxel():
    mask = np.zeros((3, 3, 9), np.uint8)
    mask[0, 2, 0] = mask[0, 0, 8] = mask[2, 2, 2] = 1
    found = label_components(mask, 6)
    assert (found[0, 0, 8], found[0, 2, 0], found[2, 2, 2]) == (1, 2, 3)


def test_touching_labels_are_two_components():
    mask = np.array([[[1, 1, 2, 2]]], np.uint8)
    assert label_components(mask).tolist() == [[[1, 1, 2, 2]]]
    assert label_components(np.zeros((2, 2, 2), np.uint8)).max() == 0


def test_connectivity_must_be_known():
    with pytest.raises(RecipeError, match="8, expected 6, 18 or 26"):
        label_components(np.ones((2, 2, 2), np.uint8), 8)


def test_bounding_box_of_every_small_pattern():
    for bits in itertools.product((0, 1), repeat=8):
        array = np.array(bits).reshape(2, 2, 2)
        box = bounding_box(array)
        if not any(bits):
            assert box is None
            continue
        index = np.argwhere(array)
        assert [(part.start, part.stop - 1) for part in box] == list(
            zip(index.min(0).tolist(), index.max(0).tolist(), strict=True)
        )
