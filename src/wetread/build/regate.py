"""``wetread gate``: the gate run again, on another device or backend than the build's."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from wetread.build.cases import case_shelf, check_held_out
from wetread.build.fit import check_fit
from wetread.build.gate import GateOptions, Original, run_gate
from wetread.build.importers import ImportOptions, import_model
from wetread.build.options import Progress
from wetread.build.pack import network_file, source_entry
from wetread.build.verdict import GateLimits, GateResult
from wetread.engines import resolve
from wetread.errors import GateError, PackageError
from wetread.package import Contents, Package, write_package


@dataclass(frozen=True)
class RegateOptions:
    """How a package is judged again.

    Attributes:
        reference: the float32 original: the model it was built from, or a float32 package of it. None for a
            float32 package, which is then compared with itself on the default backend.
        engine: backend that is judged.
        precision: arithmetic that is judged, such as ``float16`` for a float32 package on a GPU; None takes the
            package's own.
        limits: what may be lost.
        trust: originals may be loaded that execute what they hold.
        threads: CPU threads; 0 for all.
        progress: called with (stage, done, total).
    """

    reference: Path | None = None
    engine: str = "auto"
    limits: GateLimits = field(default_factory=GateLimits)
    trust: bool = False
    threads: int = 0
    progress: Progress | None = None
    precision: str | None = None


def regate(package: Package, cases: Path, options: RegateOptions | None = None) -> GateResult:
    """Judges a package on held-out cases and records the verdict: the table beside the plan, a summary inside.

    Args:
        package: what is judged, on this device.
        cases: folder of held-out cases.
        options: original, backend, limits.

    Raises:
        GateError: a case calibrated the package, or there is no original to compare with.
        OutputError: the verdict cannot be written.
    """
    options = options if options is not None else RegateOptions()
    engine = resolve(options.engine).name
    shelf = case_shelf(cases, package.recipe, options.threads)
    check_held_out(shelf.digests(), calibration_digests(package))
    how = GateOptions(engine, options.threads, options.progress, precision=options.precision)
    with _original(package, options) as (original, notes):
        # the original runs where the candidate does, unless that is what is in question
        beside = how if package.precision != "float32" else replace(how, engine=resolve("auto").name)
        result = run_gate(package, Original(original, beside), shelf, options.limits, how)
    result = replace(result, notes=notes)
    plans = _plans(package, result.engine.fingerprint)
    package.with_device_gate(result.engine.fingerprint, result.record(), result.to_json(), plans)
    return result


def calibration_digests(package: Package) -> dict[str, str]:
    """Name and hash of every case that calibrated a package; empty where none did."""
    cases = (read_facts(package).get("calibration") or {}).get("cases", [])
    return {case["name"]: case["sha256"] for case in cases}


def read_facts(package: Package) -> dict[str, Any]:
    """Content of the package's ``build.json``; empty where it was packed without a build.

    Raises:
        PackageError: the file is damaged.
    """
    file = package.path / "build.json"
    if "build.json" not in package.manifest.files:
        return {}
    try:
        data: dict[str, Any] = json.loads(file.read_bytes())
        return data
    except (OSError, ValueError) as error:
        raise PackageError(f"the record of the build cannot be read: {error}", where=str(file)) from error


def _plans(package: Package, fingerprint: str) -> list[str]:
    """Serialised engines in the device's folder: TensorRT's (whose records lie beside them), or wetread's own plans."""
    folder = package.cache_dir(fingerprint)
    if folder is None:
        return []
    found = {f.name for f in folder.iterdir()}
    return sorted(
        name
        for name in found
        if name.endswith((".plan", ".engine", ".blob"))
        or (name.endswith(".plan.json") and name.removesuffix(".json") not in found)
    )


@contextmanager
def _original(package: Package, options: RegateOptions) -> Iterator[tuple[Package, tuple[str, ...]]]:
    """The float32 original as a package, with what has to be said of it."""
    if options.reference is None:
        if package.precision != "float32":
            raise GateError(
                f"a {package.precision} package needs its float32 original to be compared with",
                where=str(package.path),
                todo="give --reference: the model that it was built from, or a float32 package of it",
            )
        yield package, ()
        return
    if _is_package(options.reference):
        original = Package.open(options.reference)
        if original.precision != "float32":
            raise GateError(
                f"the reference is a {original.precision} package, expected float32", where=str(original.path)
            )
        known = {entry.sha256 for entry in package.manifest.sources}
        same = bool(known & {entry.sha256 for entry in original.manifest.sources})
        yield original, () if same else (_stranger(str(options.reference)),)
        return
    imported = import_model(options.reference, _imports(package, options))
    known = {entry.sha256 for entry in package.manifest.sources}
    found = {source_entry(path).sha256 for path in imported.sources}
    with tempfile.TemporaryDirectory(prefix="wetread-gate-") as folder:
        networks = []
        for item in imported.networks:
            graph = (
                item.graph if len(item.graph.outputs) == 1 else item.graph.cut([item.graph.outputs[0].name])
            )
            check_fit(graph, package.recipe)
            networks.append(network_file(graph, item.stage, item.fold))
        made = write_package(
            Path(folder), package.recipe, networks, Contents(shapes=package.manifest.shapes), records=[]
        )
        yield made, () if known & found else (_stranger(str(options.reference)),)


def _imports(package: Package, options: RegateOptions) -> ImportOptions:
    folds = tuple(model.fold for model in package.models) if len(package.models) > 1 else ()
    window = package.recipe.tiling.window or package.recipe.fixed_shape
    return ImportOptions(trust=options.trust, folds=folds, window=window, dynamic=window is None)


def _is_package(path: Path) -> bool:
    return path.is_dir() and bool(
        (path / "manifest.json").is_file() or any(path.glob("[0-9]*.[0-9]*.[0-9]*/manifest.json"))
    )


def _stranger(path: str) -> str:
    return f"none of the files of the reference {path} is among those that the package was built from"
