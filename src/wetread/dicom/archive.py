"""Archives: a zip of a study, unpacked where nothing in it can do harm.

Entries are written under names of our own (``000001``, …), so no path of the archive ever reaches the file
system; an archive that tries to climb out is refused all the same, because its maker meant harm. Limits hold
for what is really unpacked, not for what the archive says of itself.
"""

from __future__ import annotations

import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from tempfile import TemporaryDirectory

from wetread.dicom.header import Source
from wetread.errors import ArchiveError

_CHUNK = 1 << 20
_ENCRYPTED = 0x1
_READ_ERRORS = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
    IndexError,
    UnicodeError,
)


@dataclass(frozen=True)
class ArchiveLimits:
    """What an archive may hold.

    Attributes:
        entries: number of entries.
        total_bytes: bytes of all entries together, unpacked.
        ratio: unpacked by packed bytes of one entry, counted where it unpacks to more than
            ``ratio_from_bytes``.
        ratio_from_bytes: size from which the ratio counts; an empty slice packs well and is no attack.
    """

    entries: int = 200_000
    total_bytes: int = 16 << 30
    ratio: float = 300.0
    ratio_from_bytes: int = 16 << 20


def is_archive(path: Path) -> bool:
    """True for files that begin like a zip."""
    with path.open("rb") as file:
        return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")


@contextmanager
def unpacked(path: Path, limits: ArchiveLimits) -> Iterator[tuple[Source, ...]]:
    """Unpacks an archive into a temporary directory that is removed on leaving.

    Yields:
        One source for each file, named as in the archive.

    Raises:
        ArchiveError: damaged, encrypted, over a limit, or an entry that is a link or climbs out.
    """
    with TemporaryDirectory(prefix="wetread-") as folder:
        yield tuple(_unpack(path, Path(folder), limits))


def _unpack(path: Path, folder: Path, limits: ArchiveLimits) -> list[Source]:
    sources = []
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if len(entries) > limits.entries:
                raise _refused(
                    path, f"{len(entries)} entries, expected at most {limits.entries}", "ARCHIVE_ENTRIES"
                )
            for entry in entries:
                _check_entry(path, entry)
            left = limits.total_bytes
            for number, entry in enumerate(entries, start=1):
                if entry.is_dir():
                    continue
                target = folder / f"{number:06d}"
                left -= _copy(archive, entry, target, limits, left)
                sources.append(Source(entry.filename, path=target))
    except _READ_ERRORS as error:
        raise _refused(path, f"the archive is damaged: {str(error)[:120]}", "ARCHIVE_DAMAGED") from error
    except OSError as error:
        raise _refused(
            path, f"the archive cannot be unpacked: {error.strerror or error}", "ARCHIVE_IO"
        ) from error
    return sources


def _refused(path: Path, what: str, code: str, entry: str = "") -> ArchiveError:
    where = f"{path.name}: {entry}" if entry else path.name
    return ArchiveError(
        what, where=where, code=code, todo="unpack it with a tool you trust and check what it holds"
    )


def _check_entry(path: Path, entry: zipfile.ZipInfo) -> None:
    """Refuses entries that a study's archive has no business to hold."""
    name = entry.filename
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if name.startswith(("/", "\\")) or PureWindowsPath(name).drive or "\0" in name:
        raise _refused(path, "an entry has an absolute path", "ARCHIVE_PATH", name)
    if ".." in parts:
        raise _refused(path, "an entry climbs out of the archive", "ARCHIVE_PATH", name)
    if entry.flag_bits & _ENCRYPTED:
        raise _refused(path, "an entry is encrypted", "ARCHIVE_ENCRYPTED", name)
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _refused(path, "an entry is a link or a device", "ARCHIVE_LINK", name)


def _copy(
    archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path, limits: ArchiveLimits, left: int
) -> int:
    """Unpacks one entry, counting; returns its size."""
    path = Path(archive.filename or "archive")
    most = max(limits.ratio * max(entry.compress_size, 1), limits.ratio_from_bytes)
    size = 0
    with archive.open(entry) as packed, target.open("wb") as file:
        while chunk := packed.read(_CHUNK):
            size += len(chunk)
            if size > left:
                raise _refused(
                    path,
                    f"it unpacks to more than {limits.total_bytes} bytes",
                    "ARCHIVE_TOO_LARGE",
                    entry.filename,
                )
            if size > most:
                raise _refused(
                    path,
                    f"an entry unpacks to more than {limits.ratio:g} times its size",
                    "ARCHIVE_RATIO",
                    entry.filename,
                )
            file.write(chunk)
    return size
