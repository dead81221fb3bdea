"""Packages written whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wetread.errors import OutputError, PackageError
from wetread.package.gate import Gate, GateRecord, reference_record
from wetread.package.manifest import (
    Manifest,
    ModelEntry,
    Precision,
    ShapeProfile,
    SourceEntry,
    TensorEntry,
    package_hash,
    pretty,
)
from wetread.package.package import Package, bytes_sha256
from wetread.recipe import Recipe


@dataclass(frozen=True)
class NetworkFile:
    """A network to be written into a package: ONNX bytes and what is known of them."""

    content: bytes
    precision: Precision
    inputs: tuple[TensorEntry, ...]
    outputs: tuple[TensorEntry, ...]
    stage: int = 0
    fold: int = 0


@dataclass(frozen=True)
class Contents:
    """What lies in a package beside its networks and recipe; none of it is part of the package's hash.

    Attributes:
        files: further files by name, such as ``card.md`` and ``build.json``; the manifest has their hashes.
        sources: what the package was made from.
        tools: names and versions of what made it.
        shapes: window shapes that networks with free axes are prepared for.
    """

    files: Mapping[str, bytes] = field(default_factory=dict)
    sources: Sequence[SourceEntry] = ()
    tools: Mapping[str, str] = field(default_factory=dict)
    shapes: ShapeProfile | None = None


def write_package(
    out: Path,
    recipe: Recipe,
    networks: Sequence[NetworkFile],
    contents: Contents | None = None,
    *,
    records: Sequence[GateRecord] | None = None,
    force: bool = False,
) -> Package:
    """Writes ``out/<name>/<version>`` and opens it again.

    The files are written to a temporary folder beside it, verified there, and moved into place in one step:
    no half package is ever seen. Same arguments give the same bytes.

    Args:
        out: folder that holds packages; name and version come from the recipe.
        recipe: how the networks are used.
        networks: in any order of stage and fold.
        contents: further files, sources, tools.
        records: gate; None gives float32 networks the reference record, and others none.
        force: replaces a package of the same name and version.

    Raises:
        PackageError: the version exists already, or stages and folds are not unique.
        OutputError: the folder cannot be written.
    """
    target = out / recipe.name / recipe.version
    if target.exists() and not force:
        raise PackageError(
            "this version of the package exists already",
            where=str(target),
            todo="raise the recipe's version, or use --force to replace it",
        )
    files = _files(recipe, networks, contents if contents is not None else Contents(), records)
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{recipe.version}.", suffix=".tmp", dir=target.parent))
        for name, content in files.items():
            _write(temporary / name, content)
        Package.open(temporary)
        temporary.chmod(0o755)
        _move(temporary, target)
    except OSError as error:
        raise OutputError(
            f"the package cannot be written: {error.strerror}", where=str(error.filename or target)
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return Package.open(target)


def _files(
    recipe: Recipe,
    networks: Sequence[NetworkFile],
    contents: Contents,
    records: Sequence[GateRecord] | None,
) -> dict[str, bytes]:
    """Content of every file of the package by name."""
    ordered = sorted(networks, key=lambda network: (network.stage, network.fold))
    if not ordered or len({(n.stage, n.fold) for n in ordered}) != len(ordered):
        raise PackageError("a package needs at least one network, each with its own stage and fold")
    names = (
        ["model.onnx"] if len(ordered) == 1 else [f"models/stage{n.stage}_fold{n.fold}.onnx" for n in ordered]
    )
    if clash := {*names, "recipe.json", "gate.json", "manifest.json"} & set(contents.files):
        raise PackageError(f"two files of the package are called {min(clash)}", where=recipe.name)
    entries = tuple(
        ModelEntry(
            file=name,
            sha256=bytes_sha256(network.content),
            bytes=len(network.content),
            precision=network.precision,
            stage=network.stage,
            fold=network.fold,
            inputs=network.inputs,
            outputs=network.outputs,
        )
        for name, network in zip(names, ordered, strict=True)
    )
    recipe_json = pretty(recipe.model_dump(mode="json"))
    digest = package_hash(bytes_sha256(recipe_json), entries)
    manifest = Manifest(
        name=recipe.name,
        version=recipe.version,
        hash=digest,
        recipe_sha256=bytes_sha256(recipe_json),
        models=entries,
        files={name: bytes_sha256(contents.files[name]) for name in sorted(contents.files)},
        sources=tuple(contents.sources),
        tools=dict(sorted(contents.tools.items())),
        shapes=contents.shapes,
    )
    if records is None:
        records = [reference_record()] if all(n.precision == "float32" for n in ordered) else []
    files = {name: network.content for name, network in zip(names, ordered, strict=True)}
    files["recipe.json"] = recipe_json
    files |= contents.files
    files["gate.json"] = pretty(Gate(package=digest, records=tuple(records)).model_dump(mode="json"))
    files["manifest.json"] = pretty(manifest.model_dump(mode="json"))
    return files


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _move(temporary: Path, target: Path) -> None:
    """Moves the new package into place; an old one is set aside first and restored if that fails."""
    if not target.exists():
        temporary.rename(target)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent)) / "old"
    target.rename(aside)
    try:
        temporary.rename(target)
    except OSError:
        aside.rename(target)
        raise
    finally:
        shutil.rmtree(aside.parent, ignore_errors=True)
