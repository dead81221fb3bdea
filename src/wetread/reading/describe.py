"""What a study holds and what would be read of it; what a package is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wetread.errors import PackageError, WetreadError
from wetread.package import Package
from wetread.reading.select import choose
from wetread.reading.source import open_source


def describe(source: Path | str, package: Package | Path | str = "lung-nodule") -> dict[str, Any]:
    """Describes a study, or a package where the path is one (or the name of an embedded one).

    Raises:
        WetreadError: neither a study nor a package, or damaged.
    """
    path = Path(source)
    if _is_package(path):
        return describe_package(Package.open(source))
    if not path.exists():
        try:
            return describe_package(Package.open(source))
        except PackageError:
            pass  # the study's own error, below, is what the user meant
    return describe_study(path, package)


def _is_package(path: Path) -> bool:
    return path.is_dir() and (
        (path / "manifest.json").is_file() or any(path.glob("[0-9]*.[0-9]*.[0-9]*/manifest.json"))
    )


def describe_package(package: Package) -> dict[str, Any]:
    """Name, version, hash, recipe, models, gate."""
    return {
        "kind": "package",
        "name": package.name,
        "version": package.version,
        "path": str(package.path),
        "hash": package.hash,
        "precision": package.precision,
        "recipe": package.recipe.model_dump(mode="json"),
        "models": [model.model_dump(mode="json") for model in package.models],
        "gate": package.gate.model_dump(mode="json"),
    }


def describe_study(path: Path, package: Package | Path | str) -> dict[str, Any]:
    """Series with geometry, repairs and refusals, and which one the package would read, and why."""
    package = package if isinstance(package, Package) else Package.open(package)
    with open_source(path) as source:
        candidates = source.candidates()
        series = [{"key": candidate.key} | source.describe(i) for i, candidate in enumerate(candidates)]
        data: dict[str, Any] = {
            "kind": source.kind,
            "path": str(path),
            "package": f"{package.name} {package.version}",
            "notices": [notice.to_json() for notice in source.notices],
        }
        try:
            choices, notices = choose(package.recipe, candidates)
            data["read"] = [
                {
                    "channel": choice.channel,
                    "series": candidates[choice.index].key,
                    "why": choice.reason,
                    "not_read": choice.rejected,
                }
                for choice in choices
            ]
            data["notices"] += [notice.to_json() for notice in notices]
        except WetreadError as error:
            data["refused"] = error.to_json()
        return data | {"series": series}
