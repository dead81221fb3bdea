"""From nnU-Net's own files to a recipe: every field from a key that is named, or refused.

nnU-Net's order (its DefaultPreprocessor and nnUNetPredictor): arrays as the reader gives them, transposed;
crop to voxels that are not zero; normalise; resample to the spacing of the plans; windows of the patch size
at half steps with Gaussian weights; mirrored passes and folds averaged; logits resampled back to the crop;
argmax, or for regions a sigmoid above 0.5, later regions over earlier ones; background outside the crop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from wetread.build.importers.base import ImportOptions
from wetread.build.importers.naming import LESION, private_label, slug
from wetread.build.importers.nnunet_plans import DATASET, PLANS, Configuration, Folder
from wetread.errors import Notice, RecipeError
from wetread.recipe import (
    Channel,
    Clip,
    Crop,
    Label,
    MinMax,
    Normalise,
    Recipe,
    Resample,
    Restore,
    Scale,
    Selector,
    Separate,
    Step,
    Tiling,
    ZScore,
)

_READERS = {
    "SimpleITKIO": "kji",
    "NibabelIO": "kji",
    "SimpleITKIOWithReorient": "SAR",
    "NibabelIOWithReorient": "SAR",
}
_ORDERS = {0: "nearest", 1: "linear", 3: "cubic"}
_PREDICTOR = "nnUNetPredictor: default"


@dataclass(frozen=True)
class Trained:
    """What a checkpoint says of its training.

    Attributes:
        configuration: such as ``3d_fullres``.
        trainer: class name.
        mirror_axes: spatial axes of the network that may be mirrored at inference, None for none.
        where: the checkpoint's file.
    """

    configuration: str
    trainer: str
    mirror_axes: tuple[int, ...] | None
    where: str


@dataclass
class Derived:
    """A recipe, where each of its fields came from, and what a user should know of it."""

    recipe: Recipe
    origins: dict[str, str] = field(default_factory=dict)
    notices: list[Notice] = field(default_factory=list)


def derive_recipe(folder: Folder, trained: Trained, options: ImportOptions) -> Derived:
    """The recipe of a trained 3D model.

    Args:
        folder: plans and data set.
        trained: from the checkpoint.
        options: name, version and mirroring are used.

    Raises:
        RecipeError: a key is missing, or names what wetread cannot do as nnU-Net does it; names the key.
    """
    plan = folder.configuration(trained.configuration)
    _refuse(folder, plan)
    origins: dict[str, str] = {}
    notices: list[Notice] = []
    channels = _channels(folder, origins, notices)
    steps, restore = _steps(folder, plan, len(channels), origins)
    regions = _has_regions(folder)
    labels = _labels(folder, regions, origins, notices)
    origins["orientation"] = f"{PLANS}:image_reader_writer, {PLANS}:transpose_forward"
    origins["activation"] = f"{DATASET}:labels ({'regions' if regions else 'exclusive labels'})"
    origins["task"] = f"{DATASET}:labels (lesions by name)"
    origins["name"] = (
        "options" if options.name else f"{PLANS}:dataset_name, checkpoint:init_args.configuration"
    )
    lesions = any(label.lesion for label in labels)
    try:
        recipe = Recipe(
            name=options.name or slug(f"{folder.plan('dataset_name')}-{plan.name}"),
            version=options.version,
            description=f"nnU-Net {folder.plan('dataset_name')}, {trained.trainer}, {plan.name}",
            task="lesions" if lesions else "segmentation",
            channels=channels,
            orientation=_orientation(folder),
            steps=steps,
            tiling=_tiling(plan, trained, options, origins),
            activation="sigmoid" if regions else "softmax",
            restore=restore,
            labels=labels,
        )
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise RecipeError(
            f"no recipe can be made of these plans: {faults}", where=str(folder.path / PLANS)
        ) from error
    return Derived(recipe, origins, notices)


def _refuse(folder: Folder, plan: Configuration) -> None:
    """What nnU-Net can do and this recipe cannot."""
    where = f"{folder.path / PLANS}: configurations.{plan.name}"
    if len(plan["patch_size"]) != 3:
        raise RecipeError(
            f"this is a 2D configuration (patch_size {plan['patch_size']}), wetread reads 3D ones",
            where=where,
            todo="train 3d_fullres or 3d_lowres and give its folder",
        )
    previous = plan.values.get("previous_stage")
    if previous:
        raise RecipeError(
            f"this is the second stage of a cascade: it needs the labels of {previous!r} as further channels, "
            "which wetread cannot give it yet",
            where=f"{where}.previous_stage",
            todo=f"give the folder of {previous}, or of 3d_fullres",
        )
    for key, found, known in (
        ("preprocessor_name", plan["preprocessor_name"], ("DefaultPreprocessor",)),
        ("label_manager", folder.plans.get("label_manager", "LabelManager"), ("LabelManager",)),
        ("image_reader_writer", folder.plan("image_reader_writer"), tuple(_READERS)),
    ):
        if found not in known:
            raise RecipeError(
                f"{key} is {found!r}, known are {', '.join(known)}",
                where=str(folder.path / PLANS),
                todo="write the recipe by hand and build from an ONNX file",
            )


def _orientation(folder: Folder) -> str:
    """Axes of the reader's arrays, in the order in which nnU-Net transposes them."""
    letters = _READERS[folder.plan("image_reader_writer")]
    forward = folder.plan("transpose_forward")
    backward = folder.plan("transpose_backward")
    if sorted(forward) != [0, 1, 2] or [forward[i] for i in backward] != [0, 1, 2]:
        raise RecipeError(
            f"transpose_forward {forward} and transpose_backward {backward} are not each other's inverse",
            where=str(folder.path / PLANS),
        )
    return "".join(letters[axis] for axis in forward)


