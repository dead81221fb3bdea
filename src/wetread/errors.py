"""Errors and notices: everything that can go wrong with a study, and what each case is called outside.

A study passes through these stages; the arrow names the exception of a failure there::

    path ──► files ──► series ──► grid ──► voxels ──► windows ──► engine ──► labels ──► outputs
         │        │         │        │         │          │          │          │
         │        │         │        │         │          │          │          └ OutputError
         │        │         │        │         │          │          └ EngineError (DeviceMemoryError, DeviceFaultError,
         │        │         │        │         │          │                         NotFiniteError)
         │        │         │        │         │          └ RecipeError
         │        │         │        │         └ PixelError
         │        │         │        └ GeometryError
         │        │         └ SelectionError
         │        └ FileFormatError, ArchiveError
         └ StudyNotFoundError

    package ──► graph ──► engine:  PackageError, GateError, GraphError, UnsupportedOperatorError

Every message says what was wrong, where, and what to do. `STATUS` maps each class to the exit code of the
command line, the gRPC status and the HTTP status.
"""

from __future__ import annotations

from dataclasses import dataclass


class WetreadError(Exception):
    """Base of all errors raised on purpose.

    Args:
        what: what was wrong, with the value found and the value expected.
        where: the file, instance UID, tag or field it was found in.
        todo: the next step for the reader of the message.
        code: short upper-case code, stable across versions, for machines.
    """

    default_code = "ERROR"

    def __init__(self, what: str, *, where: str = "", todo: str = "", code: str = "") -> None:
        self.what = what
        self.where = where
        self.todo = todo
        self.code = code or self.default_code
        super().__init__(what)

    def __str__(self) -> str:
        text = self.what
        if self.where:
            text += f" [{self.where}]"
        if self.todo:
            text += f" → {self.todo}"
        return text

    def to_json(self) -> dict[str, str | int]:
        """Machine-readable form: code, what, where, todo, exit code."""
        return {
            "error": type(self).__name__,
            "code": self.code,
            "what": self.what,
            "where": self.where,
            "todo": self.todo,
            "exit_code": status_of(self).exit_code,
        }


class InputError(WetreadError):
    """Something is wrong with the study that was given."""

    default_code = "INPUT"


class StudyNotFoundError(InputError):
    """The path does not exist or holds no image at all."""

    default_code = "STUDY_NOT_FOUND"


class FileFormatError(InputError):
    """A file is truncated, empty, or not what its name says."""

    default_code = "FILE_FORMAT"


class ArchiveError(InputError):
    """A zip is damaged, too large when unpacked, or names paths outside itself."""

    default_code = "ARCHIVE"


class SelectionError(InputError):
    """No series, or no unambiguous one, suits the recipe's channels."""

    default_code = "SELECTION"


class GeometryError(InputError):
    """Slices or affine do not describe one regular volume, and no safe repair exists."""

    default_code = "GEOMETRY"


class PixelError(InputError):
    """Voxels are missing, cannot be decoded, or contradict the header."""

    default_code = "PIXELS"


class RecipeError(WetreadError):
    """A recipe is malformed or does not fit its network or its volume."""

    default_code = "RECIPE"


class PackageError(WetreadError):
    """A package is incomplete, damaged or does not match its hashes."""

    default_code = "PACKAGE"


class GateError(PackageError):
    """An engine has not passed the accuracy gate of its backend and precision."""

    default_code = "GATE"


class GraphError(WetreadError):
    """A network's graph is malformed: types, shapes or names do not agree."""

    default_code = "GRAPH"


class UnsupportedOperatorError(GraphError):
    """A network uses an operator that this engine cannot run."""

    default_code = "UNSUPPORTED_OPERATOR"


class EngineError(WetreadError):
    """An engine could not be made or failed while running."""

    default_code = "ENGINE"


class EngineUnavailableError(EngineError):
    """The backend that was asked for is not installed or its device is absent."""

    default_code = "ENGINE_UNAVAILABLE"


class DeviceMemoryError(EngineError):
    """The device has too little memory for the context or the case."""

    default_code = "DEVICE_MEMORY"


class DeviceFaultError(EngineError):
    """The device stopped working for this process, which must be started again; other errors leave it usable."""

    default_code = "DEVICE_FAULT"


class NotFiniteError(EngineError):
    """The network returned NaN or infinity; no mask is made from such an output."""

    default_code = "NOT_FINITE"


class RegressionError(WetreadError):
    """A row of the bench is worse than in the baseline, beyond the measured noise."""

    default_code = "REGRESSION"


class OutputError(WetreadError):
    """A result could not be written, or did not read back as it was written."""

    default_code = "OUTPUT"


@dataclass(frozen=True)
class Status:
    """How an error class appears outside: process exit code, gRPC status name, HTTP status."""

    exit_code: int
    grpc: str
    http: int


STATUS: dict[type[WetreadError], Status] = {
    WetreadError: Status(1, "INTERNAL", 500),
    InputError: Status(10, "INVALID_ARGUMENT", 422),
    StudyNotFoundError: Status(11, "NOT_FOUND", 404),
    FileFormatError: Status(12, "INVALID_ARGUMENT", 422),
    ArchiveError: Status(13, "INVALID_ARGUMENT", 422),
    SelectionError: Status(14, "FAILED_PRECONDITION", 422),
    GeometryError: Status(15, "INVALID_ARGUMENT", 422),
    PixelError: Status(16, "DATA_LOSS", 422),
    RecipeError: Status(20, "INVALID_ARGUMENT", 400),
    PackageError: Status(21, "FAILED_PRECONDITION", 409),
    GateError: Status(22, "FAILED_PRECONDITION", 409),
    GraphError: Status(23, "INVALID_ARGUMENT", 400),
    UnsupportedOperatorError: Status(24, "UNIMPLEMENTED", 501),
    EngineError: Status(30, "INTERNAL", 500),
    EngineUnavailableError: Status(31, "UNAVAILABLE", 503),
    DeviceMemoryError: Status(32, "RESOURCE_EXHAUSTED", 503),
    NotFiniteError: Status(33, "INTERNAL", 500),
    RegressionError: Status(34, "FAILED_PRECONDITION", 409),
    DeviceFaultError: Status(35, "UNAVAILABLE", 503),
    OutputError: Status(40, "RESOURCE_EXHAUSTED", 507),
}


def status_of(error: WetreadError) -> Status:
    """Status of the nearest class in the table, walking up from the error's own."""
    for cls in type(error).__mro__:
        if cls in STATUS:
            return STATUS[cls]
    return STATUS[WetreadError]


@dataclass(frozen=True)
class Notice:
    """A coded warning: something was repaired, assumed or left out, and the reading says so.

    Attributes:
        code: short upper-case code, stable across versions (table in ``docs/notices.md``).
        text: what was found and what was done about it.
        where: series UID, instance UID, tag or file.
    """

    code: str
    text: str
    where: str = ""

    def to_json(self) -> dict[str, str]:
        """Plain dictionary with the three fields."""
        return {"code": self.code, "text": self.text, "where": self.where}
