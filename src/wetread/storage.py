"""Files that are whole or absent: written under a temporary name, then renamed."""

from __future__ import annotations

import errno
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from wetread.errors import OutputError


@contextmanager
def whole_file(path: Path | str) -> Iterator[Path]:
    """Gives a temporary path beside ``path``; renames it to ``path`` when the block ends without an error.

    The temporary name starts with a dot and keeps the suffixes. On any error the temporary file is removed
    and an older file of the final name stays as it was.

    Raises:
        OutputError: the folder cannot be written to, the disk is full, or the rename fails.
    """
    target = Path(path)
    partial = target.with_name(f".partial-{uuid.uuid4().hex}-{target.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.touch(exist_ok=False)
    except OSError as error:
        raise write_error(target, error) from error
    try:
        yield partial
        partial.replace(target)
    except OSError as error:
        raise write_error(target, error) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_bytes(path: Path | str, data: bytes) -> None:
    """Writes a whole file, or none.

    Raises:
        OutputError: it could not be written.
    """
    with whole_file(path) as partial:
        partial.write_bytes(data)


def write_error(path: Path, error: OSError) -> OutputError:
    """The error of the tree for an operating system's error while writing ``path``."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return OutputError(
        f"{path.name} could not be written: {error.strerror or error}",
        where=str(path.parent),
        todo="free space on the disk" if full else "check that the folder exists and may be written to",
        code="DISK_FULL" if full else "OUTPUT_WRITE",
    )
