"""Packages as they lie on disk: found, read, and verified against their hashes.

::

    <name>/<version>/
        manifest.json       files, hashes, sources, tools
        recipe.json         how the network is used
        model.onnx          or several, listed in the manifest by stage and fold
        gate.json           accuracy by backend and precision
        card.md             what it was trained on and how well it does (optional)
        engines/<fingerprint>/   cache for one device, outside the hash
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from wetread.errors import GateError, OutputError, PackageError
from wetread.package.gate import DeviceGate, Gate, GateRecord, GateVerdict, judge
from wetread.package.manifest import Manifest, ModelEntry, file_sha256, parse, pretty
from wetread.recipe import Recipe, load_recipe
from wetread.storage import write_bytes

DEFAULT = "lung-nodule"
_VERSION = re.compile(r"^[0-9]+\.[0-9]+\.[0-9]+$")
_NAME = re.compile(r"^[a-z0-9][a-z0-9._-]{0,63}$")
_FINGERPRINT = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")


@dataclass(frozen=True)
class Package:
    """A verified package; make one with `open`, `embedded` or `default`.

    Attributes:
        path: the directory ``<name>/<version>``.
        recipe: how the network is used.
        manifest: files, hashes, sources, tools.
        gate: accuracy by backend and precision.
    """

    path: Path
    recipe: Recipe
    manifest: Manifest
    gate: Gate

    @classmethod
    def open(cls, path: Path | str) -> Package:
        """Opens a package and verifies every file that its manifest lists.

        Args:
            path: the version's directory, its parent (the highest version is taken), or the name of an
                embedded package.

        Raises:
            PackageError: not found, incomplete, or a file whose hash is not the manifest's; the message names
                the file, the hash found and the hash expected.
            RecipeError: the recipe is malformed.
        """
        return _read(_locate(path))

    @classmethod
    def embedded(cls, name: str = DEFAULT) -> Package:
        """Opens a package that came with the installation.

        Raises:
            PackageError: none of that name came with it.
        """
        folder = _embedded_folder()
        if not _NAME.match(name) or not (folder / name).is_dir():
            raise PackageError(
                f"no embedded package {name!r}; there are: {', '.join(embedded_names()) or 'none'}",
                where=str(folder),
                todo="give the path of a package",
            )
        return _read(_locate(folder / name))

    @classmethod
    def default(cls) -> Package:
        """Opens the embedded package that is used where none is named."""
        return cls.embedded(DEFAULT)

    @property
    def name(self) -> str:
        """Name of the package, which is its recipe's."""
        return self.manifest.name

    @property
    def version(self) -> str:
        """Version of the package, which is its recipe's."""
        return self.manifest.version

    @property
    def hash(self) -> str:
        """SHA-256 over models and recipe, 64 hexadecimal digits."""
        return self.manifest.hash

    @property
    def models(self) -> tuple[ModelEntry, ...]:
        """The networks in the order of stage and fold."""
        return self.manifest.models

    @property
    def precision(self) -> str:
        """Precision by the types in the graphs; ``mixed`` where the networks differ."""
        found = {model.precision for model in self.models}
        return found.pop() if len(found) == 1 else "mixed"

    def model_path(self, i: int = 0) -> Path:
        """Path of the i-th network file."""
        return self.path / self.models[i].file

    def check_gate(
        self,
        backend: str,
        precision: str,
        override: bool = False,
        fingerprint: str = "",
        plans: Sequence[str] = (),
    ) -> GateVerdict:
        """Says why an engine may load; the verdict's text belongs into every reading.

        Args:
            backend, precision: of the engine.
            override: the user loads it whatever the gate says.
            fingerprint: of the engine; where the gate was run on this very device, that run counts before
                the package's summary.
            plans: file names of the serialised engines in use; the device's own gate must have been run with
                them.

        Raises:
            GateError: the gate was not passed on this backend in this precision, or the device's own gate
                speaks of another package or plan, and there is no override.
        """
        own = None
        if fingerprint:
            try:
                own = self.device_gate(fingerprint)
                if own is not None and (new := sorted(set(plans) - set(own.plans))):
                    raise GateError(
                        f"the device's gate was run without the plan {new[0]}",
                        where=str(self.path),
                        todo="run `wetread gate` on this device",
                    )
            except GateError as error:
                if not override:
                    raise
                text = f"{backend} in {precision}: {error.what}; loaded by explicit override"
                return GateVerdict("overridden", text)
        return judge(self.gate, backend, precision, override, str(self.path), own.record if own else None)

    def device_gate(self, fingerprint: str) -> DeviceGate | None:
        """The gate that was run on one device; None where none was.

        Raises:
            GateError: it speaks of another package, or of another plan than the one that lies beside it.
        """
        for folder in self._engine_folders(fingerprint):
            file = folder / "gate.json"
            if not file.is_file():
                continue
            found = parse(DeviceGate, file)
            if (found.package, found.fingerprint) != (self.hash, fingerprint):
                raise GateError(
                    f"the device's gate speaks of package {found.package} on {found.fingerprint}, "
                    f"this is {self.hash} on {fingerprint}",
                    where=str(file),
                    todo="run `wetread gate` on this device",
                )
            for name, digest in found.plans.items():
                plan = folder / Path(name).name
                if not plan.is_file() or file_sha256(plan) != digest:
                    raise GateError(
                        f"the device's gate was run with another plan than {name}",
                        where=str(plan),
                        todo="run `wetread gate` on this device",
                    )
            return found
        return None

    def with_device_gate(
        self, fingerprint: str, record: GateRecord, table: Mapping[str, Any], plans: Sequence[str] = ()
    ) -> Package:
        """Writes the whole table beside the plan it speaks of, and its record into the summary.

        Where the package is read-only the table lies in the user's cache, and the summary stays as it was.

        Args:
            fingerprint: of the engine that was judged.
            record: the summary.
            table: every case and figure, plain data.
            plans: names of the serialised engines in the same folder that it was run with.

        Raises:
            OutputError: neither the package nor the user's cache can be written.
        """
        folder = self.cache_dir(fingerprint)
        if folder is None:
            raise OutputError(
                "the device's gate cannot be written: neither the package nor the cache is writable",
                where=str(self.path),
                todo="set WETREAD_CACHE to a folder that can be written",
            )
        digests = {name: file_sha256(folder / name) for name in sorted(plans)}
        found = DeviceGate(
            package=self.hash, fingerprint=fingerprint, record=record, plans=digests, table=dict(table)
        )
        write_bytes(folder / "gate.json", pretty(found.model_dump(mode="json")))
        try:
            return self.with_gate(record)
        except OutputError:
            if folder.is_relative_to(self.path):
                raise
            return self  # a read-only package: the device's own gate, in the cache, is what counts there

    def with_gate(self, record: GateRecord) -> Package:
        """Adds a record to ``gate.json`` and returns the package with it.

        Raises:
            OutputError: the file cannot be written.
        """
        kept = tuple(
            r for r in self.gate.records if (r.backend, r.precision) != (record.backend, record.precision)
        )
        gate = Gate(package=self.hash, records=(*kept, record))
        target = self.path / "gate.json"
        temporary = target.with_name(f".gate.{os.getpid()}.tmp")
        try:
            temporary.write_bytes(pretty(gate.model_dump(mode="json")))
            temporary.replace(target)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise OutputError(f"the gate cannot be written: {error.strerror}", where=str(target)) from error
        return Package(self.path, self.recipe, self.manifest, gate)

    def cache_dir(self, fingerprint: str) -> Path | None:
        """A writable folder for what is tuned for one device, made if need be; None where there is none.

        It is ``engines/<fingerprint>`` in the package; where that is read-only, the same under
        ``$WETREAD_CACHE`` or the user's cache folder, in a folder named by the package's hash.

        Raises:
            PackageError: the fingerprint is no plain file name.
        """
        for folder in self._engine_folders(fingerprint):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=folder):
                    return folder
            except OSError:
                continue
        return None

    def _engine_folders(self, fingerprint: str) -> tuple[Path, Path]:
        """Where what belongs to one device may lie: in the package, and in the user's cache."""
        if not _FINGERPRINT.match(fingerprint):
            raise PackageError(f"{fingerprint!r} is no fingerprint: letters, digits, dot, dash, underscore")
        inside, outside = self.engine_folders
        return inside / fingerprint, outside / fingerprint

    @property
    def engine_folders(self) -> tuple[Path, Path]:
        """Where what belongs to devices may lie, one folder for each: in the package, and in the user's cache."""
        return self.path / "engines", user_cache() / self.hash[:16]


