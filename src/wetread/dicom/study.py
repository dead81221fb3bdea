"""Studies: what a folder, a file or an archive holds, as series that can be read."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from wetread.dicom import tags
from wetread.dicom.archive import ArchiveLimits, is_archive, unpacked
from wetread.dicom.dicomdir import is_directory, missing_instances
from wetread.dicom.enhanced import frames
from wetread.dicom.files import BrokenFileError, NotDicomError, read_header
from wetread.dicom.header import Instance, SliceHeader, Source
from wetread.dicom.identity import complete_series, complete_sop
from wetread.dicom.series import Series
from wetread.dicom.split import split
from wetread.errors import FileFormatError, GeometryError, InputError, Notice, PixelError, StudyNotFoundError

_STORAGE = "1.2.840.10008.5.1.4.1.1."
# Classes that carry pixels of an acquisition: CT, MR, PET, secondary capture, NM, and their enhanced forms.
_IMAGE_CLASSES = frozenset(
    _STORAGE + part
    for part in ("2", "2.1", "2.2", "4", "4.1", "4.4", "128", "130", "128.1", "7", "7.1", "7.2", "7.3", "20")
)
# Objects with pixels that are no images of the patient: segmentations, dose, parametric maps, presentation
# states.
_NOT_IMAGES = frozenset(_STORAGE + part for part in ("66.4", "66.7", "481.2", "30"))
_SHOWN = 5


class Study:
    """DICOM as it arrived: the series of a folder, a file or an archive.

    A context manager: leaving it removes what was unpacked. Made by `open_study`.

    Attributes:
        path: what was opened.
        series: volume candidates, ordered by series number.
        notices: files that were left out, and why.
    """

    def __init__(
        self,
        path: Path,
        series: tuple[Series, ...],
        notices: tuple[Notice, ...],
        resources: ExitStack | None = None,
    ) -> None:
        self.path = path
        self.series = series
        self.notices = notices
        self._resources = resources or ExitStack()

    def close(self) -> None:
        """Removes temporary files; series that were not read yet cannot be read any more."""
        self._resources.close()

    def __enter__(self) -> Study:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_study(path: Path | str, *, limits: ArchiveLimits | None = None) -> Study:
    """Opens a DICOM study.

    Args:
        path: a folder (searched to any depth), one DICOM file, or a zip of either.
        limits: what an archive may hold.

    Raises:
        StudyNotFoundError: the path does not exist, or nothing in it claims to be DICOM.
        FileFormatError: what claims to be DICOM is broken, and nothing else is there; names the first.
        ArchiveError: the archive is damaged, over a limit or unsafe.
    """
    path = Path(path)
    if not path.exists():
        raise StudyNotFoundError("the path does not exist", where=str(path), todo="check the path")
    with ExitStack() as resources:
        if path.is_dir():
            sources: Iterable[Source] = _walk(path)
        elif is_archive(path):
            sources = resources.enter_context(unpacked(path, limits or ArchiveLimits()))
        else:
            sources = [Source(path.name, path=path)]
        with tags.quiet():
            scan = _scan(sources)
            series = gather(scan.instances, scan.problems)
            notices = scan.notices()
        if not series:
            raise _nothing(path, scan)
        return Study(path, series, notices, resources.pop_all())
    raise AssertionError("unreachable")


def _walk(folder: Path) -> list[Source]:
    """All files below a folder in a fixed order; links to folders are not followed."""
    found = []
    for root, folders, names in os.walk(folder):
        folders.sort()
        found += [Path(root) / name for name in sorted(names)]
    return [Source(str(path.relative_to(folder)), path=path) for path in found if path.is_file()]


@dataclass
class _Scan:
    """What was found: usable instances, broken ones by series, and files that are something else."""

    instances: list[Instance] = field(default_factory=list)
    directories: list[Instance] = field(default_factory=list)
    problems: list[tuple[str, InputError]] = field(default_factory=list)
    stray: list[str] = field(default_factory=list)
    other: list[Instance] = field(default_factory=list)
    refilled: int = 0
    completed: list[Notice] = field(default_factory=list)

    def notices(self) -> tuple[Notice, ...]:
        """One notice for each problem, and one for all strays and for each kind of other object."""
        found = [Notice(error.code, error.what + "; left out", error.where) for _, error in self.problems]
        found += [
            Notice("TRANSFER_SYNTAX_MISSING", problem, instance.label)
            for instance in self.instances
            for problem in instance.problems
        ][:_SHOWN]
        if self.refilled:
            found.append(
                Notice(
                    "SOP_UIDS_MISSING",
                    f"{self.refilled} instances without SOP Instance or Class UID; taken "
                    "from the file meta information",
                    self.instances[0].source.name,
                )
            )
        found += self.completed
        if self.stray:
            shown = ", ".join(self.stray[:_SHOWN]) + (", …" if len(self.stray) > _SHOWN else "")
            found.append(
                Notice("STRAY_FILES", f"{len(self.stray)} files that are not DICOM were left out", shown)
            )
        for kind, count in Counter(instance.modality or "?" for instance in self.other).items():
            found.append(
                Notice(
                    "NOT_IMAGES",
                    f"{count} DICOM objects of modality {kind} that are no images were left out",
                    next(i for i in self.other if (i.modality or "?") == kind).source.name,
                )
            )
        return tuple(found)


def _scan(sources: Iterable[Source]) -> _Scan:
    """Reads the header of every file and sorts the files by what they are."""
    scan = _Scan()
    for source in sources:
        try:
            instance = read_header(source)
            if is_directory(instance):
                scan.directories.append(instance)
            elif _is_image(instance):
                scan.refilled += complete_sop(instance)
                scan.instances.append(instance)
            else:
                scan.other.append(instance)
        except NotDicomError as error:
            if _claims(source.name):
                scan.problems.append(("", error))
            else:
                scan.stray.append(source.name)
        except BrokenFileError as error:
            scan.problems.append((error.series_instance_uid, error))
        except FileFormatError as error:
            if error.code == "FILE_EMPTY" and not _claims(source.name):
                scan.stray.append(source.name)
            else:
                scan.problems.append(("", error))
    problems, scan.completed = complete_series(scan.instances)
    scan.problems += problems
    present = {instance.sop_instance_uid for instance in scan.instances}
    known = {instance.series_instance_uid for instance in scan.instances}
    for directory in scan.directories:
        for series, uid in missing_instances(directory, present):
            if series in known:
                scan.problems.append(
                    (
                        series,
                        FileFormatError(
                            f"instance {uid} is listed and not there",
                            where=directory.source.name,
                            code="INSTANCE_MISSING",
                            todo="copy the study with all of its files",
                        ),
                    )
                )
    return scan


def _claims(name: str) -> bool:
    """True where a file's name says it is DICOM."""
    return name.lower().endswith((".dcm", ".dicom", ".ima", ".dic"))


