"""Recipes derived from MONAI's configurations, without torch or MONAI."""

import json
import zipfile
from typing import Any

import pytest

from tests.importers.bundles import POSTPROCESSING, PREPROCESSING, configuration, description, write_bundle
from wetread.build.importers import ImportOptions
from wetread.build.importers.find import FORMATS
from wetread.build.importers.monai_config import Component, Config, Unknown
from wetread.build.importers.monai_files import bundle_files
from wetread.build.importers.monai_recipe import derive_recipe
from wetread.errors import GraphError, RecipeError


def derive(metadata: dict[str, Any] | None = None, **changes: Any):
    config = Config(configuration(**changes), "inference.json")
    return derive_recipe(
        metadata or description(["background", "liver", "tumour"]), config, ImportOptions(), "b"
    )


def before(*transforms: dict[str, Any], keep: int = 3) -> dict[str, Any]:
    return {"_target_": "Compose", "transforms": [*PREPROCESSING[:keep], *transforms]}


def one(name: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": name, "keys": "image", **arguments}


def steps(*transforms: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    recipe, _, _ = derive(preprocessing=before(*transforms), **more)
    return [step.model_dump(exclude_defaults=True) | {"step": step.step} for step in recipe.steps]


# ---- the configuration language ----------------------------------------------------------------------------
def test_references_macros_and_arithmetic():
    data = {
        "a": 3,
        "b": "$@a * 2 + 1",
        "c": ["@a", "@b", "$[@a] * 3"],
        "d": {"x": {"y": 5}, "z": "@d#x#y"},
        "e": "@d::x::y",
        "f": "%other.json#roi",
        "g": {"_target_": "UNet", "out": "@b", "device": "$torch.device('cpu')"},
        "h": "@g::out",
        "i": "$@a if @b > 5 else 0",
        "j": [1, {"_target_": "X", "_disabled_": True}, 2],
        "k": "$-@a / 2",
        "l": {"m": 1, "n": "@#m"},
    }
    config = Config(data, "inference.json", {"other.json": {"roi": [96, 96, "@n"], "n": 64}})
    assert config.get("b") == 7
    assert config.get("c") == [3, 7, [3, 3, 3]]
    assert config.get("d")["z"] == config.get("e") == 5
    assert config.get("f") == [96, 96, 64]
    assert config.get("h") == 7
    assert config.get("i") == 3
    assert config.get("j") == [1, 2]
    assert config.get("k") == -1.5
    assert config.get("l")["n"] == 1
    network = config.get("g")
    assert isinstance(network, Component)
    assert isinstance(network.arguments["device"], Unknown)
    with pytest.raises(RecipeError, match=r"torch\.device") as caught:
        network.get("device")
    assert "inference.json: g::device" in str(caught.value)


def test_expressions_are_never_executed(tmp_path):
    witness = tmp_path / "witness"
    for text in (
        f"$open({str(witness)!r}, 'w').write('x')",
        f"$__import__('pathlib').Path({str(witness)!r}).touch()",
        f"$[c for c in ().__class__.__base__.__subclasses__()] or open({str(witness)!r}, 'w')",
        "$(lambda: 1)()",
        "$'x' * 10 ** 9",
        "$[0] * 1000000000",
    ):
        assert isinstance(Config({"a": text}, "c").get("a"), Unknown), text
    assert not witness.exists()


def test_circles_and_dead_ends_are_named():
    with pytest.raises(RecipeError, match="circle"):
        Config({"a": "@b", "b": "@a"}, "c").get("a")
    with pytest.raises(RecipeError, match=r"leads nowhere.*'size'"):
        Config({"a": "@roi::size", "roi": {}}, "c").get("a")
    lots = {"x0": [1]} | {f"x{n}": [f"@x{n - 1}"] * 10 for n in range(1, 20)}
    with pytest.raises(RecipeError, match="without end"):
        Config(lots, "c").get("x19")


# ---- recipes -----------------------------------------------------------------------------------------------
def test_the_recipe_and_where_it_came_from():
    recipe, derived, notices = derive()
    assert (recipe.name, recipe.version, recipe.orientation) == ("organs-of-the-abdomen", "0.5.4", "RAS")
    assert [step.step for step in recipe.steps] == ["resample", "clip", "scale"]
    assert recipe.steps[0].model_dump()["spacing_mm"] == (1.5, 1.5, 2.0)
    assert recipe.steps[0].model_dump()["alignment"] == "first"
    tiling = recipe.tiling
    assert (tiling.window, tiling.stride, tiling.last) == ((32, 32, 32), (16, 16, 16), "clamped")
    assert (tiling.blending, tiling.sigma, tiling.floor) == ("gaussian", 0.125, 0.001)
    assert (recipe.activation, recipe.restore.of, recipe.restore.interpolation) == (
        "softmax", "probabilities", "linear",
    )  # fmt: skip
    assert [(label.index, label.name, label.channels, label.lesion) for label in recipe.labels] == [
        (1, "liver", (1,), False), (2, "tumour", (2,), True),
    ]  # fmt: skip
    assert recipe.channels[0].select.modality == "CT"
    assert derived["steps[0]"] == "inference.json: preprocessing::transforms::3 (Spacingd)"
    assert derived["tiling"] == "inference.json: inferer (SlidingWindowInferer)"
    irrelevant = [n.text for n in notices if n.code == "TRANSFORM_IRRELEVANT"]
    assert any("EnsureChannelFirstd" in text for text in irrelevant)
    assert not any("SaveImaged" in text for text in irrelevant), "it is disabled"


def test_intensity_transforms():
    assert steps(one("NormalizeIntensityd", nonzero=True, channel_wise=True)) == [
        {"step": "zscore", "nonzero": True}
    ]
    assert steps(one("NormalizeIntensityD", subtrahend=10, divisor=5)) == [
        {"step": "normalise", "mean": 10.0, "std": 5.0}
    ]
    assert steps(one("ScaleIntensityDict", minv=-1, maxv=1)) == [
        {"step": "minmax"}, {"step": "scale", "lower": 0, "upper": 1, "to_lower": -1.0},
    ]  # fmt: skip
    assert steps(one("ScaleIntensityRanged", a_min=0, a_max=10, b_min=0, b_max=1)) == [
        {"step": "scale", "lower": 0, "upper": 10}
    ]
    percentiles = one("ScaleIntensityRangePercentilesd", lower=1, upper=99, b_min=0, b_max=1, clip=True)
    assert steps(percentiles) == [
        {"step": "minmax", "lower_percentile": 1.0, "upper_percentile": 99.0, "clip": True}
    ]
    assert steps(one("ShiftIntensityd", offset=-3)) == [
        {"step": "scale", "lower": 0, "upper": 1, "to_lower": -3.0, "to_upper": -2.0}
    ]


def test_several_files_joined_are_channels_with_steps_of_their_own():
    metadata = description(["background", "infarct"], ["t1", "flair"])
    transforms = {"_target_": "Compose", "transforms": [
        {"_target_": "LoadImaged", "keys": ["t1", "flair"]},
        {"_target_": "NormalizeIntensityd", "keys": "flair", "subtrahend": 4, "divisor": 2},
        {"_target_": "ConcatItemsd", "keys": ["t1", "flair"], "name": "image", "dim": 0},
        {"_target_": "NormalizeIntensityd", "keys": "image", "subtrahend": [1, 2], "divisor": [3, 4]},
    ]}  # fmt: skip
    recipe, _, notices = derive(metadata, preprocessing=transforms)
    assert [channel.name for channel in recipe.channels] == ["t1", "flair"]
    assert [channel.select.file_suffix for channel in recipe.channels] == ["_0000", "_0001"]
    assert [step.model_dump()["channels"] for step in recipe.steps] == [(1,), (0,), (1,)]
    assert recipe.orientation == "ijk"
    assert "CHANNELS_BY_SUFFIX" in {notice.code for notice in notices}


def test_endings():
    discrete = one("AsDiscreted", argmax=True) | {"keys": "pred"}
    invert = {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "nearest_interp": False}
    recipe, _, _ = derive(postprocessing={"_target_": "Compose", "transforms": [invert, discrete]})
    assert (recipe.activation, recipe.restore.of) == ("softmax", "logits")
    recipe, _, notices = derive(
        postprocessing=[POSTPROCESSING[0], discrete, invert | {"nearest_interp": True}]
    )
    assert (recipe.restore.of, recipe.restore.interpolation) == ("probabilities", "nearest")
    assert "NEAREST_TIES" in {notice.code for notice in notices}
    regions = description(["tumour core", "whole tumour"])
    sigmoid = {"_target_": "Activationsd", "keys": "pred", "sigmoid": True}
    cut = {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.4}
    recipe, _, notices = derive(regions, postprocessing=[sigmoid, invert, cut])
    assert [(label.index, label.channels, label.threshold) for label in recipe.labels] == [
        (1, (0,), 0.4), (2, (1,), 0.4),
    ]  # fmt: skip
    assert "REGIONS_OVERLAP" in {notice.code for notice in notices}


@pytest.mark.parametrize(
    ("transform", "says"),
    [
        (one("HistogramNormalized"), "HistogramNormalized has no counterpart"),
        (one("Lambdad", func="$lambda x: x"), "Lambdad has no counterpart"),
        (one("Spacingd", pixdim=[1, 1, -1]), "keeps the spacing of an axis"),
        (one("Spacingd", pixdim=[1, 1, 1], diagonal=True), "diagonal"),
        (one("Spacingd", pixdim=[1, 1, 1], mode=3), "interpolates by 3"),
        (one("Spacingd", pixdim="$os.environ['SPACING']"), "is not computed"),
        (one("CropForegroundd", select_fn="$lambda x: x.abs() > 0"), "selects by"),
        (one("CropForegroundd", margin=4), "margin of 4"),
        (one("SpatialPadd", spatial_size=[48, 32, 32]), "a recipe pads to the window only"),
        (one("CastToTyped", dtype="$torch.uint8"), "casts to"),
        (one("Resized", spatial_size=[32, 32, 32]), "interpolates by 'area'"),
        (one("NormalizeIntensityd", nonzero=True, subtrahend=3), "mixes"),
    ],
)
def test_what_cannot_be_expressed_is_named_with_its_key(transform, says):
    with pytest.raises(RecipeError, match=says) as caught:
        steps(transform)
    assert "inference.json: preprocessing::transforms::3" in caught.value.where
    assert caught.value.todo


@pytest.mark.parametrize(
    ("changes", "says", "key"),
    [
        ({"inferer": {"_target_": "SliceInferer", "roi_size": [32, 32]}}, "SliceInferer has no counterpart", "inferer"),
        (
            {"inferer": {"_target_": "SlidingWindowInferer", "roi_size": [32, 32, 32], "padding_mode": "reflect"}},
            "pads small volumes by 'reflect'", "inferer",
        ),
        ({"inferer": {"_target_": "SlidingWindowInferer", "roi_size": [32, 32, -1]}}, "roi_size", "inferer"),
        (
            {"postprocessing": [*POSTPROCESSING[:3], {"_target_": "KeepLargestConnectedComponentd", "keys": "pred"}]},
            "KeepLargestConnectedComponentd has no counterpart", "postprocessing::3",
        ),
        ({"preprocessing": "$build_transforms(@spacing)"}, "expected a Compose", "preprocessing"),
    ],
)  # fmt: skip
def test_inferers_and_endings_that_cannot_be_expressed(changes, says, key):
    with pytest.raises(RecipeError, match=says) as caught:
        derive(**changes)
    assert key in caught.value.where


def test_orientation_after_spacing_is_refused():
    order = [*PREPROCESSING[:2], PREPROCESSING[3], PREPROCESSING[2]]
    with pytest.raises(RecipeError, match="comes after a change of the grid"):
        derive(preprocessing={"_target_": "Compose", "transforms": order})


# ---- files -------------------------------------------------------------------------------------------------
def names(path):
    return [form.name for form in FORMATS if form.tells(path)][:1]


def test_folders_and_zips_are_told_and_list_their_files(tmp_path):
    bundle = write_bundle(tmp_path / "bundle", description(["a", "b"]), configuration())
    (bundle / "models" / "model.pt").write_bytes(b"weights")
    assert names(bundle) == ["MONAI bundle"]
    archive = tmp_path / "bundle.zip"
    with zipfile.ZipFile(archive, "w") as target:
        for file in bundle.rglob("*.*"):
            target.write(file, f"bundle-0.5.4/{file.relative_to(bundle)}")
    assert names(archive) == ["MONAI bundle"]
    for files in (bundle_files(bundle), bundle_files(archive)):
        assert files.model == "models/model.pt"
        assert set(files.configs()) == {"metadata.json", "inference.json"}
        with files.file(files.model) as path:
            assert path.read_bytes() == b"weights"
    archive.write_bytes(archive.read_bytes()[:-40])
    with pytest.raises(GraphError, match="no whole zip"):
        bundle_files(archive)


def test_a_bundle_without_weights_or_with_a_broken_configuration(tmp_path):
    bundle = write_bundle(tmp_path / "bundle", description(["a", "b"]), configuration())
    files = bundle_files(bundle)
    with pytest.raises(GraphError, match="holds no weights"):
        _ = files.model
    (bundle / "configs" / "inference.json").write_text(json.dumps(configuration())[:-9])
    with pytest.raises(RecipeError, match="is no JSON") as caught:
        files.configs()
    assert "inference.json" in caught.value.where