def user_cache() -> Path:
    """``$WETREAD_CACHE``, or wetread's folder in the user's cache; it may not exist yet."""
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("WETREAD_CACHE") or Path(user) / "wetread")


def embedded_names() -> list[str]:
    """Names of the packages that came with the installation."""
    folder = _embedded_folder()
    return sorted(item.name for item in folder.iterdir() if item.is_dir()) if folder.is_dir() else []


def _embedded_folder() -> Path:
    return Path(str(resources.files("wetread"))) / "packages"


def _locate(path: Path | str) -> Path:
    """The version's directory that a path or name stands for."""
    folder = Path(path)
    if not folder.exists():
        if isinstance(path, str) and path in embedded_names():
            return _locate(_embedded_folder() / path)
        raise PackageError(
            f"there is no package {str(path)!r}; embedded: {', '.join(embedded_names()) or 'none'}",
            where=str(path),
            todo="give the directory <name>/<version>, or the name of an embedded package",
        )
    if (folder / "manifest.json").is_file():
        return folder
    versions = (
        [
            item
            for item in folder.iterdir()
            if _VERSION.match(item.name) and (item / "manifest.json").is_file()
        ]
        if folder.is_dir()
        else []
    )
    if not versions:
        raise PackageError(
            "no manifest.json here, and no <version>/manifest.json below",
            where=str(folder),
            todo="make a package with `wetread pack model.onnx recipe.json`",
        )
    return max(versions, key=lambda item: tuple(int(part) for part in item.name.split(".")))


