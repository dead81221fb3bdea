"""Small nnU-Net models, trained with the real nnunetv2 on synthetic images of bright balls.

Images are noise of about −60 with balls of 60 (label 1, organ) and 160 (label 2, tumour), in a box around which
everything is zero. One training takes some seconds; variants of it edit the plans beside its weights.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

NAME = "Dataset777_Balls"


@dataclass(frozen=True)
class Design:
    """What a model is trained on.

    Attributes:
        channels: names, which choose nnU-Net's normalisation.
        labels: as in dataset.json.
        spacing: [z, y, x] of the training images in mm, of the plans before transposing.
        shape: [z, y, x] of the training images.
        patch: of the network, after transposing.
        strides: of the encoder's stages.
        transpose: transpose_forward.
    """

    channels: tuple[str, ...] = ("CT",)
    labels: tuple[tuple[str, Any], ...] = (("background", 0), ("organ", 1), ("tumour", 2))
    order: tuple[int, ...] = ()
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    shape: tuple[int, int, int] = (40, 48, 44)
    patch: tuple[int, int, int] = (32, 32, 32)
    strides: tuple[tuple[int, int, int], ...] = ((1, 1, 1), (2, 2, 2), (2, 2, 2))
    transpose: tuple[int, int, int] = (0, 1, 2)


def balls(
    shape: Sequence[int], spacing: Sequence[float], channels: int = 1, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Images (channels, z, y, x) and labels (z, y, x) on a grid of the spacing in mm."""
    rng = np.random.default_rng(seed)
    extent = np.array(shape) * spacing
    place = np.stack(
        np.meshgrid(*(np.arange(n) * s for n, s in zip(shape, spacing, strict=True)), indexing="ij")
    )
    labels = np.zeros(shape, np.uint8)
    for label, radius in ((1, 11.0), (2, 6.0), (1, 8.0), (2, 7.0)):
        centre = rng.uniform(0.25, 0.75, 3) * extent
        distance = np.sqrt(((place - centre[:, None, None, None]) ** 2).sum(axis=0))
        labels[distance < radius] = label
    images = []
    for channel in range(channels):
        level = np.array([-60.0, 60.0, 160.0]) if channel % 2 == 0 else np.array([20.0, 90.0, -50.0])
        image = level[labels] + rng.normal(0, 20, shape)
        inside = np.zeros(shape, bool)
        inside[3:-2, 4:-3, 2:-5] = True
        images.append(np.where(inside, np.round(image) + 1e-3, 0.0).astype(np.float32))
    return np.stack(images), labels


def save_nifti(path: Path, array: NDArray[Any], spacing: Sequence[float], axes: str = "LPS") -> Path:
    """Writes [k, j, i] voxels; ``axes``: directions in which i, j and k increase."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(array)
    image.SetSpacing([float(s) for s in spacing[::-1]])
    unit = {"L": (1, 0, 0), "P": (0, 1, 0), "S": (0, 0, 1), "R": (-1, 0, 0), "A": (0, -1, 0), "I": (0, 0, -1)}
    image.SetDirection(np.array([unit[letter] for letter in axes], float).T.ravel().tolist())
    image.SetOrigin([-30.5, 12.25, 100.0])
    sitk.WriteImage(image, str(path))
    return path


def plans_of(design: Design) -> dict[str, Any]:
    """Plans as nnU-Net's planner writes them, for a small network."""
    t = design.transpose
    spacing = [design.spacing[axis] for axis in t]
    ct = [name.casefold() == "ct" for name in design.channels]
    kwargs = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(design.patch),
        "median_image_size_in_voxels": [design.shape[axis] for axis in t],
        "spacing": spacing,
        "normalization_schemes": ["CTNormalization" if c else "ZScoreNormalization" for c in ct],
        "use_mask_for_norm": [not c for c in ct],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": kwargs,
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {**kwargs, "order": 1},
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": 3,
                "features_per_stage": [8, 16, 16],
                "conv_op": "torch.nn.modules.conv.Conv3d",
                "kernel_sizes": [
                    [1 if s[0] == 1 and 1 in design.strides[1] else 3, 3, 3] for s in design.strides
                ],
                "strides": [list(s) for s in design.strides],
                "n_conv_per_stage": [1, 1, 1],
                "n_conv_per_stage_decoder": [1, 1],
                "conv_bias": True,
                "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": False,
    }
    return {
        "dataset_name": NAME,
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": spacing,
        "original_median_shape_after_transp": [design.shape[axis] for axis in t],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": list(t),
        "transpose_backward": [t.index(axis) for axis in range(3)],
        "configurations": {"3d_fullres": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            str(c): {
                "max": 240.0, "mean": 94.0, "median": 80.0, "min": -20.0, "percentile_00_5": 8.0,
                "percentile_99_5": 211.0, "std": 54.0,
            }
            for c in range(len(design.channels))
        },
    }  # fmt: skip


def dataset_of(design: Design) -> dict[str, Any]:
    """The data set's description."""
    told: dict[str, Any] = {
        "channel_names": {str(i): name for i, name in enumerate(design.channels)},
        "labels": dict(design.labels),
        "numTraining": 4,
        "file_ending": ".nii.gz",
    }
    if design.order:
        told["regions_class_order"] = list(design.order)
    return told


