"""The recipe: frozen, typed, and closed (unknown keys are errors)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from wetread.errors import RecipeError
from wetread.recipe.steps import Crop, Fit, Pad, Resample, Resize, Separate, Step, _Frozen

_AXES = ({"L", "R"}, {"P", "A"}, {"S", "I"})
Stride = Annotated[int, Field(ge=1)] | Annotated[float, Field(ge=1, multiple_of=0.5)]


class Code(_Frozen):
    """A coded concept: value, coding scheme designator, meaning (DICOM PS3.3 section 8)."""

    value: str = Field(min_length=1, max_length=16)
    scheme: str = Field(min_length=1, max_length=16)
    meaning: str = Field(min_length=1, max_length=64)


class Selector(_Frozen):
    """Which series (or file) feeds a channel; every rule that is given must hold.

    Regular expressions are searched without regard to case. ``file_suffix`` matches the end of a NIfTI
    file's stem, such as ``_0000``.
    """

    modality: str | None = None
    description: str | None = None
    not_description: str | None = None
    sequence: str | None = None
    body_part: str | None = None
    image_type: tuple[str, ...] = ()
    min_slices: int = Field(2, ge=1)
    max_slice_spacing_mm: float | None = Field(None, gt=0)
    file_suffix: str | None = None

    @field_validator("description", "not_description", "sequence", "body_part", "file_suffix")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
        return pattern


class Channel(_Frozen):
    """One input channel of the network: its name and where it comes from."""

    name: str = Field(min_length=1)
    select: Selector = Selector()


class Tiling(_Frozen):
    """How the volume is cut into windows; sizes in voxels, in the order of the orientation codes.

    ``lattice``: windows start at multiples of the stride in frame-of-reference coordinates. ``fitted``:
    windows follow the volume's extent: steps are at most ``stride`` and evenly spread, as in nnU-Net, or
    exactly ``stride`` with the last window moved inwards, as in MONAI (``last="clamped"``). ``whole``: the
    volume is one window, padded at its end to ``multiple``. Evenly spread steps may be halves: half of an odd
    window.

    ``peak`` says where a window's Gaussian weights are largest: in its ``middle``, which lies between two
    voxels of an even window, or at voxel w//2 (``voxel``, as in nnU-Net). Gaussian weights below ``floor`` are
    raised to it (MONAI: 0.001), which matters wherever all windows lie that far off, as at the volume's faces.

    ``pooling`` is for classification: the scores of several windows are averaged, or the largest is taken.
    """

    kind: Literal["lattice", "fitted", "whole"] = "fitted"
    window: tuple[int, int, int] | None = None
    stride: tuple[Stride, Stride, Stride] | None = None
    last: Literal["even", "clamped"] = "even"
    multiple: tuple[int, int, int] = (1, 1, 1)
    blending: Literal["gaussian", "constant"] = "gaussian"
    sigma: float = Field(0.125, gt=0, description="standard deviation as a fraction of the window")
    peak: Literal["middle", "voxel"] = "middle"
    floor: float = Field(0.0, ge=0, lt=1, description="least weight of a voxel in a window")
    pad_value: float = Field(0.0, description="value outside the volume, after the preprocessing steps")
    mirror_axes: tuple[Literal[0, 1, 2], ...] = ()
    batch: int = Field(1, ge=1, le=64)
    pooling: Literal["mean", "max"] = "mean"

    @model_validator(mode="after")
    def _consistent(self) -> Tiling:
        if self.kind == "whole":
            if self.window is not None or self.stride is not None:
                raise ValueError("tiling 'whole' takes neither window nor stride")
            if min(self.multiple) < 1:
                raise ValueError("multiple must be at least 1")
            return self
        if self.window is None or self.stride is None:
            raise ValueError(f"tiling '{self.kind}' needs window and stride")
        if any(not 1 <= s <= w for s, w in zip(self.stride, self.window, strict=True)):
            raise ValueError(f"stride {self.stride} must lie between 1 and the window {self.window}")
        if any(s != int(s) for s in self.stride) and (self.kind == "lattice" or self.last == "clamped"):
            raise ValueError(f"stride {self.stride} has halves, which only evenly spread windows may have")
        if len(set(self.mirror_axes)) != len(self.mirror_axes):
            raise ValueError("mirror_axes holds an axis twice")
        if self.floor and self.blending != "gaussian":
            raise ValueError("floor is for gaussian blending, constant weights are all 1")
        return self


class Place(_Frozen):
    """Where the network looks; results outside are not part of the reading.

    ``margin_mm`` is the distance around the place that still belongs to it.
    """

    kind: Literal["all", "body", "lungs"] = "all"
    margin_mm: float = Field(24.0, ge=0, le=200)


class Label(_Frozen):
    """One structure that the network marks, or one class that it tells apart.

    Attributes:
        index: value in the label mask, 1 to 255.
        name: name for people.
        channels: output channels whose activated values are summed to this label's probability.
        threshold: probability from which a voxel (or, in a classification, the volume) gets the label (sigmoid,
            or softmax with one label).
        category: category code, by default 49755003 SCT "Morphologically Abnormal Structure".
        type: property type code.
        anatomy: anatomic region code.
        color: sRGB colour for display, 0 to 255.
        lesion: whether connected components of this label are findings.
    """

    index: int = Field(ge=1, le=255)
    name: str = Field(min_length=1, max_length=64)
    channels: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)
    threshold: float = Field(0.5, gt=0, lt=1)
    category: Code = Code(value="49755003", scheme="SCT", meaning="Morphologically Abnormal Structure")
    type: Code = Code(value="52988006", scheme="SCT", meaning="Lesion")
    anatomy: Code | None = None
    color: tuple[int, int, int] = (220, 60, 40)
    lesion: bool = True


class Restore(_Frozen):
    """How outputs go back to the source grid before labels are read off.

    ``of``: probabilities are interpolated, or the network's outputs before activation (``logits``, as nnU-Net
    does). ``interpolation``: ``nearest`` gives the same labels as bringing back a mask of labels (MONAI's
    Invert after AsDiscrete). ``separate``: the coarse axis by itself.
    """

    of: Literal["probabilities", "logits"] = "probabilities"
    interpolation: Literal["linear", "nearest"] = "linear"
    separate: Separate | None = None


class Lesions(_Frozen):
    """How findings are made of a label: components, smallest size, thresholds.

    ``min_ml`` is in millilitres, ``min_probability`` is the lowest peak probability that a component needs.
    """

    connectivity: Literal[6, 18, 26] = 26
    min_ml: float = Field(0.0, ge=0)
    min_probability: float = Field(0.0, ge=0, le=1)
    remove_small: bool = Field(True, description="voxels of dropped components leave the mask too")


class Recipe(_Frozen):
    """How a network is used; every field is part of the package's hash.

    ``orientation`` gives the direction in which each axis of the network's input array increases, such as
    ``SPL`` for arrays [z, y, x] of an axial CT in LPS and ``RAS`` for arrays [x, y, z] in RAS order. Instead it
    may name the axes of the *file*, whatever their directions: ``kji`` is [slice, row, column] of a DICOM series
    and the third, second and first axis of a NIfTI file. That is how SimpleITK gives arrays to nnU-Net, which
    does not turn them; a network trained so expects every case in the order of its training files.

    ``task``: ``lesions`` and ``segmentation`` mark voxels; the network of a ``classification`` returns (batch,
    classes) for a window, and its labels' channels are classes.
    """

    format: Literal[1] = 1
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    version: str = Field("1.0.0", pattern=r"^[0-9]+\.[0-9]+\.[0-9]+$")
    description: str = ""
    task: Literal["lesions", "segmentation", "classification"] = "lesions"
    channels: tuple[Channel, ...] = Field(min_length=1)
    reference_channel: int = Field(0, ge=0)
    orientation: str = "SPL"
    steps: tuple[Step, ...] = ()
    tiling: Tiling
    place: Place = Place()
    activation: Literal["softmax", "sigmoid", "none"] = "softmax"
    restore: Restore = Restore()
    labels: tuple[Label, ...] = Field(min_length=1)
    lesions: Lesions = Lesions()
    intended_use: str = "Research only. Not a medical device. Not for clinical use."

    @field_validator("orientation")
    @classmethod
    def _axes(cls, codes: str) -> str:
        if sorted(codes) == ["i", "j", "k"]:
            return codes
        if len(codes) != 3 or any(len(set(codes) & pair) != 1 for pair in _AXES):
            raise ValueError(f"{codes!r} does not name one of L/R, P/A and S/I each, or i, j and k each")
        return codes

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.reference_channel >= len(self.channels):
            raise ValueError(f"reference_channel is {self.reference_channel}, there are {len(self.channels)}")
        indices = [label.index for label in self.labels]
        if len(set(indices)) != len(indices):
            raise ValueError("two labels have the same index")
        if sum(isinstance(step, Resample | Resize) for step in self.steps) > 1:
            raise ValueError("more than one resample or resize step")
        if self.task == "classification":
            self._check_classes()
        most = max((max(getattr(step, "channels", ()), default=0) for step in self.steps), default=0)
        if most >= len(self.channels):
            raise ValueError(f"a step names channel {most}, there are {len(self.channels)} (counted from 0)")
        if self.tiling.kind == "lattice":
            if self.orientation.islower():
                raise ValueError("lattice tiling needs an orientation in patient directions, such as SPL")
            if any(getattr(step, "channels", ()) for step in self.steps):
                raise ValueError("lattice tiling takes steps that change all channels alike")
            far = [step.step for step in self.steps if not step.local]
            if far:
                raise ValueError(f"lattice tiling allows local steps only, found {', '.join(far)}")
            if self.resample is None or self.resample.interpolation == "cubic":
                raise ValueError("lattice tiling needs a resample step that is linear or nearest")
            if self.resample.separate is not None:
                raise ValueError("lattice tiling resamples all axes alike, not one separately")
        return self

    def _check_classes(self) -> None:
        names = [label.name for label in self.labels]
        if len(set(names)) != len(names):
            raise ValueError("two labels of a classification have the same name")
        lesions = [label.name for label in self.labels if label.lesion]
        if lesions:
            raise ValueError(
                f"labels of a classification are no lesions; set lesion to false for {', '.join(lesions)}"
            )

    @property
    def fixed_shape(self) -> tuple[int, int, int] | None:
        """Shape of every prepared volume, where a fit or resize step gives one; None where it varies."""
        shape: tuple[int, int, int] | None = None
        for step in self.steps:
            if isinstance(step, Fit | Resize):
                shape = step.shape
            elif isinstance(step, Crop | Resample):
                shape = None
            elif isinstance(step, Pad) and shape is not None:
                i, j, k = (-(-n // m) * m for n, m in zip(shape, step.multiple, strict=True))
                shape = (i, j, k)
        return shape

    @property
    def resample(self) -> Resample | None:
        """The resample step, or None where the network reads the native grid."""
        return next((step for step in self.steps if isinstance(step, Resample)), None)

    @property
    def output_channels(self) -> int:
        """Least number of channels that the network must return for the labels to be read off."""
        return 1 + max(channel for label in self.labels for channel in label.channels)


def load_recipe(source: Path | str | bytes | dict[str, object]) -> Recipe:
    """Reads a recipe from a JSON file, JSON text (bytes) or a dictionary.

    Raises:
        RecipeError: unreadable, not JSON, unknown keys, wrong types or contradictions, each named.
    """
    where = str(source) if isinstance(source, Path | str) else "recipe"
    try:
        if isinstance(source, dict):
            data: object = source
        else:
            data = json.loads(source if isinstance(source, bytes) else Path(source).read_bytes())
    except OSError as error:
        raise RecipeError(f"the recipe cannot be read: {error.strerror}", where=where) from error
    except ValueError as error:
        raise RecipeError(f"the recipe is not valid JSON: {error}", where=where) from error
    try:
        return Recipe.model_validate_json(json.dumps(data))
    except ValidationError as error:
        faults = [
            f"{'.'.join(str(part) for part in item['loc']) or 'recipe'}: {item['msg']}"
            for item in error.errors()
        ]
        raise RecipeError("; ".join(faults), where=where, todo="compare with `wetread schema`") from error
