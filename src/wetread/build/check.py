"""``wetread build --check``: a package is built again and compared with the one that is there."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from wetread.build.options import BuildOptions, NotPassedError
from wetread.build.pipeline import build
from wetread.build.prepare import recipe_of
from wetread.build.regate import read_facts
from wetread.package import GateRecord, Package

SCALE_TOLERANCE = 1e-3
"""Relative difference of scales that another processor may give."""


@dataclass(frozen=True)
class Difference:
    """One thing that is not as it was: what, the package's value and the rebuilt one's."""

    what: str
    package: str
    rebuilt: str


@dataclass(frozen=True)
class CheckResult:
    """Outcome of a check.

    Attributes:
        package: path of the package that was checked.
        differences: empty where it was confirmed.
        notes: what differs as it may.
    """

    package: str
    differences: tuple[Difference, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "same": not self.differences}


def check_build(model: Path | str, out: Path | str, options: BuildOptions) -> CheckResult:
    """Builds again with the same options, in a temporary folder, and compares with ``out/<name>/<version>``.

    On a machine with the same processor the package's hash must be the same. On another, rounding may differ in
    the last digit: there scales must agree within 1e-3, and recipe, sources, precision, released layers and
    verdict be the same.

    Raises:
        PackageError: there is no package to compare with.
        WetreadError: the build itself fails; a failed gate is a difference instead.
    """
    recipe = recipe_of(Path(model), options)
    existing = Package.open(Path(out) / recipe.name / recipe.version)
    where = str(existing.path)
    with tempfile.TemporaryDirectory(prefix="wetread-check-") as folder:
        try:
            again = build(model, folder, replace(options, force=True)).package
        except NotPassedError as error:
            failed = Difference("verdict", _verdict(existing), "; ".join(error.result.failures))
            return CheckResult(where, (failed,))
        return CheckResult(where, *compare(existing, again))


def compare(existing: Package, again: Package) -> tuple[tuple[Difference, ...], tuple[str, ...]]:
    """What differs between two packages of one model, and what differs as it may."""
    old, new = read_facts(existing), read_facts(again)
    found: list[Difference] = []

    def same(what: str, a: object, b: object) -> None:
        if a != b:
            found.append(Difference(what, str(a), str(b)))

    same("recipe", existing.recipe.model_dump(mode="json"), again.recipe.model_dump(mode="json"))
    sources = [{entry.name: entry.sha256[:16] for entry in p.manifest.sources} for p in (existing, again)]
    for name in sorted(set(sources[0]) | set(sources[1])):
        same(f"source {name}", sources[0].get(name, "absent"), sources[1].get(name, "absent"))
    tools = [p.manifest.tools for p in (existing, again)]
    for name in sorted(set(tools[0]) | set(tools[1])):
        same(f"version of {name}", tools[0].get(name, "absent"), tools[1].get(name, "absent"))
    same("precision", existing.precision, again.precision)
    same("released layers", old.get("released"), new.get("released"))
    same("verdict", _verdict(existing), _verdict(again))
    found += _scale_differences(old, new)
    if existing.hash == again.hash:
        return tuple(found), ()
    devices = [_device(p) for p in (existing, again)]
    if found or devices[0] == devices[1]:
        found.append(Difference("hash", existing.hash, again.hash))
        return tuple(found), ()
    note = f"hash {again.hash} differs, as it may: built on {devices[0] or 'another machine'}, checked on {devices[1]}"
    return (), (note,)


def _records(package: Package) -> list[GateRecord]:
    return [record for record in package.gate.records if record.status != "reference"]


def _verdict(package: Package) -> str:
    return ", ".join(f"{r.backend} {r.precision} {r.status}" for r in _records(package)[:1]) or "none"


def _device(package: Package) -> str:
    """The processor that the build's gate ran on, without its threads."""
    records = _records(package)
    return records[0].device.split(", ")[0] if records else ""


def _scale_differences(old: dict[str, Any], new: dict[str, Any]) -> list[Difference]:
    found = []
    for a, b in zip(old.get("networks", []), new.get("networks", []), strict=False):
        first = (a.get("precision") or {}).get("scales", {})
        second = (b.get("precision") or {}).get("scales", {})
        for name in sorted(set(first) | set(second)):
            x, y = first.get(name), second.get(name)
            if x is None or y is None or abs(x - y) > SCALE_TOLERANCE * max(abs(x), abs(y)):
                found.append(Difference(f"scale of {name}", str(x), str(y)))
    return found