def _is_image(instance: Instance) -> bool:
    """True for images of the patient, whole or not; False for reports, segmentations and the like."""
    kind = instance.text("SOPClassUID")
    if kind in _NOT_IMAGES:
        return False
    if instance.pixels is not None or kind in _IMAGE_CLASSES:
        return True
    return not kind and instance.modality in ("", "CT", "MR", "PT")


def gather(
    instances: Iterable[Instance], problems: Iterable[tuple[str, InputError]] = ()
) -> tuple[Series, ...]:
    """Groups instances into series and splits what is more than one volume.

    Args:
        instances: headers in any order.
        problems: (Series Instance UID or "", error) of files that could not be used; a series with a problem
            of its own refuses to be read, and one with a missing instance number does when there is a
            problem of unknown series.

    Returns:
        Volume candidates, ordered by series number, then by first appearance.
    """
    problems = list(problems)
    by_uid: dict[str, list[Instance]] = defaultdict(list)
    for instance in instances:
        by_uid[instance.series_instance_uid].append(instance)
    series = []
    for uid, members in by_uid.items():
        broken = [error for owner, error in problems if owner == uid]
        slices: list[SliceHeader] = []
        for instance in members:
            try:
                slices += frames(instance)
            except (PixelError, GeometryError) as error:
                broken.append(error)
                slices.append(SliceHeader(instance))
        if not broken and any(not owner for owner, _ in problems):
            broken += _missing_numbers(members, [error for owner, error in problems if not owner])
        series += [Series(group.slices, split=group.reason, problems=broken) for group in split(slices)]
    return tuple(sorted(series, key=_series_number))


def _missing_numbers(members: list[Instance], problems: list[InputError]) -> list[InputError]:
    """A problem where instance numbers have a hole that one of the broken files may have left."""
    numbers = sorted({SliceHeader(instance).instance_number for instance in members})
    holes = numbers[-1] - numbers[0] + 1 - len(numbers)
    if numbers[0] <= 0 or len(numbers) != len(members) or not 0 < holes <= len(problems):
        return []
    return [
        FileFormatError(
            f"{holes} instance number{'s are' if holes > 1 else ' is'} missing and "
            f"{len(problems)} files are broken, the first: {problems[0].what}",
            where=problems[0].where,
            code="INSTANCE_MISSING",
            todo="copy the study again with all of its files",
        )
    ]


def _series_number(series: Series) -> float:
    try:
        return series.slices[0].number("SeriesNumber", 0.0)
    except PixelError:
        return 0.0


def _nothing(path: Path, scan: _Scan) -> InputError:
    """The error for a path without any image: the first problem, or what was found instead."""
    if scan.problems:
        return scan.problems[0][1]
    if scan.other:
        kinds = ", ".join(sorted({instance.modality or "?" for instance in scan.other}))
        return StudyNotFoundError(
            f"no images, only DICOM objects of modality {kinds}",
            where=str(path),
            todo="give the folder of the images",
        )
    return StudyNotFoundError(
        f"no DICOM images among {len(scan.stray)} files",
        where=str(path),
        todo="give a DICOM folder, a DICOM file or a zip of one",
    )
