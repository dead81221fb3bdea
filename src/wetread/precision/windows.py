"""Calibration windows: what the network will really see, drawn through the recipe's own preprocessing."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wetread.errors import NotFiniteError, PixelError, SelectionError
from wetread.inference import Sweep, Window
from wetread.reading.flow import load_inputs
from wetread.reading.source import Loaded
from wetread.recipe import Recipe

TRUTH_FILE = "truth.nii.gz"
"""Where a case of the gate keeps its true mask; no image, whatever else lies beside it."""


@dataclass(frozen=True, eq=False)
class CalibrationWindow:
    """One window of one case.

    Attributes:
        case: the case's path as it was given.
        array: float32 (channels, *window), as the network takes it.
    """

    case: str
    array: NDArray[np.float32]


def calibration_windows(
    recipe: Recipe,
    cases: Sequence[Path],
    *,
    per_case: int = 8,
    seed: int = 0,
    threads: int | None = None,
) -> Iterator[CalibrationWindow]:
    """Draws windows from several cases, one case in memory at a time.

    Each case goes through series selection, preprocessing and the choice of windows as a reading does, so only
    windows that the recipe would run are drawn. They are cut into as many runs in canonical order as windows
    are wanted, and one is drawn from each: the windows then spread over the case from end to end. Where the
    recipe mirrors, each window is flipped along axes drawn at random, because the network sees these too. The
    draw depends on the seed, the case's name and the number of its windows, not on the other cases.

    Args:
        recipe: how the network is used.
        cases: DICOM folder, zip or file; NIfTI file, or folder of several for several channels. A file
            ``truth.nii.gz`` in a folder is left out.
        per_case: windows of each case; all where it has no more. A recipe with ``whole`` has one.
        seed: of the draw.
        threads: for decoding and resampling.

    Raises:
        NotFiniteError: voxels or a prepared window hold NaN or infinity; names the case.
        InputError: a case cannot be read, or no series of it suits the recipe.
        SelectionError: nothing of the place where the recipe looks is in a case; names it.
    """
    for case in cases:
        sweep = _swept(recipe, Path(case), threads)
        windows = sweep.ready()
        if not windows:
            raise SelectionError(
                f"the case has no window that {recipe.name} would run ({recipe.place.kind})",
                where=str(case),
                todo="calibrate on cases that show what the network is for",
                code="PLACE_ABSENT",
            )
        shape = sweep.window_shape
        assert shape is not None
        rng = np.random.default_rng([seed, zlib.crc32(Path(case).name.encode())])
        for window in drawn(windows, per_case, rng):
            array = np.empty((len(recipe.channels), *shape), np.float32)
            sweep.fill(window, array)
            if not np.isfinite(array).all():
                raise _not_finite(f"a prepared window at {window.start}", case)
            flipped = tuple(1 + axis for axis in recipe.tiling.mirror_axes if rng.random() < 0.5)
            yield CalibrationWindow(str(case), np.ascontiguousarray(np.flip(array, flipped)))
        del sweep  # before the next case is read: only one lies in memory


def drawn(windows: Sequence[Window], count: int, rng: np.random.Generator) -> list[Window]:
    """One window from each of `count` equal runs, in order; all windows where there are no more."""
    if len(windows) <= count:
        return list(windows)
    edges = np.linspace(0, len(windows), count + 1)
    return [
        windows[int(rng.integers(int(np.ceil(a)), int(np.ceil(b))))] for a, b in itertools.pairwise(edges)
    ]


def _swept(recipe: Recipe, case: Path, threads: int | None) -> Sweep:
    """The case with all its slices prepared."""
    try:
        loaded = load_inputs(case, recipe, threads=threads or 0, ignore=(TRUTH_FILE,)).loaded
    except PixelError as error:
        if error.code == "VOXELS_NOT_FINITE":
            raise _not_finite(f"the image ({error.what})", case) from error
        raise
    sweep = Sweep(
        recipe,
        [item.volume.grid for item in loaded],
        output_channels=recipe.output_channels,
        modality=_modality(recipe, loaded),
        threads=threads,
    )
    for channel, item in enumerate(loaded):
        sweep.add(0, item.volume.voxels, channel)
    return sweep


def _modality(recipe: Recipe, loaded: Sequence[Loaded]) -> str:
    """Modality of the reference channel; of a file, the one that the recipe expects, as in a reading."""
    index = recipe.reference_channel
    return loaded[index].volume.modality or (recipe.channels[index].select.modality or "").upper()


def _not_finite(what: str, case: Path | str) -> NotFiniteError:
    return NotFiniteError(
        f"{what} holds NaN or infinite values; ranges observed on it would be worthless",
        where=str(case),
        todo="repair this calibration case, or leave it out",
    )