def _channels(folder: Folder, origins: dict[str, str], notices: list[Notice]) -> tuple[Channel, ...]:
    key = "channel_names" if "channel_names" in folder.dataset else "modality"
    told = folder.dataset.get(key)
    if not isinstance(told, dict) or sorted(told, key=int) != [str(i) for i in range(len(told))] or not told:
        raise RecipeError(
            f"channel_names is {told!r}, expected names for 0, 1, …", where=str(folder.path / DATASET)
        )
    names = [str(told[str(i)]) for i in range(len(told))]
    origins["channels"] = f"{DATASET}:{key}"
    several = len(names) > 1
    if several:
        notices.append(
            Notice(
                "CHANNELS_BY_SUFFIX",
                "channels are told by nnU-Net's file endings _0000, _0001, …; for DICOM, give each channel of the "
                "recipe a description or sequence",
                str(folder.path / DATASET),
            )
        )
    return tuple(
        Channel(
            name=name,
            select=Selector(
                modality="CT" if name.casefold() == "ct" else None,
                file_suffix=f"_{i:04d}" if several else None,
            ),
        )
        for i, name in enumerate(names)
    )


def _steps(
    folder: Folder, plan: Configuration, channels: int, origins: dict[str, str]
) -> tuple[tuple[Step, ...], Restore]:
    origins["steps.crop"] = "nnU-Net: crop_to_nonzero"
    steps: list[Step] = [Crop(nonzero=True), *_normalisation(folder, plan, channels, origins)]
    resample = _resampling(plan, "resampling_fn_data")
    back = _resampling(plan, "resampling_fn_probabilities")
    origins["steps.resample"] = (
        f"{plan.key('spacing')}, {plan.key('resampling_fn_data')}, {plan.key('resampling_fn_data_kwargs')}"
    )
    origins["restore"] = (
        f"{plan.key('resampling_fn_probabilities')}, {plan.key('resampling_fn_probabilities_kwargs')}"
    )
    if (resample is None) != (back is None):
        raise RecipeError(
            "data are resampled and probabilities not, or the other way round",
            where=f"{plan.where}: configurations.{plan.name}",
        )
    if resample is None or back is None:
        return tuple(steps), Restore(of="logits")
    if back["interpolation"] != "linear":
        raise RecipeError(
            f"probabilities are resampled with order {back['interpolation']!r}, known is 1 (linear)",
            where=f"{plan.where}: configurations.{plan.name}.resampling_fn_probabilities_kwargs",
        )
    spacing = plan["spacing"]
    steps.append(
        Resample(
            spacing_mm=(spacing[0], spacing[1], spacing[2]),
            interpolation=resample["interpolation"],
            boundary="edge",
            limit=resample["interpolation"] == "cubic",
            separate=resample["separate"],
        )
    )
    return tuple(steps), Restore(of="logits", separate=back["separate"])


