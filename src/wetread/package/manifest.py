"""The manifest: a package's files, their hashes, what they were made of, and the package's own hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from wetread.errors import PackageError, RecipeError

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Precision = Literal["float32", "float16", "bfloat16", "int8", "float8", "float64"]

Arithmetic = Precision | Literal["tf32"]
"""What an engine computes in: a graph's precision, or float32 through TensorFloat-32 units."""

_LARGEST_JSON = 16 * 2**20

T = TypeVar("T", bound=BaseModel)


class Closed(BaseModel):
    """Frozen; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TensorEntry(Closed):
    """An input or output of a network: name, shape (None where free), numpy type name."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


class ModelEntry(Closed):
    """One network file.

    Attributes:
        file: path inside the package, with forward slashes.
        sha256, bytes: of the file.
        precision: by the types in the graph.
        stage, fold: cascade stage, and fold of an ensemble within it; unique together.
        inputs, outputs: the network's tensors.
    """

    file: str
    sha256: Sha256
    bytes: int = Field(gt=0)
    precision: Precision
    stage: int = Field(0, ge=0)
    fold: int = Field(0, ge=0)
    inputs: tuple[TensorEntry, ...] = Field(min_length=1)
    outputs: tuple[TensorEntry, ...] = Field(min_length=1)

    @field_validator("file")
    @classmethod
    def _inside(cls, file: str) -> str:
        return inside(file)


class SourceEntry(Closed):
    """A file that the package was made from: its name, hash and size."""

    name: str
    sha256: Sha256
    bytes: int = Field(ge=0)


class ShapeProfile(Closed):
    """Spatial shapes of windows that a network with free axes is prepared for, in voxels.

    Attributes:
        min, opt, max: smallest, usual and largest; no axis shrinks from one to the next.
    """

    min: tuple[int, int, int]
    opt: tuple[int, int, int]
    max: tuple[int, int, int]

    @model_validator(mode="after")
    def _ordered(self) -> ShapeProfile:
        if any(not 1 <= a <= b <= c for a, b, c in zip(self.min, self.opt, self.max, strict=True)):
            raise ValueError(f"min {self.min}, opt {self.opt}, max {self.max} must not shrink, from 1 on")
        return self

    @classmethod
    def parse(cls, text: str) -> ShapeProfile:
        """Reads ``min:opt:max``, each as ``64x128x128``; one shape alone stands for all three.

        Raises:
            RecipeError: the text says something else.
        """
        try:
            parts = [tuple(int(size) for size in part.split("x")) for part in text.lower().split(":")]
            parts = parts * 3 if len(parts) == 1 else parts
            low, usual, high = parts
            return cls.model_validate({"min": low, "opt": usual, "max": high})
        except ValueError as error:
            raise RecipeError(
                f"the shapes {text!r} are not min:opt:max, none smaller than the one before",
                where="--shapes",
                todo="write for example 32x64x64:64x128x128:96x160x160",
            ) from error


class Manifest(Closed):
    """Everything about a package but the voxels' way through it (that is the recipe).

    Attributes:
        hash: over models and recipe, see `package_hash`.
        recipe_sha256: of ``recipe.json``.
        models: network files in the order of stage and fold.
        files: other files (a model card) and their hashes.
        sources: what it was made from.
        tools: names and versions of what made it.
        shapes: profile of window shapes; None where the window is the recipe's alone.
    """

    format: Literal[1] = 1
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    version: str = Field(pattern=r"^[0-9]+\.[0-9]+\.[0-9]+$")
    hash: Sha256
    recipe_sha256: Sha256
    models: tuple[ModelEntry, ...] = Field(min_length=1)
    files: dict[str, Sha256] = {}
    sources: tuple[SourceEntry, ...] = ()
    tools: dict[str, str] = {}
    shapes: ShapeProfile | None = None

    @field_validator("files")
    @classmethod
    def _inside(cls, files: dict[str, str]) -> dict[str, str]:
        return {inside(file): digest for file, digest in files.items()}

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        places = [(model.stage, model.fold) for model in self.models]
        if places != sorted(set(places)):
            raise ValueError("models must be in the order of stage and fold, each once")
        if len({model.file for model in self.models}) != len(self.models):
            raise ValueError("two models have the same file")
        found = package_hash(self.recipe_sha256, self.models)
        if found != self.hash:
            raise ValueError(f"the hash of models and recipe is {found}, the manifest says {self.hash}")
        return self


def inside(file: str) -> str:
    """Refuses paths that are absolute, climb out of the package, or are not in plain form."""
    path = PurePosixPath(file)
    if (
        not file
        or path.is_absolute()
        or ".." in path.parts
        or "\\" in file
        or ":" in file
        or str(path) != file
    ):
        raise ValueError(f"{file!r} is not a plain path inside the package")
    if path.parts[0] == "engines" or file in ("manifest.json", "gate.json", "recipe.json"):
        raise ValueError(f"{file!r} has a name that packages use for something else")
    return file


def package_hash(recipe_sha256: str, models: Sequence[ModelEntry]) -> str:
    """SHA-256 over recipe and models: canonical JSON of their own hashes with stage and fold, in order."""
    content = {
        "format": 1,
        "recipe": recipe_sha256,
        "models": [[model.stage, model.fold, model.sha256] for model in models],
    }
    return hashlib.sha256(canonical(content)).hexdigest()


def canonical(content: object) -> bytes:
    """JSON with sorted keys, no spaces, ASCII only: the same bytes for the same content everywhere."""
    return json.dumps(
        content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    ).encode()


def pretty(content: object) -> bytes:
    """JSON for files that people also read: indented, UTF-8, ending in a newline, order kept."""
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file, read in pieces.

    Raises:
        PackageError: the file is missing or cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise PackageError(f"a file cannot be read: {error.strerror}", where=str(path)) from error


def read_json(path: Path) -> bytes:
    """Content of a small JSON file.

    Raises:
        PackageError: missing, unreadable or larger than 16 MiB.
    """
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise PackageError(f"file is larger than {_LARGEST_JSON} bytes", where=str(path))
        return path.read_bytes()
    except OSError as error:
        raise PackageError(
            f"a file of the package cannot be read: {error.strerror}",
            where=str(path),
            todo="copy the package again, or make it with `wetread pack`",
        ) from error


def parse(kind: type[T], path: Path) -> T:
    """Reads a JSON file into a model.

    Raises:
        PackageError: unreadable, not JSON, or fields that do not fit, each named.
    """
    try:
        return kind.model_validate_json(read_json(path))
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(str(part) for part in item['loc']) or path.name}: {item['msg']}"
            for item in error.errors()
        )
        raise PackageError(faults, where=str(path)) from error
