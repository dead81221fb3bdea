"""Preprocessing steps of a recipe, executed in the order in which they are listed.

Each step says whether it is *local*: its result at a voxel depends on nothing further away than the
interpolation's support, so that it can run on part of a scan. Only local steps go with `lattice` tiling.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Interpolation = Literal["linear", "cubic", "nearest"]
Channels = Annotated[
    tuple[Annotated[int, Field(ge=0)], ...],
    Field(description="numbers of the recipe's channels that the step changes; empty for all"),
]
Size = Annotated[int, Field(ge=1, le=4096)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Clip(_Frozen):
    """Limits intensities to ``[lower, upper]`` (HU for CT)."""

    local: ClassVar[bool] = True
    step: Literal["clip"] = "clip"
    channels: Channels = ()
    lower: float
    upper: float

    @model_validator(mode="after")
    def _ordered(self) -> Clip:
        if not self.lower < self.upper:
            raise ValueError(f"lower ({self.lower}) must be below upper ({self.upper})")
        return self


class Scale(_Frozen):
    """Maps ``[lower, upper]`` linearly to ``[to_lower, to_upper]``, without clipping."""

    local: ClassVar[bool] = True
    step: Literal["scale"] = "scale"
    channels: Channels = ()
    lower: float
    upper: float
    to_lower: float = 0.0
    to_upper: float = 1.0

    @model_validator(mode="after")
    def _ordered(self) -> Scale:
        if not self.lower < self.upper:
            raise ValueError(f"lower ({self.lower}) must be below upper ({self.upper})")
        return self


class Normalise(_Frozen):
    """Subtracts a stated mean and divides by a stated standard deviation (nnU-Net's CTNormalization)."""

    local: ClassVar[bool] = True
    step: Literal["normalise"] = "normalise"
    channels: Channels = ()
    mean: float
    std: float = Field(gt=0)


class MinMax(_Frozen):
    """Maps the volume's own minimum and maximum (or percentiles) to [0, 1]."""

    local: ClassVar[bool] = False
    step: Literal["minmax"] = "minmax"
    channels: Channels = ()
    lower_percentile: float = Field(0.0, ge=0, le=100)
    upper_percentile: float = Field(100.0, ge=0, le=100)
    clip: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> MinMax:
        if not self.lower_percentile < self.upper_percentile:
            raise ValueError("lower_percentile must be below upper_percentile")
        return self


class ZScore(_Frozen):
    """Subtracts the volume's own mean and divides by its own standard deviation.

    With ``nonzero`` the statistics are those of voxels that are not zero, and the others stay zero. With
    ``filled`` they are those of the region in which any channel of the recipe is not zero, its holes filled,
    and what lies outside is left as it is (nnU-Net's ZScoreNormalization with its mask).
    """

    local: ClassVar[bool] = False
    step: Literal["zscore"] = "zscore"
    channels: Channels = ()
    nonzero: bool = False
    filled: bool = False

    @model_validator(mode="after")
    def _one_region(self) -> ZScore:
        if self.nonzero and self.filled:
            raise ValueError("nonzero and filled are two regions, choose one")
        return self


class Crop(_Frozen):
    """Crops to the bounding box of voxels above the threshold in any channel, plus a margin in voxels.

    With ``nonzero`` it is the box of voxels that differ from zero in any channel, as nnU-Net crops; what was
    cut off is background in the mask.
    """

    local: ClassVar[bool] = False
    step: Literal["crop"] = "crop"
    threshold: float = 0.0
    margin: int = Field(0, ge=0)
    nonzero: bool = False

    @model_validator(mode="after")
    def _one_rule(self) -> Crop:
        if self.nonzero and self.threshold:
            raise ValueError("a crop to nonzero voxels takes no threshold")
        return self


class Pad(_Frozen):
    """Pads symmetrically so that every axis is a multiple of the given number of voxels."""

    local: ClassVar[bool] = False
    step: Literal["pad"] = "pad"
    multiple: tuple[int, int, int]
    value: float = 0.0


class Fit(_Frozen):
    """Cuts or pads every axis around the middle to a shape in voxels (MONAI's ResizeWithPadOrCrop)."""

    local: ClassVar[bool] = False
    step: Literal["fit"] = "fit"
    shape: tuple[Size, Size, Size]
    value: float = 0.0


class Resize(_Frozen):
    """Resamples the whole extent to a shape in voxels, whatever the spacing; outer voxel edges coincide.

    For networks trained on volumes of one shape, as classifiers often are. ``antialias`` is `Resample`'s.
    """

    local: ClassVar[bool] = False
    step: Literal["resize"] = "resize"
    shape: tuple[Size, Size, Size]
    interpolation: Interpolation = "linear"
    antialias: bool = False


class Separate(_Frozen):
    """Where slices lie far apart, the coarse axis is resampled by itself, as nnU-Net does.

    The rule looks at the spacing before; where its largest is more than ``anisotropy`` times its smallest, the
    axis of the largest is the coarse one. Else it looks at the spacing after in the same way. Two axes that
    are equally coarse are none.
    """

    anisotropy: float = Field(3.0, ge=1)
    interpolation: Literal["nearest", "linear"] = Field("nearest", description="along the coarse axis")


class Resample(_Frozen):
    """Resamples to a spacing in mm, in the order of the recipe's orientation codes.

    ``antialias`` smooths before downsampling: Gaussian with sigma = (new/old − 1)/2 source voxels, see
    `wetread.geometry.antialias_sigma`. ``alignment`` says, where the grid follows the volume's extent
    (tilings ``fitted`` and ``whole``), whether the outer voxel edges coincide (``edges``, as in nnU-Net) or
    the first voxel centres (``first``, as in MONAI's Spacing).

    ``boundary`` says how a cubic spline continues beyond the first and last voxel: ``mirror`` (whole-sample)
    or ``edge`` (the last value goes on, as in scikit-image's resize). ``limit`` keeps a cubic spline from
    leaving the range of the values before it (of the slice, where the coarse axis is resampled separately).
    """

    local: ClassVar[bool] = True
    step: Literal["resample"] = "resample"
    spacing_mm: tuple[float, float, float]
    interpolation: Interpolation = "linear"
    antialias: bool = False
    alignment: Literal["edges", "first"] = "edges"
    boundary: Literal["mirror", "edge"] = "mirror"
    limit: bool = False
    separate: Separate | None = None

    @model_validator(mode="after")
    def _positive(self) -> Resample:
        if min(self.spacing_mm) <= 0:
            raise ValueError(f"spacing_mm must be positive, found {self.spacing_mm}")
        return self


Step = Annotated[
    Clip | Scale | Normalise | MinMax | ZScore | Crop | Pad | Fit | Resize | Resample,
    Field(discriminator="step"),
]
