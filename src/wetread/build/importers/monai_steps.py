"""MONAI's preprocessing transforms as steps of a recipe.

Each transform becomes steps, is named in a notice because it has no part in the result, or is an error that
names its key. Definitions are those of MONAI 1.6's own docstrings and code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from wetread.build.importers.monai_config import Component, Unknown
from wetread.errors import Notice, RecipeError
from wetread.recipe import Clip, Crop, Fit, MinMax, Normalise, Pad, Resample, Resize, Scale, Step, ZScore

IRRELEVANT = {
    "EnsureType", "ToTensor", "ToDevice", "Identity", "SelectItems", "DeleteItems", "DataStats", "SimulateDelay",
    "EnsureChannelFirst", "AddChannel", "AsChannelFirst", "ToNumpy", "FromMetaTensor", "ToMetaTensor", "SaveImage",
    "CopyItems", "FlattenSubKeys",
}  # fmt: skip
"""Move or convert data, or write files: the numbers stay what they are."""

_MODES = {
    "bilinear": "linear",
    "trilinear": "linear",
    "linear": "linear",
    "nearest": "nearest",
    0: "nearest",
    1: "linear",
}
_ABOVE = re.compile(r"^\$\s*lambda\s+(\w+)\s*:\s*\1\s*>\s*(-?\d+(?:\.\d+)?)\s*$")


@dataclass
class Chain:
    """What a list of transforms comes to.

    Attributes:
        steps: in their order.
        orientation: axis codes; ``ijk``, the order of the file, unless a transform says otherwise.
        channels: names of the channels, in the order of the network's input.
        padding: where the volume is padded to a window's size at the end: that size and the value.
        keys: for each key of MONAI's dictionary that holds image data, the channels under it.
        derived, notices: as `Imported` has them.
    """

    channels: list[str]
    steps: list[Step] = field(default_factory=list)
    orientation: str = "ijk"
    padding: tuple[tuple[int, int, int], float, str] | None = None
    keys: dict[str, tuple[int, ...]] = field(default_factory=dict)
    derived: dict[str, str] = field(default_factory=dict)
    notices: list[Notice] = field(default_factory=list)

    def add(self, component: Component, *steps: Step) -> None:
        """Takes steps, and notes where they came from."""
        for step in steps:
            if self.padding is not None:
                raise refuse(
                    component, "comes after a padding to the window's size, whose value it would change"
                )
            self.derived[f"steps[{len(self.steps)}]"] = f"{component.where} ({component.name})"
            self.steps.append(step)


def plain_name(component: Component) -> str:
    """Name of a transform without the suffix of its dictionary form."""
    name = component.name
    for suffix in ("Dict", "D", "d"):
        if name.endswith(suffix) and len(name) > len(suffix) + 2:
            return name.removesuffix(suffix)
    return name


def refuse(component: Component, why: str) -> RecipeError:
    """The error for a transform that has no counterpart."""
    return RecipeError(
        f"{component.name} {why}",
        where=component.where,
        todo="write a recipe that comes closest and give it with --recipe, or retrain without this transform",
        code="NO_COUNTERPART",
    )


def transforms_of(value: Any, where: str) -> list[Component]:
    """The transforms of a Compose, or of a list.

    Raises:
        RecipeError: it is neither, or an item is no transform.
    """
    if isinstance(value, Component) and plain_name(value) == "Compose":
        value = value.arguments.get("transforms", [])
    if isinstance(value, Component):
        value = [value]
    if isinstance(value, Unknown):
        where, value = value.where, value.text
    if not isinstance(value, list):
        raise RecipeError(
            f"the transforms are {value!r}, expected a Compose or a list",
            where=where,
            todo="write them out, or say --trust if you know who made this bundle",
        )
    found: list[Component] = []
    for item in value:
        if isinstance(item, Component) and plain_name(item) == "Compose":
            found += transforms_of(item, where)
        elif isinstance(item, Component):
            found.append(item)
        else:
            text = item.text if isinstance(item, Unknown) else item
            raise RecipeError(f"{text!r} is no transform that can be told", where=where)
    return found


def follow(transforms: Sequence[Component], image: str, channels: Sequence[str]) -> Chain:
    """Steps of the image's preprocessing.

    Args:
        transforms: in their order.
        image: MONAI's key of the network's input.
        channels: names of its channels as the bundle's metadata has them.

    Raises:
        RecipeError: a transform, or an argument of one, has no counterpart; names its key.
    """
    chain = Chain(list(channels))
    for component in transforms:
        name = plain_name(component)
        if name == "LoadImage":
            _load(component, chain, image)
            continue
        if name == "ConcatItems":
            _concatenate(component, chain, image)
            continue
        if not chain.keys:
            chain.keys[image] = tuple(range(len(channels)))
        keys = component.get("keys", [image])
        chosen = [key for key in ([keys] if isinstance(keys, str) else list(keys)) if key in chain.keys]
        if not chosen or name in IRRELEVANT:
            why = "has no part in the numbers" if chosen else f"is about {keys}, not about the image"
            chain.notices.append(Notice("TRANSFORM_IRRELEVANT", f"{component.name} {why}", component.where))
            continue
        handler = _HANDLERS.get(name)
        if handler is None:
            raise refuse(component, "has no counterpart in a recipe")
        numbers = sorted({number for key in chosen for number in chain.keys[key]})
        handler(component, chain, () if len(numbers) == len(chain.channels) else tuple(numbers))
    return chain


def _load(component: Component, chain: Chain, image: str) -> None:
    reader = component.arguments.get("reader")
    options = {**component.arguments, **(reader.arguments if isinstance(reader, Component) else {})}
    if options.get("as_closest_canonical") is True:
        chain.orientation = "RAS"
        chain.derived["orientation"] = f"{component.where} (as_closest_canonical)"
    if options.get("reverse_indexing") is True:
        raise refuse(component, "reverses the indices (reverse_indexing)")
    keys = component.get("keys", [image])
    loaded = [keys] if isinstance(keys, str) else list(keys)
    if image in loaded or not chain.channels:
        chain.keys[image] = tuple(range(len(chain.channels)))
    elif len(loaded) >= len(chain.channels):
        # one file for each channel, joined later
        chain.channels = loaded[: len(chain.channels)]
        chain.keys = {key: (number,) for number, key in enumerate(chain.channels)}
    else:
        raise refuse(component, f"loads {loaded}, the network's input is {image!r}")


def _concatenate(component: Component, chain: Chain, image: str) -> None:
    keys = list(component.get("keys", []))
    if component.get("dim", 0) != 0 or sorted(keys) != sorted(chain.keys):
        raise refuse(component, f"joins {keys}, loaded were {sorted(chain.keys)}")
    numbers = [number for key in keys for number in chain.keys[key]]
    if numbers != sorted(numbers):
        raise refuse(component, f"joins the channels in another order ({keys}) than they are loaded")
    chain.keys = {str(component.get("name")): tuple(numbers)}
    chain.derived["channels"] = f"{component.where} ({component.name})"


def _orientation(component: Component, chain: Chain, channels: tuple[int, ...]) -> None:
    codes = component.get("axcodes")
    if channels or any(isinstance(step, Resample | Resize | Pad | Fit) for step in chain.steps):
        raise refuse(
            component, "comes after a change of the grid, which then follows the file's own order of axes"
        )
    if component.get("as_closest_canonical", False):
        codes = "RAS"
    labels = component.get("labels")
    plain = labels is None or [list(pair) for pair in labels] == [["L", "R"], ["P", "A"], ["I", "S"]]
    if not isinstance(codes, str) or len(codes) != 3 or not plain:
        raise refuse(component, f"has axcodes {codes!r} with labels {labels!r}")
    chain.orientation = codes
    chain.derived["orientation"] = f"{component.where}::axcodes"


def _spacing(component: Component, chain: Chain, channels: tuple[int, ...]) -> None:
    pixdim = component.get("pixdim")
    spacing = [float(v) for v in (pixdim if isinstance(pixdim, list) else [pixdim])]
    spacing += [spacing[-1]] * (3 - len(spacing))
    if len(spacing) != 3 or not all(value > 0 for value in spacing):
        raise refuse(component, f"keeps the spacing of an axis (pixdim {pixdim})")
    for key in ("min_pixdim", "max_pixdim", "diagonal", "scale_extent", "recompute_affine"):
        if component.get(key) not in (None, False):
            raise refuse(component, f"has {key} = {component.get(key)}")
    if channels:
        raise refuse(component, "resamples some channels only")
    if chain.orientation == "ijk":
        text = "Spacing without Orientation before it: axes stay in the order and direction of the file"
        chain.notices.append(Notice("FILE_ORDER", text, component.where))
    padding = component.get("padding_mode", "border")
    if padding != "border":
        text = f"padding_mode {padding!r} acts within half a voxel of the volume's ends; the edge's value is taken"
        chain.notices.append(Notice("EDGE_DIFFERS", text, component.where))
    x, y, z = spacing
    mode = _mode(component, component.get("mode", "bilinear"))
    chain.add(component, Resample(spacing_mm=(x, y, z), interpolation=mode, alignment="first"))


def _mode(component: Component, mode: Any) -> Any:
    first = {_MODES.get(m) for m in (mode if isinstance(mode, list) else [mode])[:1]}
    if first <= {None}:
        raise refuse(component, f"interpolates by {mode!r}")
    return first.pop()


def _resize(component: Component, chain: Chain, channels: tuple[int, ...]) -> None:
    if channels or component.get("size_mode", "all") != "all" or component.get("align_corners"):
        raise refuse(component, "resizes some channels, the longest side, or with align_corners")
    if component.get("anti_aliasing", False):
        raise refuse(component, "smooths before (anti_aliasing)")
    mode = _mode(component, component.get("mode", "area"))
    chain.add(component, Resize(shape=_three(component, "spatial_size"), interpolation=mode))


def _three(component: Component, key: str) -> tuple[int, int, int]:
    value = component.get(key)
    sizes = [value] * 3 if isinstance(value, int) else list(value or ())
    if len(sizes) != 3 or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise refuse(component, f"has {key} = {value}, expected three sizes")
    return sizes[0], sizes[1], sizes[2]


def _range(component: Component, chain: Chain, channels: tuple[int, ...]) -> None:
    lower, upper = float(component.get("a_min")), float(component.get("a_max"))
    low, high = component.get("b_min"), component.get("b_max")
    to = (0.0, 1.0) if low is None or high is None else (float(low), float(high))
    if component.get("clip", False):
        if low is None or high is None or not to[0] < to[1]:
            raise refuse(component, f"clips to {low} … {high}")
        chain.add(component, Clip(lower=lower, upper=upper, channels=channels))
    chain.add(component, Scale(lower=lower, upper=upper, to_lower=to[0], to_upper=to[1], channels=channels))


def _percentiles(component: Component, chain: Chain, channels: tuple[int, ...]) -> None:
    if component.get("relative", False):
        raise refuse(component, "is relative")
    _one_by_one(component, chain, channels)
    low, high = component.get("b_min", 0.0), component.get("b_max", 1.0)
    chain.add(
        component,
        MinMax(
            lower_percentile=component.get("lower"),
            upper_percentile=component.get("upper"),
            clip=bool(component.get("clip", False)),
            channels=channels,
        ),
    )
    _to(component, chain, channels, low, high)


def _to(component: Component, chain: Chain, channels: tuple[int, ...], low: Any, high: Any) -> None:
    """From [0, 1] to [low, high]."""
    if low is None or high is None:
        raise refuse(component, f"scales to {low} … {high}")
    if (float(low), float(high)) != (0.0, 1.0):
        chain.add(component, Scale(lower=0, upper=1, to_lower=low, to_upper=high, channels=channels))


def _scale(component: Component, chain: Chain, channels: tuple[int, ...]) -> None:
    low, high, factor = component.get("minv", 0.0), component.get("maxv", 1.0), component.get("factor")
    if low is None and high is None and factor is not None:
        chain.add(component, Scale(lower=0, upper=1, to_upper=1 + float(factor), channels=channels))
        return
    _one_by_one(component, chain, channels)
    chain.add(component, MinMax(channels=channels))
    _to(component, chain, channels, low, high)


def _one_by_one(component: Component, chain: Chain, channels: tuple[int, ...]) -> None:
    if not component.get("channel_wise", False) and len(channels or chain.channels) > 1:
        raise refuse(component, "takes statistics over several channels at once (channel_wise is false)")


def _normalise(component: Component, chain: Chain, channels: tuple[int, ...]) -> None:
    mean, std = component.get("subtrahend"), component.get("divisor")
    nonzero = bool(component.get("nonzero", False))
    if mean is None and std is None:
        _one_by_one(component, chain, channels)
        chain.add(component, ZScore(nonzero=nonzero, channels=channels))
        return
    if nonzero or mean is None or std is None:
        raise refuse(component, "mixes stated statistics with those of the volume, or with nonzero")
    if not isinstance(mean, list) and not isinstance(std, list):
        chain.add(component, Normalise(mean=mean, std=std, channels=channels))
        return
    numbers = channels or tuple(range(len(chain.channels)))
    means = mean if isinstance(mean, list) else [mean] * len(numbers)
    stds = std if isinstance(std, list) else [std] * len(numbers)
    if not len(means) == len(stds) == len(numbers):
        raise refuse(
            component, f"has {len(means)} means and {len(stds)} divisors for {len(numbers)} channels"
        )
    for number, m, s in zip(numbers, means, stds, strict=True):
        chain.add(component, Normalise(mean=m, std=s, channels=(number,) if len(numbers) > 1 else ()))


def _shift(component: Component, chain: Chain, channels: tuple[int, ...]) -> None:
    offset = float(component.get("offset"))
    chain.add(component, Scale(lower=0, upper=1, to_lower=offset, to_upper=1 + offset, channels=channels))


def _crop(component: Component, chain: Chain, channels: tuple[int, ...]) -> None:
    select, threshold = component.arguments.get("select_fn"), 0.0
    if isinstance(select, Unknown) and (found := _ABOVE.match(select.text)):
        threshold = float(found.group(2))
    elif select is not None and getattr(select, "text", "").rsplit(".", 1)[-1] != "is_positive":
        raise refuse(component, f"selects by {getattr(select, 'text', select)!r}")
    source, margin = component.get("source_key"), component.get("margin", 0)
    if source not in (None, *chain.keys) or channels:
        raise refuse(component, f"crops by {source!r}, or some channels only")
    if component.get("channel_indices") is not None or component.get("k_divisible", 1) not in (1, [1, 1, 1]):
        raise refuse(component, "crops by some channels, or to multiples (k_divisible)")
    if not isinstance(margin, int) or (margin and component.get("allow_smaller", False) is not True):
        raise refuse(component, f"has a margin of {margin} that may reach outside the volume (allow_smaller)")
    chain.add(component, Crop(threshold=threshold, margin=margin))


def _pad_value(component: Component) -> float:
    if str(component.get("mode", "constant")).lower() != "constant":
        raise refuse(component, f"pads by {component.get('mode')!r}")
    if component.get("method", "symmetric") != "symmetric":
        raise refuse(component, "pads at the end only")
    return float(component.get("value", component.get("constant_values", 0.0)))


def _divisible(component: Component, chain: Chain, channels: tuple[int, ...]) -> None:
    chain.add(component, Pad(multiple=_three(component, "k"), value=_pad_value(component)))


def _spatial_pad(component: Component, chain: Chain, channels: tuple[int, ...]) -> None:
    if chain.padding is not None:
        raise refuse(component, "pads a second time")
    chain.padding = (_three(component, "spatial_size"), _pad_value(component), component.where)


def _fit(component: Component, chain: Chain, channels: tuple[int, ...]) -> None:
    chain.add(component, Fit(shape=_three(component, "spatial_size"), value=_pad_value(component)))


def _cast(component: Component, chain: Chain, channels: tuple[int, ...]) -> None:
    kind = component.arguments.get("dtype", "float32")
    text = kind.text if isinstance(kind, Unknown) else str(kind)
    if not re.search(r"float(32|64)?$", text):
        raise refuse(component, f"casts to {text}")
    chain.notices.append(Notice("TRANSFORM_IRRELEVANT", f"{component.name} to {text}", component.where))


_HANDLERS: dict[str, Callable[[Component, Chain, tuple[int, ...]], None]] = {
    "Orientation": _orientation,
    "Spacing": _spacing,
    "Resize": _resize,
    "ScaleIntensityRange": _range,
    "ScaleIntensityRangePercentiles": _percentiles,
    "ScaleIntensity": _scale,
    "NormalizeIntensity": _normalise,
    "ShiftIntensity": _shift,
    "CropForeground": _crop,
    "DivisiblePad": _divisible,
    "SpatialPad": _spatial_pad,
    "ResizeWithPadOrCrop": _fit,
    "CastToType": _cast,
}
