"""Studies as the flow sees them: candidates to choose from, and the volumes of those that were chosen."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from wetread.errors import Notice, StudyNotFoundError, WetreadError
from wetread.reading.select import Candidate
from wetread.volume import Volume

if TYPE_CHECKING:
    from wetread.dicom import Series

Count = Callable[[int, int], None]
_NIFTI = (".nii", ".nii.gz")


@dataclass(frozen=True, eq=False)
class Loaded:
    """One channel's volume, what was repaired for it, and the DICOM series that it came from, if any."""

    volume: Volume
    notices: tuple[Notice, ...]
    series: Series | None = None


class Source(Protocol):
    """A study that was opened."""

    kind: str
    notices: tuple[Notice, ...]

    def candidates(self) -> list[Candidate]:
        """Everything that could feed a channel."""
        ...

    def load(self, index: int, *, threads: int | None = None, progress: Count | None = None) -> Loaded:
        """The volume of one candidate.

        Raises:
            InputError: it is damaged or describes no regular volume.
        """
        ...

    def describe(self, index: int) -> dict[str, Any]:
        """Shape, affine, spacing, repairs or refusal of one candidate, as plain data."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_source(path: Path | str, *, ignore: Collection[str] = ()) -> Source:
    """Opens a DICOM folder, file or zip, or NIfTI files.

    Args:
        path: where the study lies.
        ignore: names of NIfTI files in a folder that are no images of the study, such as a true mask.

    Raises:
        StudyNotFoundError: there is nothing at the path.
        InputError: see `wetread.dicom.open_study`.
    """
    path = Path(path)
    if not path.exists():
        raise StudyNotFoundError("no such file or folder", where=str(path), todo="check the path")
    if _is_image(path):
        return NiftiSource([path])
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if _is_image(p) and p.name not in ignore)
        if files:
            return NiftiSource(files)
    return DicomSource(path)


def _is_image(path: Path) -> bool:
    return path.is_file() and path.name.lower().endswith(_NIFTI)


def stem(path: Path) -> str:
    """File name without ``.nii`` or ``.nii.gz``."""
    name = path.name
    for suffix in reversed(_NIFTI):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


class DicomSource:
    """A DICOM study."""

    kind = "DICOM"

    def __init__(self, path: Path) -> None:
        from wetread.dicom import open_study

        self._study = open_study(path)
        self.series = tuple(self._study.series)
        self.notices = tuple(self._study.notices)

    def candidates(self) -> list[Candidate]:
        """One for each series, or part of a series that was split."""
        return [self._candidate(series, i) for i, series in enumerate(self.series)]

    def _candidate(self, series: Series, index: int) -> Candidate:
        spacing, problem = None, ""
        if series.is_localiser:
            problem = "a localiser"
        else:
            try:
                spacing = series.grid()[0].spacing_mm[0]
            except WetreadError as error:
                problem = f"{error.code}: {error}"
        told = series.attributes
        number = told.get("series_number", "")
        parts = [s for s in self.series if s.uid == series.uid]
        key = series.uid if len(parts) == 1 else f"{series.uid} part {parts.index(series) + 1}"
        return Candidate(
            key=key or f"series {index + 1}",
            modality=series.modality,
            description=told.get("description", ""),
            sequence=" ".join(filter(None, (told.get("sequence"), told.get("protocol")))),
            body_part=told.get("body_part", ""),
            image_type=tuple(told.get("image_type", "").split("\\")),
            number=int(number) if number.lstrip("-").isdigit() else 0,
            slices=len(series),
            slice_spacing_mm=spacing,
            problem=problem,
        )

    def load(self, index: int, *, threads: int | None = None, progress: Count | None = None) -> Loaded:
        """Voxels of one series, with the repairs of its geometry and pixels."""
        series = self.series[index]
        volume, notices = series.volume(threads=threads, progress=progress)
        return Loaded(volume, tuple(notices), series)

    def describe(self, index: int) -> dict[str, Any]:
        """Attributes and geometry of one series."""
        series = self.series[index]
        data: dict[str, Any] = {"instances": len(series), "split": series.split} | series.attributes
        try:
            grid, notices = series.grid()
        except WetreadError as error:
            return data | {"refused": error.to_json()}
        return data | {"grid": grid.to_json(), "repaired": [notice.to_json() for notice in notices]}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._study.close()


class NiftiSource:
    """One or several NIfTI files, each a volume."""

    kind = "NIfTI"

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self.notices: tuple[Notice, ...] = ()
        self._read: dict[int, Loaded] = {}

    def candidates(self) -> list[Candidate]:
        """One for each file; its description is the file's stem."""
        return [self._candidate(i) for i in range(len(self.paths))]

    def _candidate(self, index: int) -> Candidate:
        from wetread.nifti import read_grid

        path, slices, spacing, problem = self.paths[index], 0, None, ""
        try:
            grid = read_grid(path)
            axis = max(range(3), key=lambda a: grid.spacing_mm[a])
            slices, spacing = grid.shape[axis], grid.spacing_mm[axis]
        except WetreadError as error:
            problem = f"{error.code}: {error}"
            if len(self.paths) == 1:
                raise
        return Candidate(
            key=path.name,
            description=stem(path),
            slices=slices,
            slice_spacing_mm=spacing,
            problem=problem,
            from_file=True,
        )

    def load(self, index: int, *, threads: int | None = None, progress: Count | None = None) -> Loaded:
        """Voxels of one file."""
        from wetread.nifti import read_nifti

        volume, notices = read_nifti(self.paths[index])
        if progress is not None:
            progress(1, 1)
        return Loaded(volume, tuple(notices))

    def describe(self, index: int) -> dict[str, Any]:
        """Geometry of one file."""
        try:
            loaded = self.load(index)
        except WetreadError as error:
            return {"file": self.paths[index].name, "refused": error.to_json()}
        return {
            "file": self.paths[index].name,
            "dtype": str(loaded.volume.voxels.dtype),
            "grid": loaded.volume.grid.to_json(),
            "repaired": [notice.to_json() for notice in loaded.notices],
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None
