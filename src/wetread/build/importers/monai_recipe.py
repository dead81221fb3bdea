"""The recipe of a MONAI bundle: from its metadata and its inference configuration, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from wetread.build.importers.base import ImportOptions
from wetread.build.importers.monai_config import Component, Config
from wetread.build.importers.monai_steps import (
    IRRELEVANT,
    Chain,
    follow,
    plain_name,
    refuse,
    transforms_of,
)
from wetread.build.importers.naming import private_label, slug
from wetread.errors import Notice, RecipeError
from wetread.recipe import Channel, Fit, Label, Recipe, Resample, Resize, Restore, Selector, Tiling

_MODALITIES = {"CT": "CT", "MR": "MR", "MRI": "MR", "PT": "PT", "PET": "PT"}
_FLOOR = 1e-3
"""MONAI's `compute_importance_map` raises Gaussian weights to this."""
_BACKGROUND = re.compile(r"back\s*ground|^bg$", re.IGNORECASE)
_VERSION = re.compile(r"^\d+\.\d+\.\d+$")


@dataclass
class Ending:
    """What the transforms after the network come to.

    Attributes:
        activation: of the network's output.
        rule: how labels are read off: the largest channel, or a threshold.
        threshold: for that rule.
        restore: what goes back to the source grid, and how.
    """

    activation: Literal["softmax", "sigmoid", "none"]
    rule: Literal["argmax", "threshold"]
    threshold: float
    restore: Restore


def derive_recipe(
    metadata: Mapping[str, Any], config: Config, options: ImportOptions, where: str
) -> tuple[Recipe, dict[str, str], tuple[Notice, ...]]:
    """The recipe, where its fields came from, and what a user should know.

    Args:
        metadata: ``metadata.json``.
        config: ``inference.json`` or ``inference.yaml``.
        options: name and version are used.
        where: the bundle, for messages.

    Raises:
        RecipeError: something that matters is missing, not computed, or has no counterpart; names the key.
    """
    image, channels, modality = _input(metadata, where)
    transforms = transforms_of(
        _entry(config, "preprocessing", "preprocessing_transforms"), f"{config.where}: preprocessing"
    )
    chain = follow(transforms, image, channels)
    tiling = _tiling(_inferer(config), chain, config)
    ending = _ending(config, metadata, chain)
    labels = _labels(metadata, ending, chain, where)
    name = options.name or slug(str(metadata.get("name", ""))) or "monai-bundle"
    version = str(metadata.get("version", ""))
    recipe = Recipe(
        name=name,
        version=version if _VERSION.match(version) else options.version,
        description=str(metadata.get("description", "")),
        task="lesions" if any(label.lesion for label in labels) else "segmentation",
        channels=tuple(_channel(chain, number, modality) for number in range(len(chain.channels))),
        orientation=chain.orientation,
        steps=tuple(chain.steps),
        tiling=tiling,
        activation=ending.activation,
        restore=ending.restore,
        labels=labels,
    )
    inputs = f"metadata.json: network_data_format::inputs::{image}"
    derived = {
        "name": "metadata.json: name",
        "version": "metadata.json: version" if _VERSION.match(version) else "default",
        "channels": f"{inputs}::channel_def",
        "orientation": "no Orientation transform: the file's own order",
        **chain.derived,
    }
    return recipe, derived, tuple(chain.notices)


def _entry(config: Config, *keys: str) -> Any:
    for key in keys:
        if key in config:
            return config.get(key)
    raise RecipeError(
        f"there is no {keys[0]!r}",
        where=config.where,
        todo="name it so, as MONAI's bundle specification does, or give a recipe with --recipe",
    )


