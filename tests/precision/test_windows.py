"""Calibration windows are the windows that a reading would run, and no others."""

import nibabel
import numpy as np
import pytest

from tests.conftest import ball_recipe
from wetread.errors import NotFiniteError, SelectionError, StudyNotFoundError
from wetread.inference import Sweep
from wetread.inference.windows import Window
from wetread.precision.windows import calibration_windows, drawn
from wetread.reading.flow import load_inputs
from wetread.recipe import load_recipe


def nifti(path, array, spacing=(1.0, 1.0, 1.0)):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])), path)
    return path


def mr_recipe(**changes):
    return load_recipe(
        {
            "name": "mr",
            "channels": [{"name": "T1", "select": {"modality": "MR"}}],
            "orientation": "RAS",
            "steps": [{"step": "minmax"}],
            "tiling": {"kind": "fitted", "window": [16, 16, 16], "stride": [8, 8, 8]},
            "labels": [{"index": 1, "name": "lesion", "channels": [0]}],
        }
        | changes
    )


@pytest.fixture
def image(tmp_path):
    rng = np.random.default_rng(3)
    return nifti(tmp_path / "case-a.nii.gz", rng.normal(100, 20, (40, 36, 32)).astype(np.float32))


def test_lattice_windows_are_those_of_a_reading(ball_study):
    recipe = load_recipe(ball_recipe())
    found = list(calibration_windows(recipe, [ball_study], per_case=5, threads=1))
    assert [w.case for w in found] == [str(ball_study)] * 5
    item = load_inputs(ball_study, recipe).loaded[0]
    sweep = Sweep(recipe, item.volume.grid, 1, "CT")
    sweep.add(0, item.volume.voxels)
    run = []
    for window in sweep.ready():
        array = np.empty((1, 16, 32, 32), np.float32)
        sweep.fill(window, array)
        run.append(array)
    for window in found:
        assert any(np.array_equal(window.array, array) for array in run)
    assert any(window.array.max() > 0 for window in found)


def test_only_windows_of_the_place(tmp_path):
    """Windows outside the body would teach the ranges of air."""
    from wetread.bench.phantom import make_phantom

    phantom = make_phantom(5, shape=(40, 96, 96), spacing_mm=(4.0, 4.0, 4.0))
    path = nifti(tmp_path / "ct.nii.gz", phantom.hu.transpose(2, 1, 0).astype(np.int16), (4.0, 4.0, 4.0))
    recipe = load_recipe(
        ball_recipe(
            place={"kind": "lungs", "margin_mm": 8.0},
            steps=[
                {"step": "clip", "lower": -600, "upper": 400},
                {"step": "resample", "spacing_mm": [4.0, 4.0, 4.0]},
            ],
            tiling={"kind": "lattice", "window": [8, 16, 16], "stride": [8, 16, 16]},
        )
    )
    near = list(calibration_windows(recipe, [path], per_case=10_000, threads=1))
    everywhere = list(
        calibration_windows(
            recipe.model_copy(update={"place": recipe.place.model_copy(update={"kind": "all"})}),
            [path],
            per_case=10_000,
            threads=1,
        )
    )
    assert 0 < len(near) < len(everywhere)


def test_fitted_windows_of_several_cases_seeded(image, tmp_path):
    other = nifti(tmp_path / "case-b.nii.gz", np.random.default_rng(4).random((48, 40, 40), np.float32))
    recipe = mr_recipe()
    first = list(calibration_windows(recipe, [image, other], per_case=4, seed=1, threads=1))
    again = list(calibration_windows(recipe, [other, image], per_case=4, seed=1, threads=1))
    assert [w.case for w in first] == [str(image)] * 4 + [str(other)] * 4
    assert all(w.array.shape == (1, 16, 16, 16) for w in first)
    for a, b in zip(first, again[4:] + again[:4], strict=True):
        np.testing.assert_array_equal(a.array, b.array)
    seeded = list(calibration_windows(recipe, [image], per_case=4, seed=2, threads=1))
    assert any(not np.array_equal(a.array, b.array) for a, b in zip(first, seeded, strict=False))


