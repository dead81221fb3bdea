"""The folder of results: whole or absent, never half-written."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from wetread.errors import OutputError, WetreadError
from wetread.storage import write_error


def default_out(study: Path) -> Path:
    """``NAME-reading`` in the working directory, NAME being the study's name without suffixes."""
    name = Path(study).absolute().name
    for suffix in (".gz", ".nii", ".zip", ".dcm"):
        name = name.removesuffix(suffix)
    return Path(f"{name}-reading")


class OutputFolder:
    """A folder that appears with everything in it, or not at all.

    Args:
        path: the folder; it may exist when it is empty.
        force: replace what it holds.
    """

    def __init__(self, path: Path | str, *, force: bool = False) -> None:
        self.path = Path(path)
        self.force = force

    def check(self) -> None:
        """Fails early: before a study is read for nothing.

        Raises:
            OutputError: the folder is a file, or holds something and ``force`` is not set.
        """
        if self.path.exists() and not self.path.is_dir():
            raise OutputError(
                "the output folder is a file", where=str(self.path), todo="name another with -o"
            )
        if self.path.is_dir() and any(self.path.iterdir()):
            ours = any((self.path / name).is_file() for name in ("reading.json", "failure.json"))
            if self.force and not ours:
                raise OutputError(
                    "the output folder holds files that are not a reading; they are not removed",
                    where=str(self.path),
                    todo="name another with -o",
                )
            if not self.force:
                raise OutputError(
                    "the output folder holds something already",
                    where=str(self.path),
                    todo="name another with -o, or replace it with --force",
                    code="OUTPUT_EXISTS",
                )
        try:
            self.path.absolute().parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(self.path, error) from error

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """Gives a temporary folder beside the final one, which replaces it when the block succeeds.

        Raises:
            OutputError: the disk is full or the folder cannot be written; nothing is left behind.
        """
        self.check()
        target = self.path.absolute()
        try:
            stage = Path(tempfile.mkdtemp(prefix=f".{target.name}-partial-", dir=target.parent))
        except OSError as error:
            raise write_error(target, error) from error
        try:
            yield stage
            stage.chmod(0o755)
            old = stage.with_name(stage.name + "-old")
            if target.exists():
                target.rename(old)
            try:
                stage.rename(target)
            except OSError:
                if old.exists():
                    old.rename(target)
                raise
            shutil.rmtree(old, ignore_errors=True)
        except OSError as error:
            raise write_error(target, error) from error
        finally:
            shutil.rmtree(stage, ignore_errors=True)

    def write_failure(self, error: WetreadError, study: Path | str) -> None:
        """Leaves ``failure.json`` as the answer to a study that could not be read.

        A failure to write it is swallowed: the error itself is on its way to the user.
        """
        with suppress(OutputError), self.staging() as stage:
            data = {"format": 1, "status": "failed", "study": str(study), **error.to_json()}
            (stage / "failure.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