def _input(metadata: Mapping[str, Any], where: str) -> tuple[str, list[str], str | None]:
    """Key of the network's input, names of its channels, DICOM modality."""
    inputs = metadata.get("network_data_format", {}).get("inputs", {})
    if len(inputs) != 1:
        raise RecipeError(
            f"network_data_format names {len(inputs)} inputs, expected one",
            where=f"{where}: metadata.json",
            todo="complete the bundle's metadata",
        )
    key, told = next(iter(inputs.items()))
    count = int(told.get("num_channels", 1))
    named = {int(number): str(name) for number, name in (told.get("channel_def") or {}).items()}
    channels = [named.get(number, f"channel {number}" if count > 1 else key) for number in range(count)]
    return key, channels, _MODALITIES.get(str(told.get("modality", "")).upper())


def _channel(chain: Chain, number: int, modality: str | None) -> Channel:
    name = chain.channels[number]
    if modality is None and not number:
        text = "the metadata's modality is none of CT, MR, PT: series are not chosen by modality"
        chain.notices.append(Notice("MODALITY_UNKNOWN", text, "metadata.json"))
    if len(chain.channels) == 1:
        return Channel(name=name, select=Selector(modality=modality))
    suffix = f"_{number:04d}"
    if not number:
        text = (
            f"bundles do not say how files of {len(chain.channels)} channels are told apart: files must end with "
            "_0000, _0001, … in the order of the channels; DICOM series need selectors in a recipe of your own"
        )
        chain.notices.append(Notice("CHANNELS_BY_SUFFIX", text, "metadata.json"))
    return Channel(name=name, select=Selector(modality=modality, file_suffix=suffix))


def _inferer(config: Config) -> Component:
    found = _entry(config, "inferer")
    if not isinstance(found, Component):
        raise RecipeError(f"the inferer is {found!r}, expected a class", where=f"{config.where}: inferer")
    return found


def _tiling(inferer: Component, chain: Chain, config: Config) -> Tiling:
    if inferer.name == "SimpleInferer":
        tiling = _whole(inferer, chain)
    elif inferer.name == "SlidingWindowInferer":
        tiling = _sliding(inferer, chain)
    else:
        raise RecipeError(
            f"the inferer {inferer.name} has no counterpart",
            where=inferer.where,
            todo="use SlidingWindowInferer or SimpleInferer, or give a recipe with --recipe",
            code="NO_COUNTERPART",
        )
    _check_padding(chain, tiling)
    chain.derived["tiling"] = f"{inferer.where} ({inferer.name})"
    return tiling


def _whole(inferer: Component, chain: Chain) -> Tiling:
    last = next((s for s in reversed(chain.steps) if isinstance(s, Fit | Resize | Resample)), None)
    if isinstance(last, Fit | Resize):
        a, b, c = (int(size) for size in last.shape)
        return Tiling(kind="fitted", window=(a, b, c), stride=(a, b, c), last="clamped", blending="constant")
    return Tiling(kind="whole")


def _sliding(inferer: Component, chain: Chain) -> Tiling:
    roi, overlap = inferer.get("roi_size"), inferer.get("overlap", 0.25)
    sizes = [roi] * 3 if isinstance(roi, int) else list(roi or ())
    parts = [overlap] * 3 if isinstance(overlap, int | float) else list(overlap)
    if len(sizes) != 3 or len(parts) != 3 or not all(isinstance(s, int) and s > 0 for s in sizes):
        raise refuse(inferer, f"has roi_size {roi} and overlap {overlap}, expected sizes of three axes")
    sigma = inferer.get("sigma_scale", 0.125)
    if isinstance(sigma, list):
        if len(set(sigma)) != 1:
            raise refuse(inferer, f"has another sigma_scale on each axis ({sigma})")
        sigma = sigma[0]
    mode, padding = str(inferer.get("mode", "constant")), str(inferer.get("padding_mode", "constant"))
    if mode not in ("constant", "gaussian"):
        raise refuse(inferer, f"blends by {mode!r}")
    if padding != "constant":
        raise refuse(inferer, f"pads small volumes by {padding!r}, expected 'constant'")
    if inferer.get("with_coord", False):
        raise refuse(inferer, "gives coordinates to the network (with_coord)")
    a, b, c = sizes
    # the same rounding as MONAI's, with the same float operations
    i, j, k = (max(1, int(size * (1 - part))) for size, part in zip(sizes, parts, strict=True))
    return Tiling(
        kind="fitted",
        window=(a, b, c),
        stride=(i, j, k),
        last="clamped",
        blending="gaussian" if mode == "gaussian" else "constant",
        sigma=float(sigma),
        floor=_FLOOR if mode == "gaussian" else 0.0,
        pad_value=float(inferer.get("cval", 0.0)),
    )