def test_whole_recipe_gives_the_case(image):
    recipe = mr_recipe(tiling={"kind": "whole", "multiple": [8, 8, 8]})
    (window,) = calibration_windows(recipe, [image], threads=1)
    assert window.array.shape == (1, 40, 40, 32)


def test_channels_in_the_recipes_order_and_truth_left_out(tmp_path):
    rng = np.random.default_rng(0)
    case = tmp_path / "case"
    for suffix, mean in (("0000", 10.0), ("0001", 1000.0)):
        nifti(case / f"a_{suffix}.nii.gz", rng.normal(mean, 1, (16, 16, 16)).astype(np.float32))
    nifti(case / "truth.nii.gz", np.zeros((16, 16, 16), np.uint8))
    recipe = mr_recipe(
        channels=[
            {"name": "T2", "select": {"file_suffix": "_0001"}},
            {"name": "T1", "select": {"file_suffix": "_0000"}},
        ],
        steps=[],
    )
    (window,) = calibration_windows(recipe, [case], threads=1)
    assert window.array.shape == (2, 16, 16, 16)
    np.testing.assert_allclose(window.array.mean((1, 2, 3)), [1000, 10], rtol=0.05)


def test_truth_beside_a_dicom_series(ball_study, tmp_path):
    import shutil

    case = shutil.copytree(ball_study, tmp_path / "case")
    nifti(case / "truth.nii.gz", np.zeros((4, 4, 4), np.uint8))
    assert list(calibration_windows(load_recipe(ball_recipe()), [case], per_case=1, threads=1))


def test_mirrored_recipes_see_flipped_windows(image):
    recipe = mr_recipe(
        tiling={"kind": "fitted", "window": [40, 36, 32], "stride": [40, 36, 32], "mirror_axes": [0, 1, 2]}
    )
    plain = next(iter(calibration_windows(mr_recipe(tiling={"kind": "whole"}), [image], threads=1))).array
    found = [
        next(iter(calibration_windows(recipe, [image], seed=seed, threads=1))).array for seed in range(8)
    ]
    flips = [(), (1,), (2,), (3,), (1, 2), (1, 3), (2, 3), (1, 2, 3)]
    seen = [next(f for f in flips if np.array_equal(np.flip(plain, f), array)) for array in found]
    assert len(set(seen)) > 2


def test_nan_in_a_case_names_the_case(image, tmp_path):
    """Planted fault: one calibration case corrupted with NaN."""
    array = np.ones((24, 24, 24), np.float32)
    array[3, 4, 5] = np.nan
    bad = nifti(tmp_path / "case-bad.nii.gz", array)
    with pytest.raises(NotFiniteError, match=r"case-bad\.nii\.gz") as caught:
        list(calibration_windows(mr_recipe(), [image, bad], threads=1))
    assert caught.value.where == str(bad)


def test_faults_name_the_case(tmp_path):
    with pytest.raises(StudyNotFoundError, match="absent"):
        list(calibration_windows(mr_recipe(), [tmp_path / "absent"]))
    air = nifti(tmp_path / "air.nii.gz", np.full((32, 32, 32), -1000, np.int16), (4.0, 4.0, 4.0))
    recipe = load_recipe(ball_recipe(place={"kind": "lungs"}))
    with pytest.raises(SelectionError, match=r"air\.nii\.gz"):
        list(calibration_windows(recipe, [air], threads=1))


@pytest.mark.parametrize(("count", "wanted"), [(3, 8), (8, 8), (9, 8), (107, 8), (17, 16)])
def test_draw_spreads_over_the_order(count, wanted):
    windows = [Window(i, (i, 0, 0), (0, 0, 0)) for i in range(count)]
    chosen = [w.ordinal for w in drawn(windows, wanted, np.random.default_rng(0))]
    assert len(chosen) == min(count, wanted) == len(set(chosen))
    assert chosen == sorted(chosen)
    if count > wanted:
        assert max(np.diff([-1, *chosen, count])) <= 2 * -(-count // wanted)
