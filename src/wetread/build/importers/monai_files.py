"""The files of a MONAI bundle: a folder, a zip of one, or TorchScript that carries its configuration."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from wetread.build.importers.pickles import open_archive
from wetread.errors import EngineUnavailableError, GraphError, RecipeError

_SUFFIXES = (".json", ".yaml", ".yml")
_MODELS = ("models/model.pt", "models/model.pth", "models/model.ts")


@dataclass(frozen=True)
class BundleFiles:
    """What a bundle holds.

    Attributes:
        path: where it lies.
        names: of its files, relative to its root, with forward slashes.
        root: the bundle's folder, or the folder in the zip that holds ``configs``.
        embedded: the bundle is a TorchScript file with its configuration inside.
    """

    path: Path
    names: tuple[str, ...]
    root: str = ""
    embedded: bool = False

    @property
    def model(self) -> str:
        """Name of the file that holds the weights.

        Raises:
            GraphError: there is none.
        """
        if self.embedded:
            return self.path.name
        for name in (*_MODELS, *sorted(n for n in self.names if n.startswith("models/"))):
            if name in self.names and name.endswith((".pt", ".pth", ".ts")):
                return name
        raise GraphError(
            "the bundle holds no weights",
            where=str(self.path),
            todo=f"put them at {_MODELS[0]}, or download the bundle whole (weights may be Git LFS files)",
        )

    def read(self, name: str) -> bytes:
        """Content of one file.

        Raises:
            GraphError: it cannot be read.
        """
        try:
            if self.path.is_dir():
                return (self.path / name).read_bytes()
        except OSError as error:
            raise GraphError(f"cannot be read: {error.strerror}", where=str(self.path / name)) from error
        with open_archive(self.path) as archive:
            return archive.read(self.root + name)

    @contextmanager
    def file(self, name: str) -> Iterator[Path]:
        """One file as a path of the file system, for as long as the context lasts."""
        if self.embedded:
            yield self.path
        elif self.path.is_dir():
            yield self.path / name
        else:
            with tempfile.TemporaryDirectory(prefix="wetread-") as folder:
                # the name inside the zip is never used as a path, so that it cannot lead elsewhere
                copy = Path(folder) / ("model" + PurePosixPath(name).suffix)
                copy.write_bytes(self.read(name))
                yield copy

    def configs(self) -> dict[str, Mapping[str, Any]]:
        """All configurations by file name.

        Raises:
            RecipeError: one is neither JSON nor YAML.
            EngineUnavailableError: one is YAML, and PyYAML is not installed.
        """
        folder = "" if self.embedded else "configs/"
        found = {}
        for name in self.names:
            inside = name.removeprefix(folder)
            if name.startswith(folder) and "/" not in inside and inside.endswith(_SUFFIXES):
                data = parse(self.read(name), f"{self.path}: {name}")
                if isinstance(data, Mapping):
                    found[inside] = data
        return found


def bundle_files(path: Path) -> BundleFiles:
    """Lists a bundle's files.

    Raises:
        GraphError: the zip is damaged.
    """
    if path.is_dir():
        names = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
        return BundleFiles(path, tuple(names))
    with open_archive(path) as archive:
        names = archive.namelist()
    for name in names:
        for mark, embedded in (("extra/metadata.json", True), ("configs/metadata.json", False)):
            if name == mark or name.endswith("/" + mark):
                root = name.removesuffix(mark) + ("extra/" if embedded else "")
                inside = sorted(
                    n.removeprefix(root) for n in names if n.startswith(root) and not n.endswith("/")
                )
                return BundleFiles(path, tuple(inside), root, embedded)
    raise GraphError("this zip holds no configs/metadata.json", where=str(path))


def parse(content: bytes, where: str) -> Any:
    """JSON, or YAML without tags that build objects.

    Raises:
        RecipeError: neither.
        EngineUnavailableError: it is YAML, and PyYAML is not installed.
    """
    if not where.endswith((".yaml", ".yml")):
        try:
            return json.loads(content)
        except ValueError as error:
            raise RecipeError(f"is no JSON: {error}", where=where) from error
    try:
        import yaml
    except ImportError as error:
        raise EngineUnavailableError(
            "this bundle is configured in YAML, and PyYAML is not installed",
            where=where,
            todo="pip install 'wetread[monai]'",
        ) from error
    try:
        return yaml.safe_load(content)
    except yaml.YAMLError as error:
        raise RecipeError(f"is no YAML: {error}", where=where) from error