def _check_padding(chain: Chain, tiling: Tiling) -> None:
    """SpatialPad before windows is what windows do anyway, where size and value are theirs."""
    if chain.padding is None:
        return
    sizes, value, where = chain.padding
    window = tiling.window
    same = window is not None and all(
        size == w or (size < w and (w - size) % 2 == 0) for size, w in zip(sizes, window, strict=True)
    )
    if not same or value != tiling.pad_value:
        raise RecipeError(
            f"SpatialPad to {sizes} with {value:g}, the inferer's window is {window} with {tiling.pad_value:g}: "
            "a recipe pads to the window only",
            where=where,
            todo="write a recipe that comes closest and give it with --recipe",
            code="NO_COUNTERPART",
        )
    chain.derived["tiling.pad_value"] = f"{where} (SpatialPad, as the inferer pads)"


def _ending(config: Config, metadata: Mapping[str, Any], chain: Chain) -> Ending:
    """Reads the transforms after the network in their order."""
    outputs = metadata.get("network_data_format", {}).get("outputs", {})
    key = next(iter(outputs), "pred")
    value = _entry(config, "postprocessing", "postprocessing_transforms") if _has_ending(config) else []
    activation: str | None = None
    inverted: tuple[str, str] | None = None  # what was inverted, and the interpolation
    rule: tuple[str, float] | None = None
    step = next((s for s in chain.steps if isinstance(s, Resample | Resize)), None)
    for component in transforms_of(value, f"{config.where}: postprocessing"):
        name = plain_name(component)
        keys = component.get("keys", [key])
        if name in IRRELEVANT or key not in ([keys] if isinstance(keys, str) else keys):
            text = f"{component.name} has no part in the mask"
            chain.notices.append(Notice("TRANSFORM_IRRELEVANT", text, component.where))
        elif name == "Activations" and activation is None and rule is None:
            activation = _activation(component)
            chain.derived["activation"] = f"{component.where} ({component.name})"
        elif name == "Invert" and inverted is None:
            nearest = _first(component.get("nearest_interp", True))
            same = "nearest" if step is not None and step.interpolation == "nearest" else "linear"
            what = "labels" if rule else "probabilities" if activation else "logits"
            inverted = (what, "nearest" if nearest else same)
            chain.derived["restore"] = f"{component.where} ({component.name})"
            if what == "labels" and not nearest and step is not None:
                raise refuse(component, "interpolates labels linearly (nearest_interp is false)")
        elif name == "AsDiscrete" and rule is None:
            rule = _rule(component)
            chain.derived["labels.threshold"] = f"{component.where} ({component.name})"
        else:
            raise refuse(component, "has no counterpart in a recipe, or comes twice")
    return _decided(activation, inverted, rule, chain, config.where)


def _has_ending(config: Config) -> bool:
    return "postprocessing" in config or "postprocessing_transforms" in config


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list | tuple) and value else value


def _activation(component: Component) -> str:
    sigmoid, softmax = (_first(component.get(key, False)) for key in ("sigmoid", "softmax"))
    if component.arguments.get("other") is not None or bool(sigmoid) == bool(softmax):
        raise refuse(component, "is neither sigmoid nor softmax")
    return "sigmoid" if sigmoid else "softmax"


def _rule(component: Component) -> tuple[str, float]:
    if _first(component.get("argmax", False)):
        return "argmax", 0.5
    threshold = _first(component.get("threshold"))
    if threshold is True:
        threshold = _first(component.get("logit_thresh", 0.5))
    if not isinstance(threshold, int | float) or _first(component.get("to_onehot")):
        raise refuse(component, "takes neither the largest channel nor a threshold")
    return "threshold", float(threshold)