def _read(folder: Path) -> Package:
    """Reads and verifies the package in a version's directory."""
    manifest = parse(Manifest, folder / "manifest.json")
    expected = {model.file: model.sha256 for model in manifest.models}
    expected |= manifest.files
    expected["recipe.json"] = manifest.recipe_sha256
    root = folder.resolve()
    for name, digest in expected.items():
        file = folder / name
        if not file.resolve().is_relative_to(root):
            raise PackageError("a file of the package is a link that leads out of it", where=str(file))
        found = file_sha256(file)
        if found != digest:
            raise PackageError(
                f"the file has SHA-256 {found}, the manifest expects {digest}",
                where=str(file),
                todo="the file was changed or damaged: copy the package again, or pack it anew",
            )
    recipe = load_recipe(folder / "recipe.json")
    if (recipe.name, recipe.version) != (manifest.name, manifest.version):
        raise PackageError(
            f"the recipe is of {recipe.name} {recipe.version}, "
            f"the manifest of {manifest.name} {manifest.version}",
            where=str(folder),
        )
    gate = parse(Gate, folder / "gate.json")
    if gate.package != manifest.hash:
        raise PackageError(
            f"the gate speaks of package {gate.package}, this one is {manifest.hash}",
            where=str(folder / "gate.json"),
            todo="run the gate on this package; records of another do not count",
        )
    return Package(folder, recipe, manifest, gate)


def bytes_sha256(content: bytes) -> str:
    """Hex SHA-256 of bytes."""
    return hashlib.sha256(content).hexdigest()