def _normalisation(folder: Folder, plan: Configuration, channels: int, origins: dict[str, str]) -> list[Step]:
    """Steps for each channel; those that look at the nonzero region come first, while it can be seen."""
    schemes, masks = plan["normalization_schemes"], plan["use_mask_for_norm"]
    where = f"{plan.where}: configurations.{plan.name}.normalization_schemes"
    if len(schemes) != channels or len(masks) != channels:
        raise RecipeError(
            f"{len(schemes)} schemes and {len(masks)} masks for {channels} channels", where=where
        )
    origins["steps.normalisation"] = f"{plan.key('normalization_schemes')}, {plan.key('use_mask_for_norm')}"

    def of(name: str, mask: bool | None = None) -> tuple[int, ...]:
        return tuple(
            i for i in range(channels) if schemes[i] == name and (mask is None or bool(masks[i]) == mask)
        )

    def named(numbers: Sequence[int]) -> tuple[int, ...]:
        """Numbers of channels as a step writes them: none for all."""
        return () if len(numbers) == channels else tuple(numbers)

    steps: list[Step] = []
    if masked := of("ZScoreNormalization", True):
        steps.append(ZScore(channels=named(masked), filled=True))
    if plain := of("ZScoreNormalization", False):
        steps.append(ZScore(channels=named(plain)))
    if unit := of("RescaleTo01Normalization"):
        steps.append(MinMax(channels=named(unit)))
    if colour := of("RGBTo01Normalization"):
        steps.append(Scale(channels=named(colour), lower=0, upper=255))
    for channel in of("CTNormalization"):
        steps += _ct(folder, channel, named((channel,)), origins)
    known = ("ZScore", "RescaleTo01", "RGBTo01", "CT", "No")
    unknown = [name for name in schemes if name not in {f"{k}Normalization" for k in known}]
    if unknown:
        raise RecipeError(
            f"the normalisation {unknown[0]!r} is not known; known are {', '.join(known)}Normalization",
            where=where,
            todo="write the recipe by hand and build from an ONNX file",
        )
    return steps