def _decided(
    activation: str | None,
    inverted: tuple[str, str] | None,
    rule: tuple[str, float] | None,
    chain: Chain,
    where: str,
) -> Ending:
    if rule is None:
        rule = ("threshold", 0.5) if activation == "sigmoid" else ("argmax", 0.5)
        text = f"there is no AsDiscrete: labels are read off by {rule[0]}"
        chain.notices.append(Notice("RULE_ASSUMED", text, f"{where}: postprocessing"))
    resampled = any(isinstance(s, Resample | Resize) for s in chain.steps)
    if inverted is None and resampled:
        text = "there is no Invert: the reading brings probabilities back to the source grid, linearly"
        chain.notices.append(Notice("MASK_BROUGHT_BACK", text, f"{where}: postprocessing"))
    what, interpolation = inverted or ("probabilities", "linear")
    if interpolation == "nearest" and resampled:
        text = (
            "voxels that lie midway between two take the upper one; MONAI's choice there depends on rounding"
        )
        chain.notices.append(Notice("NEAREST_TIES", text, f"{where}: postprocessing"))
    active: Literal["softmax", "sigmoid", "none"] = "none"
    if activation == "softmax" or (activation is None and rule[0] == "argmax"):
        active = "softmax"
    elif activation == "sigmoid":
        active = "sigmoid"
    elif not 0 < rule[1] < 1:
        raise RecipeError(
            f"the threshold is {rule[1]} on outputs without activation, expected a probability",
            where=f"{where}: postprocessing",
        )
    if rule[0] == "argmax" and active != "softmax":
        raise RecipeError("the largest channel is taken after sigmoid", where=f"{where}: postprocessing")
    return Ending(
        active,
        "argmax" if rule[0] == "argmax" else "threshold",
        rule[1],
        Restore(
            of="logits" if what == "logits" and active != "none" else "probabilities",
            interpolation="nearest" if interpolation == "nearest" else "linear",
        ),
    )


def _labels(metadata: Mapping[str, Any], ending: Ending, chain: Chain, where: str) -> tuple[Label, ...]:
    outputs = metadata.get("network_data_format", {}).get("outputs", {})
    key = next(iter(outputs), "pred")
    told = outputs.get(key, {})
    count = int(told.get("num_channels", 0))
    named = {int(number): str(name) for number, name in (told.get("channel_def") or {}).items()}
    if not count and not named:
        raise RecipeError(
            "the outputs' channels are not described",
            where=f"{where}: metadata.json: network_data_format::outputs::{key}",
            todo="give num_channels and channel_def",
        )
    channels = range(max(count, max(named, default=-1) + 1))
    names = {number: named.get(number, f"label {number}") for number in channels}
    kept = [n for n in channels if not _BACKGROUND.search(names[n])]
    if ending.rule == "argmax" and len(kept) == len(channels):
        kept = kept[1:]
        text = f"no output channel is called background: channel 0 ({names[0]}) is taken for it"
        chain.notices.append(Notice("BACKGROUND_ASSUMED", text, "metadata.json"))
    if ending.rule == "threshold" and len(kept) > 1:
        text = "labels may overlap; where they do, the mask keeps the later one"
        chain.notices.append(Notice("REGIONS_OVERLAP", text, "metadata.json"))
    if ending.rule == "threshold" and ending.activation == "softmax" and len(channels) > 2:
        raise RecipeError(
            "softmax of several channels is read off by a threshold", where=f"{where}: postprocessing"
        )
    labels = [private_label(names[n], n if kept[0] else n + 1, n, "99MONAI", ending.threshold) for n in kept]
    lesions = ", ".join(label.name for label in labels if label.lesion)
    text = "MONAI's labels have names, no codes: they get private codes (99MONAI); lesions by name: "
    chain.notices.append(
        Notice("LABEL_CODES", text + (lesions or "none, so that no findings are made"), "metadata.json")
    )
    chain.derived["labels"] = f"metadata.json: network_data_format::outputs::{key}::channel_def"
    return tuple(labels)
