"""Prepared volumes against nnU-Net's own preprocessor, value by value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.importers.nnunet_training import Design, balls, quiet, save_nifti, save_untrained
from wetread.build.importers import ImportOptions
from wetread.build.importers.nnunet_plans import open_folder
from wetread.build.importers.nnunet_recipe import Trained, derive_recipe
from wetread.inference.prepare import prepare
from wetread.inference.windows import even_starts
from wetread.nifti import read_nifti

pytestmark = pytest.mark.peer
pytest.importorskip("nnunetv2")

TRAINED = Trained("3d_fullres", "nnUNetTrainer", None, "checkpoint")
TORCH = {"resampling_fn_data": "resample_torch_fornnunet", "resampling_fn_data_kwargs": {"is_seg": False},
         "resampling_fn_probabilities": "resample_torch_fornnunet",
         "resampling_fn_probabilities_kwargs": {"is_seg": False}}  # fmt: skip


@pytest.mark.parametrize(
    "reader", ["SimpleITKIO", "NibabelIO", "SimpleITKIOWithReorient", "NibabelIOWithReorient"]
)
@pytest.mark.parametrize(
    ("names", "shape", "spacing", "target", "transpose", "changes"),
    [
        (("CT",), (30, 33, 41), (1.2, 1.0, 0.8), (1.0, 1.0, 1.0), (0, 1, 2), {}),
        (("T1", "CT"), (12, 33, 41), (5.0, 1.0, 0.8), (1.0, 1.0, 1.5), (2, 0, 1), {}),
        (("T1", "T2"), (30, 33, 41), (1.2, 1.0, 0.8), (0.9, 4.0, 1.1), (1, 2, 0), {}),
        (("CT", "rescale"), (30, 33, 14), (1.2, 1.0, 4.0), (1.5, 1.5, 5.5), (0, 1, 2), {}),
        (("CT",), (12, 33, 41), (5.0, 1.0, 0.8), (1.0, 1.2, 1.0), (0, 1, 2), TORCH),
    ],
)  # fmt: skip
def test_preparing(
    tmp_path: Path,
    reader: str,
    names: tuple[str, ...],
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    target: tuple[float, float, float],
    transpose: tuple[int, int, int],
    changes: dict[str, Any],
) -> None:
    folder = save_untrained(Design(channels=names, transpose=transpose), tmp_path / "m")
    plans = json.loads((folder / "plans.json").read_text())
    plan = plans["configurations"]["3d_fullres"]
    plan.update(changes, spacing=list(target))
    plans["image_reader_writer"] = reader
    if "rescale" in names:
        plan["normalization_schemes"][1] = "RescaleTo01Normalization"
    (folder / "plans.json").write_text(json.dumps(plans))
    images, _ = balls(shape, spacing, len(names), seed=5)
    files = [
        save_nifti(tmp_path / f"case_{i:04d}.nii.gz", image, spacing, "ILA") for i, image in enumerate(images)
    ]
    with quiet(tmp_path):
        from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        manager = PlansManager(plans)
        if (
            reader == "SimpleITKIOWithReorient"
        ):  # nnU-Net's own search for readers does not look into this file
            from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIOWithReorient as Reader
        else:
            Reader = manager.image_reader_writer_class
        data, properties = Reader().read_images([str(path) for path in files])
        expected, _, _ = DefaultPreprocessor(verbose=False).run_case_npy(
            data, None, properties, manager, manager.get_configuration("3d_fullres"),
            json.loads((folder / "dataset.json").read_text()),
        )  # fmt: skip
    recipe = derive_recipe(open_folder(folder), TRAINED, ImportOptions()).recipe
    volumes = [read_nifti(path)[0] for path in files]
    found, _ = prepare(recipe, [volume.voxels for volume in volumes], volumes[0].grid, threads=1)
    assert found.shape == expected.shape
    # float32 of values up to 4, through splines whose weights add up to 3 in magnitude
    np.testing.assert_allclose(found, expected, atol=3e-5)


@pytest.mark.parametrize("size", range(32, 200, 7))
@pytest.mark.parametrize("patch", [32, 31, 20])
def test_window_starts(size: int, patch: int) -> None:
    from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window

    (steps,) = compute_steps_for_sliding_window((size,), (patch,), 0.5)
    assert even_starts(size, patch, patch / 2) == steps