def _ct(folder: Folder, channel: int, named: tuple[int, ...], origins: dict[str, str]) -> list[Step]:
    """CTNormalization: percentiles 0.5 and 99.5 of the training set's foreground, its mean and deviation."""
    key = "foreground_intensity_properties_per_channel"
    if key not in folder.plans and "foreground_intensity_properties_by_modality" in folder.plans:
        key = "foreground_intensity_properties_by_modality"
    where = f"{folder.path / PLANS}: {key}.{channel}"
    told = folder.plan(key).get(str(channel), {})
    try:
        lower, upper = float(told["percentile_00_5"]), float(told["percentile_99_5"])
        mean, std = float(told["mean"]), max(float(told["std"]), 1e-8)
        steps: list[Step] = [
            Clip(channels=named, lower=lower, upper=upper),
            Normalise(channels=named, mean=mean, std=std),
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise RecipeError(f"CTNormalization cannot be derived: {error}", where=where) from error
    origins[f"steps.normalisation.{channel}"] = f"{PLANS}:{key}.{channel}"
    return steps


def _resampling(plan: Configuration, key: str) -> dict[str, Any] | None:
    """Interpolation and the rule for a coarse axis of a resampling function; None where it does nothing."""
    name, told = plan[key], dict(plan.values.get(f"{key}_kwargs", {}))
    where = f"{plan.where}: configurations.{plan.name}.{key}"
    if name == "no_resampling_hack":
        return None
    if name == "resample_data_or_seg_to_shape":
        order, along = told.get("order", 3), told.get("order_z", 0)
        # the function's own default is no separate axis, plans say null: the anisotropy decides
        force = told.get("force_separate_z", False)
    elif name in ("resample_torch_fornnunet", "resample_torch_simple"):
        if (
            told.get("mode", "linear") != "linear"
            or told.get("aniso_axis_mode", "nearest-exact") != "nearest-exact"
        ):
            raise RecipeError(f"modes of {name} are {told}, known are linear and nearest-exact", where=where)
        order, along = 1, 0
        force = told.get("force_separate_z") if name == "resample_torch_fornnunet" else False
    else:
        raise RecipeError(
            f"the resampling function {name!r} is not known",
            where=where,
            todo="write the recipe by hand and build from an ONNX file",
        )
    if order not in _ORDERS or along not in (0, 1) or force not in (None, False):
        raise RecipeError(
            f"order {order}, order_z {along}, force_separate_z {force}; known are orders 0, 1, 3, order_z 0 or 1, "
            "and force_separate_z null or false",
            where=f"{where}_kwargs",
        )
    separate = None
    if force is None:
        threshold = float(told.get("separate_z_anisotropy_threshold", 3.0))
        separate = Separate(anisotropy=threshold, interpolation="nearest" if along == 0 else "linear")
    return {"interpolation": _ORDERS[order], "separate": separate}


def _tiling(plan: Configuration, trained: Trained, options: ImportOptions, origins: dict[str, str]) -> Tiling:
    window = tuple(int(n) for n in plan["patch_size"])
    stride = tuple(n // 2 if n % 2 == 0 else n / 2 for n in window)
    axes = trained.mirror_axes if options.mirror else ()
    origins["tiling.window"] = plan.key("patch_size")
    origins["tiling.stride"] = f"{_PREDICTOR} tile_step_size 0.5"
    origins["tiling.blending"] = f"{_PREDICTOR} use_gaussian, sigma_scale 1/8"
    origins["tiling.mirror_axes"] = (
        "checkpoint:inference_allowed_mirroring_axes" if options.mirror else "options: no mirroring"
    )
    return Tiling.model_validate(
        {
            "kind": "fitted", "window": window, "stride": stride, "last": "even", "blending": "gaussian",
            "sigma": 0.125, "peak": "voxel", "pad_value": 0.0, "mirror_axes": tuple(axes or ()),
        }
    )  # fmt: skip


def _has_regions(folder: Folder) -> bool:
    told = folder.dataset.get("labels")
    if not isinstance(told, dict) or told.get("background") != 0:
        raise RecipeError(
            "labels must be an object with background 0", where=f"{folder.path / DATASET}: labels"
        )
    return any(isinstance(value, list) and len(value) > 1 for value in told.values())


def _labels(
    folder: Folder, regions: bool, origins: dict[str, str], notices: list[Notice]
) -> tuple[Label, ...]:
    where = f"{folder.path / DATASET}: labels"
    told = {name: value for name, value in folder.dataset["labels"].items() if name != "ignore"}
    if regions:
        named = [name for name, value in told.items() if value not in (0, [0])]
        order = folder.dataset.get("regions_class_order")
        if not isinstance(order, list) or len(order) != len(named):
            raise RecipeError(
                f"regions_class_order is {order!r}, expected one value for each of {', '.join(named)}",
                where=str(folder.path / DATASET),
            )
        found = [
            (name, int(index), channel)
            for channel, (name, index) in enumerate(zip(named, order, strict=True))
        ]
        origins["labels"] = f"{DATASET}:labels, {DATASET}:regions_class_order"
        notices.append(
            Notice(
                "REGIONS_OVERLAP",
                "labels are regions that overlap; where they do, the mask keeps the later one, as nnU-Net's does",
                where,
            )
        )
    else:
        values = {name: int(value[0] if isinstance(value, list) else value) for name, value in told.items()}
        if sorted(set(values.values())) != list(range(len(values))):
            raise RecipeError(f"labels must be 0, 1, 2, …, found {values}", where=where)
        # the channel of the network is the label's value
        found = [(name, value, value) for name, value in sorted(values.items(), key=lambda v: v[1]) if value]
        origins["labels"] = f"{DATASET}:labels"
    if not found or max(index for _, index, _ in found) > 255:
        raise RecipeError(f"{len(found)} labels up to 255 can be read, found {found}", where=where)
    lesions = [name for name, _, _ in found if LESION.search(name)]
    notices.append(
        Notice(
            "LABEL_CODES",
            "nnU-Net's labels have names, no codes: they get private codes (99NNUNET); lesions by name: "
            + (", ".join(lesions) or "none, so that no findings are made"),
            where,
        )
    )
    return tuple(private_label(name, index, channel, "99NNUNET") for name, index, channel in found)
