"""Cases for calibration and for the gate: where they lie, what is true of them, and which are the same.

A folder of cases holds one entry for each: a folder (DICOM, or NIfTI with one file for each channel), a zip of
DICOM, or a NIfTI file. In a case's folder two names are never images: ``truth.nii.gz`` is the true label mask,
on the voxels of the reference channel and with the values of the recipe's labels; ``truth.json`` names the true
classes, ``{"labels": ["haemorrhage"]}``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wetread.errors import GateError, InputError, StudyNotFoundError
from wetread.geometry.orient import orient
from wetread.reading.flow import Inputs, load_inputs
from wetread.recipe import Recipe
from wetread.volume import Grid

TRUTH_MASK = "truth.nii.gz"
TRUTH_CLASSES = "truth.json"
_STUDY_FILES = (".nii", ".nii.gz", ".zip")


@dataclass(frozen=True)
class GateCase:
    """One case on disk.

    Attributes:
        name: of its file or folder, for tables and messages.
        study: what a reading opens.
        truth: true label mask, or None.
        classes: file with the true classes, or None.
    """

    name: str
    study: Path
    truth: Path | None = None
    classes: Path | None = None


@dataclass(frozen=True, eq=False)
class LoadedCase:
    """One case in memory.

    Attributes:
        name: of the case.
        digest: hash of its voxels, see `voxel_digest`.
        inputs: the recipe's channels.
        truth: uint8 label mask on the grid of the reference channel, or None.
        classes: names of the true classes, or None.
    """

    name: str
    digest: str
    inputs: Inputs
    truth: NDArray[np.uint8] | None = None
    classes: frozenset[str] | None = None

    @property
    def bytes(self) -> int:
        """Memory that voxels and truth take."""
        voxels = sum(item.volume.voxels.nbytes for item in self.inputs.loaded)
        return voxels + (0 if self.truth is None else self.truth.nbytes)


def find_cases(folder: Path | str) -> tuple[GateCase, ...]:
    """The cases of a folder in the order of their names; a path that is one case gives that case.

    Raises:
        StudyNotFoundError: there is nothing.
    """
    folder = Path(folder)
    if not folder.exists():
        raise StudyNotFoundError("no such file or folder", where=str(folder), todo="give a folder of cases")
    if folder.is_file() or (folder / TRUTH_MASK).is_file() or (folder / TRUTH_CLASSES).is_file():
        return (_case(folder),)
    entries = sorted(item for item in folder.iterdir() if not item.name.startswith("."))
    cases = [e for e in entries if e.is_dir() or e.name.lower().endswith(_STUDY_FILES)]
    if cases:
        return tuple(_case(entry) for entry in cases)
    if entries:
        return (_case(folder),)
    raise StudyNotFoundError("the folder of cases is empty", where=str(folder), todo="put one case in it")


def _case(path: Path) -> GateCase:
    if path.is_file():
        return GateCase(path.name, path)
    truth, classes = path / TRUTH_MASK, path / TRUTH_CLASSES
    return GateCase(
        path.name, path, truth if truth.is_file() else None, classes if classes.is_file() else None
    )


def load_case(case: GateCase, recipe: Recipe, threads: int = 0) -> LoadedCase:
    """Loads the channels that the recipe reads, and the truth.

    Raises:
        InputError: the study cannot be read, or the truth does not lie on its voxels or names no label of the
            recipe; names the file.
    """
    try:
        inputs = load_inputs(case.study, recipe, threads=threads, ignore=(TRUTH_MASK,))
    except InputError as error:
        error.where = f"{case.name}: {error.where}" if error.where else case.name
        raise
    grid = inputs.loaded[recipe.reference_channel].volume.grid
    return LoadedCase(
        name=case.name,
        digest=voxel_digest(inputs),
        inputs=inputs,
        truth=None if case.truth is None else _truth(case.truth, grid, recipe),
        classes=None if case.classes is None else _classes(case.classes, recipe),
    )


def voxel_digest(inputs: Inputs) -> str:
    """SHA-256 of shape and voxels of all channels, as float32.

    Names, headers, compression and geometry do not count: a scan that was renamed, packed or moved in space is
    the same scan. The order of the axes does: a DICOM series and its conversion to NIfTI differ.
    """
    digest = hashlib.sha256()
    for item in inputs.loaded:
        voxels = item.volume.voxels
        digest.update(json.dumps(voxels.shape).encode())
        for part in voxels:
            digest.update(np.ascontiguousarray(part, dtype="<f4").data)
    return digest.hexdigest()


def _truth(path: Path, grid: Grid, recipe: Recipe) -> NDArray[np.uint8]:
    from wetread.nifti import read_nifti

    volume, _ = read_nifti(path)
    mask, found = orient(volume.voxels, volume.grid, grid.axis_codes)
    if not found.same_place(grid, tolerance_mm=0.1 * min(grid.spacing_mm)):
        raise InputError(
            f"the true mask has shape {found.shape} at {_corner(found)}, the image {grid.shape} at {_corner(grid)}",
            where=str(path),
            todo="save the truth on the voxels of the image",
            code="TRUTH_GRID",
        )
    values = np.unique(mask)
    known = {0, *(label.index for label in recipe.labels)}
    if unknown := sorted(set(values.tolist()) - known):
        raise InputError(
            f"the true mask holds {unknown[:5]}, the recipe's labels are {sorted(known - {0})}",
            where=str(path),
            todo="give the truth the values of the recipe's labels",
            code="TRUTH_LABELS",
        )
    return np.ascontiguousarray(mask, dtype=np.uint8)


def _corner(grid: Grid) -> tuple[float, ...]:
    return tuple(round(float(x), 2) for x in grid.origin_mm)


def _classes(path: Path, recipe: Recipe) -> frozenset[str]:
    try:
        data: Any = json.loads(path.read_bytes())
        names = [data["label"]] if "label" in data else list(data["labels"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"the true classes cannot be read: {error}",
            where=str(path),
            todo='write {"labels": ["NAME", …]}',
            code="TRUTH_CLASSES",
        ) from error
    known = {label.name for label in recipe.labels}
    if unknown := sorted(set(names) - known):
        raise InputError(
            f"the true classes {unknown} are no labels of the recipe, which has {sorted(known)}",
            where=str(path),
            code="TRUTH_CLASSES",
        )
    return frozenset(names)


def check_held_out(gate: Mapping[str, str], calibration: Mapping[str, str]) -> None:
    """Refuses to judge a network on a case that calibrated it, or on one case twice.

    Args:
        gate, calibration: name of each case and the hash of its voxels.

    Raises:
        GateError: names both cases.
    """
    calibrated = {digest: name for name, digest in calibration.items()}
    seen: dict[str, str] = {}
    for name, digest in gate.items():
        if digest in calibrated:
            raise GateError(
                f"the gate's case {name} has the same voxels as {calibrated[digest]}, which calibrated the network",
                where=name,
                todo="judge on cases that the network was not calibrated on",
                code="GATE_CASE_CALIBRATED",
            )
        if digest in seen:
            raise GateError(
                f"the gate's cases {seen[digest]} and {name} have the same voxels",
                where=name,
                todo="leave one of them out: it would count twice",
                code="GATE_CASE_TWICE",
            )
        seen[digest] = name


class CaseShelf:
    """Cases that are read several times: each is loaded once, as long as all fit into a budget of memory.

    Args:
        cases: what lies on it.
        recipe: whose channels are loaded.
        threads: for loading; 0 for all cores.
        budget_bytes: voxels that are kept; what does not fit is loaded again when it is asked for.
    """

    def __init__(
        self, cases: Sequence[GateCase], recipe: Recipe, *, threads: int = 0, budget_bytes: int = 2 * 2**30
    ) -> None:
        self.cases = tuple(cases)
        self._recipe = recipe
        self._threads = threads
        self._left = budget_bytes
        self._kept: dict[str, LoadedCase] = {}
        self._digests: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.cases)

    def load(self, case: GateCase) -> LoadedCase:
        """The case, from memory or from disk.

        Raises:
            InputError: see `load_case`.
        """
        key = str(case.study)
        if key in self._kept:
            return self._kept[key]
        loaded = load_case(case, self._recipe, self._threads)
        self._digests[case.name] = loaded.digest
        if loaded.bytes <= self._left:
            self._left -= loaded.bytes
            self._kept[key] = loaded
        return loaded

    def digests(self) -> dict[str, str]:
        """Hash of each case's voxels by its name; loads what was not loaded yet."""
        for case in self.cases:
            if case.name not in self._digests:
                self.load(case)
        return {case.name: self._digests[case.name] for case in self.cases}

    def paths(self) -> list[Path]:
        """Where the studies lie."""
        return [case.study for case in self.cases]


def case_shelf(folder: Path | str, recipe: Recipe, threads: int = 0) -> CaseShelf:
    """The cases of a folder, ready to be loaded."""
    return CaseShelf(find_cases(folder), recipe, threads=threads)


def digest_list(digests: Mapping[str, str]) -> Iterable[dict[str, str]]:
    """Names and hashes as plain data, in the order of the names."""
    return [{"name": name, "sha256": digests[name]} for name in sorted(digests)]
