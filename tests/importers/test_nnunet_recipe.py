"""From nnU-Net's JSON files to a recipe; needs neither torch nor nnU-Net."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.importers.nnunet_training import Design, save_untrained
from wetread.build.importers import ImportOptions
from wetread.build.importers.nnunet_plans import checkpoints, is_nnunet, open_folder
from wetread.build.importers.nnunet_recipe import Derived, Trained, derive_recipe
from wetread.errors import GraphError, RecipeError
from wetread.recipe import Clip, Crop, MinMax, Normalise, Resample, Scale, Separate, ZScore, load_recipe

TWO = Design(
    channels=("T1", "FLAIR"),
    labels=(("background", 0), ("whole tumour", [1, 2]), ("core", 2)),
    order=(1, 2),
    spacing=(4.0, 1.0, 1.0),
    shape=(14, 48, 44),
    patch=(32, 9, 32),
    transpose=(1, 0, 2),
)


def derive(folder: Path, mirror: bool = True, axes: tuple[int, ...] | None = (0, 1, 2)) -> Derived:
    trained = Trained("3d_fullres", "nnUNetTrainer", axes, "checkpoint_final.pth")
    return derive_recipe(open_folder(folder), trained, ImportOptions(mirror=mirror))


def edited(folder: Path, file: str, edit: Callable[[dict[str, Any]], object]) -> Path:
    data = json.loads((folder / file).read_text())
    edit(data)
    (folder / file).write_text(json.dumps(data))
    return folder


def test_ct(tmp_path: Path) -> None:
    derived = derive(save_untrained(Design(), tmp_path / "m"))
    recipe = derived.recipe
    assert recipe.name == "dataset777_balls-3d_fullres"
    assert recipe.orientation == "kji"
    assert recipe.steps == (
        Crop(nonzero=True),
        Clip(lower=8.0, upper=211.0),
        Normalise(mean=94.0, std=54.0),
        Resample(
            spacing_mm=(1.0, 1.0, 1.0),
            interpolation="cubic",
            boundary="edge",
            limit=True,
            separate=Separate(),
        ),
    )
    assert recipe.restore.of == "logits"
    assert recipe.restore.separate == Separate(anisotropy=3.0, interpolation="nearest")
    assert recipe.tiling.window == (32, 32, 32)
    assert recipe.tiling.stride == (16, 16, 16)
    assert recipe.tiling.peak == "voxel"
    assert recipe.tiling.mirror_axes == (0, 1, 2)
    assert recipe.activation == "softmax"
    assert [(label.index, label.name, label.channels, label.lesion) for label in recipe.labels] == [
        (1, "organ", (1,), False), (2, "tumour", (2,), True),
    ]  # fmt: skip
    assert recipe.task == "lesions"
    assert recipe.channels[0].select.modality == "CT"
    assert load_recipe(json.loads(recipe.model_dump_json())) == recipe


def test_every_derived_field_names_its_key(tmp_path: Path) -> None:
    derived = derive(save_untrained(Design(), tmp_path / "m"))
    assert set(derived.origins) >= {
        "name", "channels", "orientation", "steps.crop", "steps.normalisation", "steps.normalisation.0",
        "steps.resample", "tiling.window", "tiling.stride", "tiling.blending", "tiling.mirror_axes",
        "activation", "restore", "labels", "task",
    }  # fmt: skip
    assert derived.origins["tiling.window"] == "plans.json:configurations.3d_fullres.patch_size"
    assert derived.origins["steps.normalisation.0"] == (
        "plans.json:foreground_intensity_properties_per_channel.0"
    )
    assert "LABEL_CODES" in [notice.code for notice in derived.notices]


def test_two_channels_with_regions_transposed(tmp_path: Path) -> None:
    derived = derive(save_untrained(TWO, tmp_path / "m"))
    recipe = derived.recipe
    assert recipe.orientation == "jki"
    assert recipe.steps[1] == ZScore(filled=True)
    assert recipe.resample is not None
    assert recipe.resample.spacing_mm == (1.0, 4.0, 1.0)
    assert recipe.tiling.stride == (16, 4.5, 16)
    assert recipe.activation == "sigmoid"
    assert [(label.index, label.name, label.channels) for label in recipe.labels] == [
        (1, "whole tumour", (0,)), (2, "core", (1,)),
    ]  # fmt: skip
    assert [channel.select.file_suffix for channel in recipe.channels] == ["_0000", "_0001"]
    assert {n.code for n in derived.notices} == {"REGIONS_OVERLAP", "CHANNELS_BY_SUFFIX", "LABEL_CODES"}


def test_schemes_for_each_channel_masks_first(tmp_path: Path) -> None:
    design = Design(channels=("CT", "a", "b", "c", "d", "e"))
    schemes = ["CT", "RescaleTo01", "ZScore", "No", "RGBTo01", "ZScore"]

    def edit(plans: dict[str, Any]) -> None:
        plan = plans["configurations"]["3d_fullres"]
        plan["normalization_schemes"] = [f"{name}Normalization" for name in schemes]
        plan["use_mask_for_norm"] = [False, True, False, False, False, True]

    recipe = derive(edited(save_untrained(design, tmp_path / "m"), "plans.json", edit)).recipe
    assert recipe.steps[1:-1] == (
        ZScore(channels=(5,), filled=True),
        ZScore(channels=(2,)),
        MinMax(channels=(1,)),
        Scale(channels=(4,), lower=0, upper=255),
        Clip(channels=(0,), lower=8.0, upper=211.0),
        Normalise(channels=(0,), mean=94.0, std=54.0),
    )


def test_mirroring_comes_from_the_checkpoint_unless_it_is_declined(tmp_path: Path) -> None:
    folder = save_untrained(Design(), tmp_path / "m")
    assert derive(folder, axes=(1, 2)).recipe.tiling.mirror_axes == (1, 2)
    assert derive(folder, axes=None).recipe.tiling.mirror_axes == ()
    declined = derive(folder, mirror=False)
    assert declined.recipe.tiling.mirror_axes == ()
    assert "no mirroring" in declined.origins["tiling.mirror_axes"]


def test_an_ignore_label_is_none(tmp_path: Path) -> None:
    design = replace(Design(), labels=(*Design().labels, ("ignore", 3)))
    recipe = derive(save_untrained(design, tmp_path / "m")).recipe
    assert [label.name for label in recipe.labels] == ["organ", "tumour"]
    assert recipe.output_channels == 3


def test_a_configuration_inherits(tmp_path: Path) -> None:
    def edit(plans: dict[str, Any]) -> None:
        plans["configurations"]["base"] = plans["configurations"]["3d_fullres"]
        plans["configurations"]["3d_fullres"] = {"inherits_from": "base", "patch_size": [48, 32, 32]}

    derived = derive(edited(save_untrained(Design(), tmp_path / "m"), "plans.json", edit))
    assert derived.recipe.tiling.window == (48, 32, 32)
    assert derived.origins["tiling.window"] == "plans.json:configurations.3d_fullres.patch_size"
    assert "configurations.base.spacing" in derived.origins["steps.resample"]


def test_reorienting_readers_give_patient_directions(tmp_path: Path) -> None:
    def edit(plans: dict[str, Any]) -> None:
        plans["image_reader_writer"] = "NibabelIOWithReorient"
        plans["transpose_forward"], plans["transpose_backward"] = [2, 0, 1], [1, 2, 0]

    assert (
        derive(edited(save_untrained(Design(), tmp_path / "m"), "plans.json", edit)).recipe.orientation
        == "RSA"
    )


def test_resampling_by_torch_is_linear(tmp_path: Path) -> None:
    def edit(plans: dict[str, Any]) -> None:
        plan = plans["configurations"]["3d_fullres"]
        for key in ("data", "probabilities"):
            plan[f"resampling_fn_{key}"] = "resample_torch_fornnunet"
            plan[f"resampling_fn_{key}_kwargs"] = {"is_seg": False, "force_separate_z": False}

    recipe = derive(edited(save_untrained(Design(), tmp_path / "m"), "plans.json", edit)).recipe
    assert recipe.resample is not None
    assert (recipe.resample.interpolation, recipe.resample.separate) == ("linear", None)
    assert recipe.restore.separate is None


def _configuration(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda plans: plans["configurations"]["3d_fullres"].update(changes)


@pytest.mark.parametrize(
    ("file", "edit", "what"),
    [
        ("plans.json", _configuration(patch_size=[64, 64]), "2D configuration"),
        ("plans.json", _configuration(previous_stage="3d_lowres"), "second stage of a cascade"),
        ("plans.json", _configuration(preprocessor_name="Mine"), "preprocessor_name is 'Mine'"),
        ("plans.json", _configuration(normalization_schemes=["MyNorm"]), "'MyNorm' is not known"),
        ("plans.json", _configuration(resampling_fn_data="mine"), "'mine' is not known"),
        ("plans.json", _configuration(resampling_fn_data_kwargs={"order": 2}), "order 2"),
        ("plans.json", _configuration(use_mask_for_norm=[]), "0 masks for 1 channels"),
        ("plans.json", _configuration(inherits_from="3d_fullres"), "inherits from itself"),
        ("plans.json", lambda p: p.update(image_reader_writer="Tiff3DIO"), "image_reader_writer is 'Tiff3DIO'"),
        ("plans.json", lambda p: p.update(transpose_backward=[1, 2, 0]), "inverse"),
        ("plans.json", lambda p: p.pop("dataset_name"), "'dataset_name' is missing"),
        ("plans.json", lambda p: p["configurations"]["3d_fullres"].pop("spacing"), "'spacing' is missing"),
        (
            "plans.json", lambda p: p["foreground_intensity_properties_per_channel"]["0"].pop("mean"),
            "CTNormalization cannot be derived",
        ),
        ("dataset.json", lambda d: d["labels"].update(tumour=4), "labels must be 0, 1, 2"),
        ("dataset.json", lambda d: d["labels"].pop("background"), "background 0"),
        ("dataset.json", lambda d: d["labels"].update(organ=[1, 2]), "regions_class_order"),
        ("dataset.json", lambda d: d.update(channel_names={"1": "CT"}), "expected names for 0, 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_derived_is_refused_by_key(
    tmp_path: Path, file: str, edit: Callable[[dict[str, Any]], object], what: str
) -> None:
    folder = edited(save_untrained(Design(), tmp_path / "m"), file, edit)
    with pytest.raises(RecipeError, match=what) as caught:
        derive(folder)
    assert file in caught.value.where


def test_folders_are_told_by_names(tmp_path: Path) -> None:
    model = save_untrained(Design(), tmp_path / "results" / "Dataset777_Balls" / "a__b__3d_fullres")
    assert is_nnunet(model)
    assert is_nnunet(tmp_path / "results")
    assert open_folder(tmp_path / "results" / "Dataset777_Balls").path == model
    assert not is_nnunet(model / "fold_0")
    assert not is_nnunet(model / "plans.json")


def test_several_models_are_listed(tmp_path: Path) -> None:
    for name in ("t__p__3d_fullres", "t__p__3d_lowres"):
        save_untrained(Design(), tmp_path / name)
    with pytest.raises(GraphError, match=r"2 trained models: t__p__3d_fullres, t__p__3d_lowres"):
        open_folder(tmp_path)


def test_a_damaged_plan_is_named(tmp_path: Path) -> None:
    folder = save_untrained(Design(), tmp_path / "m")
    (folder / "plans.json").write_text("{")
    with pytest.raises(GraphError, match="no JSON") as caught:
        open_folder(folder)
    assert "plans.json" in caught.value.where


def test_folds_are_chosen_and_missing_ones_named(tmp_path: Path) -> None:
    folder = save_untrained(Design(), tmp_path / "m", folds=(0, 1, 10))
    with pytest.raises(GraphError, match="no checkpoint at all"):
        checkpoints(folder, (), "checkpoint_final.pth")
    for fold in (0, 1, 10):
        (folder / f"fold_{fold}" / "checkpoint_final.pth").touch()
    assert list(checkpoints(folder, (), "checkpoint_final.pth")) == ["0", "1", "10"]
    assert list(checkpoints(folder, (10, 0), "checkpoint_final.pth")) == ["10", "0"]
    with pytest.raises(GraphError, match=r"fold 3 has no checkpoint_final\.pth; folds that have: 0, 1, 10"):
        checkpoints(folder, (3,), "checkpoint_final.pth")
    with pytest.raises(GraphError, match=r"found fold_0/checkpoint_final\.pth"):
        checkpoints(folder, (), "checkpoint_best.pth")
