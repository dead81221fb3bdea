"""One reading in progress: slices in, windows out, outputs in, the reading out."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wetread import __version__
from wetread.engines.base import Engine, EngineInfo
from wetread.errors import Notice, RecipeError, SelectionError
from wetread.findings import LabelInfo, Provenance, Reading
from wetread.findings.extract import LesionRules, extract_findings
from wetread.inference import Outcome, Sweep, Window
from wetread.inference.scores import label_scores
from wetread.package import Package
from wetread.recipe import Code, Label, Recipe
from wetread.volume import Grid


@dataclass(frozen=True)
class CaseInfo:
    """What a reading says of its origin.

    Attributes:
        modality: DICOM modality of the reference channel, empty where it is not known.
        study_instance_uid, series_instance_uid: of the reference channel, empty for files.
        sources: series UIDs or file names, one for each channel.
        gate: the gate's verdict on the engine, which goes into the reading.
        notices: what was repaired before the case began.
    """

    modality: str = ""
    study_instance_uid: str = ""
    series_instance_uid: str = ""
    sources: tuple[str, ...] = ()
    gate: str = ""
    notices: tuple[Notice, ...] = field(default=())


class Case:
    """One reading in progress.

    A folder is read by the simple loop in `wetread.reading.read`; a scheduler may run the windows of many
    cases instead. Slices come in any order; the result is the same.

    Args:
        package: whose recipe is followed and whose name the reading bears.
        engine: what runs the windows; only its output's channels and its description are used here.
        grids: source grid of each channel, or one for all; known before the voxels are.
        info: modality and origin.
        threads: threads for resampling, by default the number of usable cores.

    Raises:
        RecipeError: grids or the network's output do not fit the recipe.
        GeometryError: the channels lie in different frames of reference.
    """

    def __init__(
        self,
        package: Package,
        engine: Engine,
        grids: Grid | Sequence[Grid],
        info: CaseInfo | None = None,
        threads: int | None = None,
    ) -> None:
        self.package = package
        self.recipe: Recipe = package.recipe
        self.info = info if info is not None else CaseInfo()
        self._engine: EngineInfo = engine.info
        self._grids = (grids,) if isinstance(grids, Grid) else tuple(grids)
        self.sweep = Sweep(
            self.recipe,
            grids,
            output_channels=output_channels(engine, self.recipe),
            modality=self.info.modality,
            threads=threads,
        )
        self._image: NDArray[Any] | None = None
        self.timings_s: dict[str, float] = {}

    @property
    def grid(self) -> Grid:
        """Source grid of the reference channel: where the mask will lie."""
        return self._grids[self.recipe.reference_channel if len(self._grids) > 1 else 0]

    def add(self, first: int, voxels: NDArray[Any], channel: int = 0) -> None:
        """Takes slices ``first …`` along axis 0 of a channel's grid, shape (k, rows, columns); HU for CT."""
        if channel == self.recipe.reference_channel:
            if voxels.shape == self.grid.shape:
                self._image = voxels
            else:
                if self._image is None:
                    self._image = np.zeros(self.grid.shape, voxels.dtype)
                if not np.can_cast(voxels.dtype, self._image.dtype):
                    self._image = self._image.astype(np.result_type(voxels, self._image))
                self._image[first : first + len(voxels)] = voxels
        started = time.perf_counter()
        self.sweep.add(first, voxels, channel)
        self._spend("prepare", time.perf_counter() - started)

    def ready(self) -> list[Window]:
        """Windows that can run now and were not handed out yet."""
        return self.sweep.ready()

    def fill(self, window: Window, out: NDArray[np.float32]) -> None:
        """Writes a window's input, shape (channels, *window)."""
        self.sweep.fill(window, out)

    def accept(self, window: Window, output: NDArray[np.float32]) -> None:
        """Takes a window's output before activation: (output channels, *window), or (classes,) scores."""
        self.sweep.accept(window, output)

    @property
    def finished(self) -> bool:
        """True once every window is accepted or skipped."""
        return self.sweep.finished

    @property
    def image(self) -> NDArray[Any]:
        """Voxels of the reference channel as they came, on `grid`."""
        if self._image is None:
            raise RecipeError("no slice of the reference channel has been added", code="NO_SLICES")
        return self._image

    def finish(self) -> Reading:
        """Findings and mask, or the scores of a classification.

        Raises:
            RecipeError: windows are missing.
            SelectionError: the place where the recipe looks is not in the volume, so that "nothing found" would
                be no answer.
        """
        started = time.perf_counter()
        outcome = self.sweep.result()
        if outcome.windows_run == 0:
            place = self.recipe.place.kind
            raise SelectionError(
                f"the volume holds nothing of the place that {self.recipe.name} reads ({place})",
                where=", ".join(self.info.sources),
                todo="choose a study of that part of the body, or another package with -m",
                code="PLACE_ABSENT",
            )
        self._spend("blend", time.perf_counter() - started)
        plain = Reading(
            mask=None,
            grid=outcome.grid,
            findings=(),
            labels=tuple(label_info(label) for label in self.recipe.labels),
            provenance=self._provenance(outcome),
            notices=(*self.info.notices, *outcome.notices),
            study_instance_uid=self.info.study_instance_uid,
            series_instance_uid=self.info.series_instance_uid,
            modality=self.info.modality,
        )
        started = time.perf_counter()
        if outcome.mask is not None:
            reading = self._with_findings(plain, outcome.mask, outcome)
        else:
            assert outcome.scores is not None
            scores, classes = label_scores(self.recipe, outcome.scores)
            reading = replace(plain, scores=scores, classes=classes)
        self._spend("findings", time.perf_counter() - started)
        return replace(reading, timings_s=dict(self.timings_s))

    def _with_findings(self, plain: Reading, mask: NDArray[np.uint8], outcome: Outcome) -> Reading:
        rules = self.recipe.lesions
        findings, cleaned, components = extract_findings(
            mask,
            outcome.probability,
            self.image,
            outcome.grid,
            plain.labels,
            rules=LesionRules(rules.connectivity, rules.min_ml, rules.min_probability, rules.remove_small),
            frame_of_reference=self._frame(),
        )
        return replace(plain, mask=cleaned, findings=findings, components=components)

    def _spend(self, stage: str, seconds: float) -> None:
        self.timings_s[stage] = self.timings_s.get(stage, 0.0) + seconds

    def _frame(self) -> str:
        """Frame of reference for tracking UIDs; for files, one of the image's own: a hash of its content."""
        if self.grid.frame_of_reference:
            return self.grid.frame_of_reference
        digest = hashlib.sha256(self.grid.affine.tobytes())
        digest.update(np.ascontiguousarray(self.image[::3, ::3, ::3]).tobytes())
        return digest.hexdigest()

    def _provenance(self, outcome: Outcome) -> Provenance:
        return Provenance(
            package=self.package.name,
            package_version=self.package.version,
            package_hash=self.package.hash,
            engine=f"{self._engine.backend} {self._engine.version}",
            precision=self._engine.precision,
            device=self._engine.device,
            wetread_version=__version__,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            intended_use=self.recipe.intended_use,
            gate=self.info.gate,
            sources=self.info.sources,
            windows_run=outcome.windows_run,
            windows_skipped=outcome.windows_skipped,
        )


def output_channels(engine: Engine, recipe: Recipe) -> int:
    """Channels of the network's first output."""
    declared = engine.outputs[0].shape[1] if len(engine.outputs[0].shape) > 1 else None
    if declared is not None:
        return declared
    return engine.output_shape(recipe.tiling.window or recipe.fixed_shape or (32, 32, 32))[0]


def label_info(label: Label) -> LabelInfo:
    """A recipe's label as it goes into a reading."""

    def plain(code: Code) -> tuple[str, str, str]:
        return code.value, code.scheme, code.meaning

    return LabelInfo(
        index=label.index,
        name=label.name,
        color=label.color,
        category=plain(label.category),
        type=plain(label.type),
        anatomy=plain(label.anatomy) if label.anatomy is not None else None,
        lesion=label.lesion,
    )