def save_untrained(design: Design, folder: Path, folds: Sequence[int] = (0,)) -> Path:
    """The folder's JSON files, with empty folds."""
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans_of(design)))
    (folder / "dataset.json").write_text(json.dumps(dataset_of(design)))
    for fold in folds:
        (folder / f"fold_{fold}").mkdir()
    return folder


@contextlib.contextmanager
def quiet(root: Path) -> Iterator[None]:
    """nnU-Net's folders and settings for one thread and no processes; its prints are swallowed."""
    import torch

    wanted = {f"nnUNet_{kind}": str(root / kind) for kind in ("raw", "preprocessed", "results")}
    wanted |= {"nnUNet_n_proc_DA": "0", "nnUNet_compile": "f", "nnUNet_def_n_proc": "1", "MPLBACKEND": "Agg"}
    before = {key: os.environ.get(key) for key in wanted}
    threads = torch.get_num_threads()
    os.environ.update(wanted)
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(threads)
        for key, value in before.items():
            if value is None:
                os.environ.pop(key)
            else:
                os.environ[key] = value


def train(root: Path, design: Design, folds: Sequence[int] = (0,), iterations: int = 25) -> Path:
    """Trains with nnU-Net's own trainer, loss, augmentation and preprocessing; returns the model's folder."""
    with quiet(root):
        import torch
        from batchgenerators.utilities.file_and_folder_operations import save_json
        from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
        from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer as Base
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        plans, told = plans_of(design), dataset_of(design)
        manager = PlansManager(plans)
        configuration = manager.get_configuration("3d_fullres")
        home = root / "preprocessed" / NAME
        target = home / configuration.data_identifier
        raw, truth = root / "raw", home / "gt_segmentations"
        for path in (target, raw, truth):
            path.mkdir(parents=True, exist_ok=True)
        save_json(plans, str(home / "nnUNetPlans.json"))
        save_json(told, str(home / "dataset.json"))
        save_json({}, str(home / "dataset_fingerprint.json"))
        names = [f"case_{number}" for number in range(4)]
        for number, name in enumerate(names):
            images, labels = balls(design.shape, design.spacing, len(design.channels), seed=number)
            files = [
                str(save_nifti(raw / f"{name}_{channel:04d}.nii.gz", image, design.spacing))
                for channel, image in enumerate(images)
            ]
            label = str(save_nifti(truth / f"{name}.nii.gz", labels, design.spacing))
            DefaultPreprocessor(verbose=False).run_case_save(
                str(target / name), files, label, manager, configuration, told
            )
        save_json([{"train": names[:3], "val": names[3:]}] * 5, str(home / "splits_final.json"))

        class nnUNetTrainer(Base):
            """Few iterations; the name is the one that checkpoints shall bear."""

            def __init__(self, *args: Any, **kwargs: Any) -> None:
                # the base class records its arguments by the names in its own signature
                super().__init__(*args, **kwargs)
                self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = (
                    2,
                    iterations,
                    1,
                )
                self.initial_lr = 2e-2
                self.logger.plot_progress_png = lambda folder: None

        nnUNetTrainer.__init__.__signature__ = __import__("inspect").signature(Base.__init__)  # type: ignore[attr-defined]
        for fold in folds:
            torch.manual_seed(fold)
            np.random.seed(fold)
            trainer = nnUNetTrainer(
                {**plans, "continue_training": False}, "3d_fullres", fold, told, torch.device("cpu")
            )
            trainer.run_training()
        return Path(trainer.output_folder_base)


def variant(trained: Path, folder: Path, **changes: Any) -> Path:
    """The same weights under edited plans: entries of 3d_fullres, or of the plans where these have them."""
    shutil.copytree(trained, folder)
    plans = json.loads((folder / "plans.json").read_text())
    configuration = plans["configurations"]["3d_fullres"]
    for key, value in changes.items():
        if key == "transpose":
            plans["transpose_forward"] = list(value)
            plans["transpose_backward"] = [list(value).index(axis) for axis in range(3)]
        elif key in configuration:
            configuration[key] = value
        else:
            assert key in plans
            plans[key] = value
    (folder / "plans.json").write_text(json.dumps(plans))
    return folder


def predict(
    folder: Path, files: Sequence[Path], root: Path, *, mirror: bool, folds: Sequence[int] = (0,)
) -> NDArray[np.uint8]:
    """nnUNetPredictor's own mask, [k, j, i] of the file."""
    with quiet(root):
        import torch
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        predictor = nnUNetPredictor(
            use_mirroring=mirror,
            perform_everything_on_device=False,
            device=torch.device("cpu"),
            allow_tqdm=False,
        )
        predictor.initialize_from_trained_model_folder(str(folder), tuple(folds))
        reader = predictor.plans_manager.image_reader_writer_class()
        image, properties = reader.read_images([str(path) for path in files])
        return np.asarray(predictor.predict_single_npy_array(image, properties), np.uint8)
